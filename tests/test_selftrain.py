"""Self-training and mislabels: which faces are chosen, and that finished work is not repeated."""

import sys
from pathlib import Path

import cleanlab.filter
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_blobs

from fer.commands import selftrain
from fer.data.faces import Faces, stratified

TINY = [
    "data=demo",
    "data.images=210",
    "model=dnn",
    "model.head=[8]",
    "device=cpu",
    "train.epochs=2",
]


def test_a_share_of_every_class_keeps_its_labels():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2])
    known = stratified(labels.numpy(), 0.2, seed=3, least=1)
    assert torch.bincount(labels[known]).tolist() == [8, 2, 1]
    assert (known == stratified(labels.numpy(), 0.2, seed=3, least=1)).all()
    assert (known != stratified(labels.numpy(), 0.2, seed=4, least=1)).any()


def test_the_most_confident_predictions_of_every_class_are_used():
    probabilities = torch.tensor(
        [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.45, 0.55]]
    )
    chosen, said = selftrain.surest(probabilities, 0.5)
    assert chosen.tolist() == [0, 2, 3] and said.tolist() == [0, 0, 1]
    assert selftrain.surest(probabilities, 1.0)[0].tolist() == [*range(6)]


def test_clusters_get_their_classes_from_few_labels():
    points, labels = make_blobs(
        300, centers=[[60] * 4, [200] * 4, [60, 200, 60, 200]], cluster_std=4, random_state=0
    )
    images = torch.from_numpy(np.tile(points, 576).round().astype(np.uint8).reshape(-1, 1, 48, 48))
    faces = Faces(images, torch.from_numpy(labels), [str(i) for i in range(300)])
    known = torch.from_numpy(stratified(faces.labels.numpy(), 0.05, seed=0, least=1))
    assert selftrain.cluster_accuracy(faces, known, faces, 3, seed=0) == 1
    wrong = Faces(images, (faces.labels + 1) % 3, faces.ids)
    assert selftrain.cluster_accuracy(faces, known, wrong, 3, seed=0) == 0


def test_self_training_compares_on_one_page_and_goes_on_where_it_was_stopped(fer, tmp_path):
    args = ["selftrain", *TINY, "shares=[0.3,0.6]", "rounds=1", "clusters=10", "out=s"]
    code, _, err = fer(*args)
    assert code == 0, err
    table = pd.read_csv("s/selftrain.csv")
    assert table["method"].tolist() == ["clusters", "supervised only", "round 1"] * 2
    assert (table["low"] < table["accuracy"]).all() and (table["accuracy"] < table["high"]).all()
    assert (
        table["predictions"][2] > 0
        and 0 <= table["right"][2] <= 1
        and (tmp_path / "s" / "selftrain.png").is_file()
    )
    trained = torch.load("s/0.3_round_1/best.pt", weights_only=True)
    assert table["accuracy"][2] == pytest.approx(trained["val_accuracy"])

    before = Path("s/0.3_supervised_only/best.pt").stat().st_mtime_ns
    for path in Path("s/0.6_round_1").iterdir():
        path.unlink()
    assert fer(*args)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv("s/selftrain.csv"), table)
    assert Path("s/0.3_supervised_only/best.pt").stat().st_mtime_ns == before
    code, _, err = fer(*args, "optim.lr=0.5")
    assert (
        code == 2
        and "s/0.3_supervised_only: was trained with other settings (optim.lr: 0.02 → 0.5)" in err
    )


def test_trainings_on_other_faces_are_not_reused(fer):
    args = ["selftrain", *TINY, "shares=[0.3]", "rounds=1", "clusters=10", "out=s"]
    assert fer(*args)[0] == 0
    code, _, err = fer(*args, "portion=0.9")
    assert code == 2 and "s/0.3_round_1/last.pt: was trained on other faces or labels" in err
    assert fer("mislabels", *TINY, "folds=2", "out=m")[0] == 0
    code, _, err = fer("mislabels", *TINY, "folds=3", "out=m")
    assert code == 2 and "m/fold0/last.pt: was trained on other faces or labels" in err
    code, _, err = fer("mislabels", *TINY, "folds=100", "out=n")
    assert code == 2 and "folds=100: no class has more than" in err and not Path("n").exists()


def test_trainings_that_patience_ended_are_not_continued(fer):
    args = ["selftrain", *TINY, "shares=[0.3]", "rounds=1", "clusters=10", "out=s"]
    args += ["optim.lr=1e-12", "optim.adam_lr=1e-12", "train.epochs=5", "train.patience=1"]
    assert fer(*args)[0] == 0
    assert len(pd.read_csv("s/0.3_round_1/history.csv")) < 5
    code, out, _ = fer(*args)
    assert code == 0 and "resuming at" not in out


def test_mislabeled_faces_are_found_by_cleanlab_on_held_out_folds(fer):
    code, out, err = fer("mislabels", *TINY, "folds=2", "out=m")
    assert code == 0, err
    table = pd.read_csv("m/mislabels.csv")
    folds = [torch.load(f"m/fold{i}/best.pt", weights_only=True)["validation"] for i in (0, 1)]
    assert len(table) == sum(len(fold["labels"]) for fold in folds) and table["id"].is_unique
    quality = np.concatenate(
        [f["logits"].double().softmax(1)[range(len(f["labels"])), f["labels"]] for f in folds]
    )
    np.testing.assert_allclose(np.sort(table["quality"]), np.sort(quality), atol=1e-4)
    labels = torch.cat([fold["labels"] for fold in folds]).numpy()
    probabilities = torch.cat([fold["logits"] for fold in folds]).double().softmax(1).numpy()
    assert (
        table["suspect"].sum()
        == cleanlab.filter.find_label_issues(labels, probabilities, n_jobs=1).sum()
    )
    suspects = table["suspect"].to_numpy()
    assert (np.diff(suspects.astype(int)) <= 0).all() and (
        np.diff(table["quality"][suspects]) >= 0
    ).all()
    assert f"suspect: {suspects.sum():,} of {len(table):,} labels (" in out


def test_a_list_from_poor_networks_is_marked_and_faces_show_both_classes(fer, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **more: drawn.append(self) or save(self, *args, **more),
    )
    code, out, err = fer("mislabels", *TINY, "folds=2", "samples=5", "out=m")
    assert code == 0, err
    table = pd.read_csv("m/mislabels.csv")
    agreement = (table["prediction"] == table["label"]).mean()
    assert f"do not rely on this list: the networks agree with only {100 * agreement:.0f} %" in out
    (axes,), first = drawn[0].axes, table.iloc[0]
    assert len(axes.images) == len(axes.texts) == min(5, table["suspect"].sum()) > 0
    caption = f"{first.prediction} {100 * first.confidence:.0f} %\nlabel: {first.label}"
    assert axes.texts[0].get_text() == caption


def test_a_list_from_good_networks_is_not_marked(fer):
    generator = np.random.default_rng(0)
    rows = ["emotion,pixels,Usage"]
    for i in range(98):
        face = generator.integers(0, 50, (48, 48))
        face[6 * (i % 7) : 6 * (i % 7) + 6] += 200
        usage = "Training" if i < 70 else "PublicTest"
        rows.append(f"{i % 7},{' '.join(map(str, face.ravel()))},{usage}")
    Path("faces.csv").write_text("\n".join(rows) + "\n")
    words = ["data.path=faces.csv", *TINY[2:], "augment=none", "train.epochs=9", "folds=2"]
    code, out, err = fer("mislabels", *words, "out=m")
    assert code == 0 and "suspect: " in out and "do not rely" not in out, err


@pytest.mark.parametrize(
    ("command", "package", "name"),
    [
        (["mislabels", *TINY, "out=m"], "cleanlab", "mislabels"),
        (["explain", "device=cpu", "out=m"], "captum", "explain"),
    ],
)
def test_a_missing_package_is_refused_before_any_work(
    fer, tiny, monkeypatch, command, package, name
):
    if name == "explain":
        command = [*command, f"ckpt={tiny()}"]
    for module in [key for key in sys.modules if key.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = fer(*command)
    assert code == 2 and f"pip install 'fer-trainer[{name}]'" in err, err
    assert not Path("m").exists()


def test_copies_of_a_face_are_judged_together(fer, fer2013_csv):
    """By the same network, which was trained on none of them."""
    rows = fer2013_csv.read_text().splitlines()
    fer2013_csv.write_text("\n".join([*rows, *rows[1:50]]) + "\n")
    words = [f"data.path={fer2013_csv}", *TINY[2:], "folds=2", "out=m"]
    code, _, err = fer("mislabels", *words)
    assert code == 0, err
    table = pd.read_csv("m/mislabels.csv").set_index("id")
    ids = sorted(table.index)
    judged = table[["prediction", "confidence", "quality"]]
    for face, copy in zip(ids[:49], ids[-49:], strict=True):
        assert judged.loc[face].equals(judged.loc[copy])


def test_a_moved_folder_or_another_device_is_no_other_training(fer, monkeypatch, tmp_path):
    args = ["mislabels", *TINY, "folds=2"]
    assert fer(*args, "out=m")[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("m").rename(elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    before = Path("moved/fold0/best.pt").stat().st_mtime_ns
    code, _, err = fer(*[arg for arg in args if arg != "device=cpu"], "device=auto", "out=moved")
    assert code == 0, err
    assert Path("moved/fold0/best.pt").stat().st_mtime_ns == before
