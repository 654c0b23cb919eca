"""Test-time augmentation and ensembles match the same computation by hand."""

import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_forward_hook

from fer import CLASSES
from fer.checkpoint import Checkpoint
from fer.data.demo import demo
from fer.data.faces import Faces
from fer.inference import (
    Ensemble,
    greedy,
    probabilities,
    ten_crop_size,
    training_faces_among,
)
from fer.models.convnet import ConvNet
from fer.models.network import Network, Normalize

TINY = ["data=demo", "data.images=141", "model=dnn", "device=cpu", "train.epochs=2"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(ConvNet(features=[4, "pool"], head=[], size=40), Normalize("unit")).eval()


def test_views_are_averaged_as_probabilities(network):
    images = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8)
    alone = network.logits(images, 5, "fp32").double().softmax(1)
    torch.testing.assert_close(probabilities(network, images, 2, "none", "fp32"), alone)
    mirror = network.logits(images.flip(-1), 5, "fp32").double().softmax(1)
    torch.testing.assert_close(
        probabilities(network, images, 2, "flip", "fp32"), (alone + mirror) / 2
    )
    crops = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    views = [
        x[..., top : top + 40, left : left + 40]
        for x in (images, images.flip(-1))
        for top, left in crops
    ]
    expected = torch.stack(
        [network.logits(view, 5, "fp32").double().softmax(1) for view in views]
    ).mean(0)
    torch.testing.assert_close(probabilities(network, images, 2, "tencrop", "fp32"), expected)


@pytest.mark.parametrize(("face", "model", "crop"), [(48, 40, 40), (48, 48, 42), (48, 64, 42)])
def test_ten_crops_are_smaller_than_the_face(face, model, crop):
    """With 7/8 of its side if the model takes whole faces: the whole face would be no crop."""
    assert ten_crop_size(face, model) == crop


def test_a_network_predicts_in_the_format_of_the_machine_not_of_its_training(
    fer, tiny, monkeypatch
):
    train = yaml.safe_load(torch.load(tiny(), weights_only=True)["config"])["train"] | {
        "precision": "bf16"
    }
    path = tiny(config={"train": train})
    for capability, computes_in_bf16 in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        used = set()
        hook = register_module_forward_hook(
            lambda module, inputs, output, used=used: (
                used.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
            )
        )
        code, _, err = fer(
            "predict", f"ckpt={path}", "split=validation", "out=x.csv", "tta=flip", "device=cpu"
        )
        hook.remove()
        assert code == 0 and err == "", err
        assert (torch.bfloat16 in used) == computes_in_bf16


def test_greedy_selection_finds_the_pair_that_is_right_together():
    labels = torch.arange(7).repeat(3)
    truth = torch.nn.functional.one_hot(labels, 7).double()
    half = torch.arange(21) < 12
    first = torch.where(half[:, None], truth, torch.roll(truth, 1, 1) * 0.3 + 0.1)
    second = torch.where(half[:, None], torch.roll(truth, 1, 1) * 0.3 + 0.1, truth)
    noise = torch.full((21, 7), 1 / 7, dtype=torch.float64)
    weights = greedy([noise, first, second], labels)
    assert weights[0] == 0 and weights[1] and weights[2]
    assert greedy([noise, first], labels).tolist() == [0, 1]


def test_an_ensemble_labels_by_the_mean_probabilities_and_tells_what_each_adds(fer):
    for seed in (0, 1, 2):
        assert fer("train", *TINY, f"seed={seed}", f"run=runs/{seed}", "model.head=[16]")[0] == 0
        fer("predict", f"ckpt=runs/{seed}", "split=validation", "out=x.csv", f"probs={seed}.csv")
    code, out, err = fer(
        "predict", "ckpt=runs/*/best.pt", "split=validation", "out=e.csv", "probs=e_probs.csv"
    )
    assert code == 0, err
    mean = sum(pd.read_csv(f"{seed}.csv")[list(CLASSES)] for seed in (0, 1, 2)) / 3
    assert (pd.read_csv("e_probs.csv")[list(CLASSES)] - mean).abs().to_numpy().max() < 2e-6
    assert (pd.read_csv("e.csv")["label"] == mean.to_numpy().argmax(1)).all()
    rows = [line.split() for line in out.splitlines() if line.lstrip().startswith("runs/")]
    assert [row[0] for row in rows] == [f"runs/{seed}/best.pt" for seed in (0, 1, 2)]
    for seed, row in enumerate(rows):
        assert row[1] == "0.33"
        assert float(row[2]) == pytest.approx(
            pd.read_csv(f"runs/{seed}/history.csv")["val_accuracy"].max(), abs=1e-4
        )

    code, out, _ = fer(
        "predict",
        "ckpt=[runs/0,runs/1]",
        "select=greedy",
        "tta=flip",
        "split=validation",
        "out=e.csv",
    )
    assert code == 0 and "without tta: " in out
    code, _, err = fer("predict", "ckpt=runs", "select=greedy", "data.seed=7")
    assert code == 2 and "so it may have learned them" in err
    code, out, _ = fer("predict", "ckpt=runs", "data.seed=7")
    assert (
        code == 0
        and "contributions of members are not shown" in out
        and "labeled by 3 checkpoints" in out
    )
    Path("runs/begun").mkdir()
    code, out, _ = fer("predict", "ckpt=runs/*", "split=validation")
    assert (
        code == 0
        and "runs/begun: has no best.pt yet, left out" in out
        and "labeled by 3 checkpoints" in out
    )
    code, _, err = fer("predict", "ckpt=runs/beg*")
    assert code == 2 and "runs/beg*: no best.pt there yet" in err
    code, _, err = fer("predict", "ckpt=runs/*/none.pt")
    assert code == 2 and "matches no file" in err
    for command in ("predict ckpt=[]", "evaluate ckpt=[]", "report run=[]"):
        code, _, err = fer(*command.split())
        assert code == 2 and "[]: names no checkpoint" in err


def test_members_validated_on_other_faces_neither_choose_nor_are_scored(fer, fer2013_csv):
    for seed in (0, 1):
        data = [
            "data=fer2013_fraction",
            f"data.path={fer2013_csv}",
            "data.fraction=0.3",
            f"data.seed={seed}",
        ]
        data += ["model=dnn", "model.head=[16]", "device=cpu", "train.epochs=2"]
        assert fer("train", *data, f"run=r{seed}")[0] == 0
    code, _, err = fer("predict", "ckpt=[r0,r1]", "select=greedy", "split=validation")
    assert code == 2 and "r1/best.pt was validated on other faces than these" in err
    code, out, _ = fer("predict", "ckpt=[r0,r1]", "split=validation")
    assert code == 0 and "contributions of members are not shown" in out
    code, out, _ = fer("predict", "ckpt=[r0,r0/last.pt]", "select=greedy", "split=validation")
    assert code == 0 and "ensemble: accuracy" in out


def test_the_predictions_saved_by_training_are_used_again(fer):
    fer("train", *TINY, "run=r", "model.head=[16]")
    more = ["split=validation", "out=a.csv", "probs=pa.csv", "data.images=401"]
    assert fer("predict", "ckpt=r/last.pt", *more)[0] == 0
    computed = []

    def note(module, inputs, output):
        # A batch of one face only checks the shape of the network.
        if isinstance(module, torch.nn.Linear) and module.out_features == 7 and len(output) > 1:
            computed.append(len(output))

    with register_module_forward_hook(note):
        assert fer("predict", "ckpt=r/last.pt", "out=t.csv")[0] == 0
        assert sum(computed) == len(pd.read_csv("t.csv"))  # each face once
        computed.clear()
        assert fer("predict", "ckpt=r", "split=validation", "out=b.csv")[0] == 0
        assert not computed
        assert fer("predict", "ckpt=r", "split=train", "out=c.csv")[0] == 0
        assert sum(computed) == len(pd.read_csv("c.csv"))


def test_accuracy_on_training_faces_is_marked_as_such(fer):
    tiny = [
        "data=demo",
        "data.images=140",
        "model=dnn",
        "model.head=[4]",
        "train.epochs=1",
        "device=cpu",
    ]
    assert fer("train", *tiny, "run=r")[0] == 0
    code, out, err = fer("predict", "ckpt=r", "split=train", "out=s.csv")
    assert (
        code == 0
        and "r/best.pt was trained on 140 of these 140 faces: its accuracy on them says little"
        in out
    ), err
    code, out, err = fer("predict", "ckpt=r", "split=train", "data.images=150", "out=s.csv")
    assert code == 0 and "accuracy 0." in out, err
    assert "learned" not in fer("predict", "ckpt=r", "split=validation", "out=s.csv")[1]


def test_members_with_the_same_data_may_be_trained_on_different_faces():
    """As the folds of fer mislabels, and the rounds of fer selftrain, are."""
    images = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8)
    faces = Faces(images, torch.zeros(4, dtype=torch.int64), list("abcd"))
    settings = SimpleNamespace(data={"_target_": "fer.data.demo.demo"})
    members = []
    for fold, rows in enumerate(([0, 1], [2])):
        contents = {"training_faces": faces.take(rows).hashes, "face_size": 48}
        members.append(Checkpoint(Path(f"fold{fold}/best.pt"), contents, settings))
    trained_on = training_faces_among(faces, members, strict=True, consequence="")
    assert trained_on.tolist() == [True, True, True, False]


def write_faces(path, count, seed=0, labels=False):
    """A CSV of drawn faces, as the competition's train.csv or test.csv."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 48 * 48))
    rows = [" ".join(map(str, row)) for row in pixels]
    if labels:
        rows = [f"{i % 7},{row}" for i, row in enumerate(rows)]
    header = "emotion,pixels" if labels else "pixels"
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def competition(fer, fer2013_csv):
    """The folder of the competition's page, with its archive's CSV, and a network trained on it;
    returns the folder and what the training said.
    """
    folder = fer2013_csv.parent
    fer2013_csv.rename(folder / "icml_face_data.csv")
    write_faces(folder / "train.csv", 70, labels=True)
    write_faces(folder / "test.csv", 9, seed=1)
    (folder / "example_submission.csv").write_text("emotion\n" + "0\n" * 9)
    (folder / "fer2013.tar.gz").write_bytes(b"\x1f\x8b")
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    code, out, err = fer("train", f"data.path={folder}", *small, "run=runs/r")
    assert code == 0, err
    return folder, out


def test_the_files_of_the_competition_lead_to_its_submission(fer, competition):
    folder, said = competition
    assert (
        f"fer predict ckpt=runs/r/best.pt sample={folder}/example_submission.csv out=submission.csv"
        in said
    )
    assert fer("predict")[0] == 0
    labels = pd.read_csv("submission.csv")["label"].tolist()
    assert len(labels) == 9
    code, out, err = fer(
        "predict", f"sample={folder}/example_submission.csv", "out=one.csv", "probs=p.csv"
    )
    assert code == 0 and "labels alone" in out, err
    expected = "emotion\n" + "".join(f"{label}\n" for label in labels)
    assert Path("one.csv").read_text() == expected
    assert pd.read_csv("p.csv")["id"].tolist() == list(range(9))
    assert fer("predict", "columns=[emotion]", "out=two.csv")[0] == 0
    assert Path("two.csv").read_text() == expected


@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_a_test_csv_beside_the_unpacked_or_packed_archive_is_found(fer, fer2013_csv, form):
    """The competition's page also has fer2013.tar.gz, which holds fer2013/fer2013.csv."""
    place = Path("page")
    place.mkdir()
    write_faces(place / "test.csv", 9, seed=1)
    (place / "sample_submission.csv").write_text("emotion\n" + "0\n" * 9)
    if form == "unpacked":
        fer2013_csv.parent.rename(place / "fer2013")
    else:
        with tarfile.open(place / "fer2013.tar.gz", "w:gz") as archive:
            archive.add(fer2013_csv, "fer2013/fer2013.csv")
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    code, out, err = fer("train", f"data.path={place}", *small, "run=r")
    words = " ".join(out.split())
    assert code == 0 and "fer2013/fer2013.csv: Training trains" in words, err
    assert "test.csv has no labels" in words and "/page/sample_submission.csv out=" in words
    assert fer("predict", "ckpt=r")[0] == 0
    assert len(pd.read_csv("submission.csv")) == 9


def test_a_submission_without_header(fer, competition):
    Path("bare.csv").write_text("0\n" * 9)
    Path("ids.csv").write_text("".join(f"{i},0\n" for i in reversed(range(9))))
    assert fer("predict")[0] == 0
    labels = pd.read_csv("submission.csv")["label"].tolist()
    for asked in ("sample=bare.csv", "columns=[]"):
        assert fer("predict", asked, "out=one.csv")[0] == 0
        assert Path("one.csv").read_text() == "".join(f"{label}\n" for label in labels)
    assert fer("predict", "sample=ids.csv", "out=two.csv")[0] == 0
    assert Path("two.csv").read_text() == "".join(f"{i},{labels[i]}\n" for i in reversed(range(9)))


def test_a_sample_that_does_not_fit_is_refused(fer, competition):
    for text, words in (
        ("id;label\n0;1\n", "its columns are separated by semicolons; separate them by commas"),
        ("PK\3\4", "is a zip archive; name a CSV file"),
        ("emotion\n0\n", "has 1 rows for 9 faces"),
        ("id\n" + "a\n" * 9, "'a' in its only column is not a label"),
        ("id,label\n" + "0,1\n", "has 1 rows for 9 faces"),
    ):
        Path("sample.csv").write_text(text)
        code, _, err = fer("predict", "sample=sample.csv", "out=x.csv")
        assert code == 2 and words in err and not Path("x.csv").exists()


def test_a_single_file_is_predicted_and_measured_whole(fer, competition):
    write_faces(Path("labeled.csv"), 70, seed=2, labels=True)
    write_faces(Path("unlabeled.csv"), 5, seed=3)
    code, out, err = fer("predict", "data.path=unlabeled.csv")
    assert code == 0 and len(pd.read_csv("submission.csv")) == 5, err
    code, _, err = fer("predict", "data.path=labeled.csv")
    assert code == 2 and "what do these numbers mean" in err
    labeled = [
        "data.path=labeled.csv",
        "data.names=[angry,disgust,fear,happy,sad,surprise,neutral]",
    ]
    code, out, err = fer("predict", *labeled)
    assert code == 0 and len(pd.read_csv("submission.csv")) == 70, err
    assert "no accuracy is shown: all contains, or may contain, PrivateTest" in out
    assert "\nlabels: 0 angry, 1 disgust, 2 fear, 3 happy" in out
    code, out, err = fer("evaluate", *labeled)
    assert code == 0 and "70 faces of all" in out, err
    code, out, err = fer("evaluate", *labeled, "split=validation")
    assert code == 0 and "faces of validation" in out, err
    code, _, err = fer("evaluate", "data.path=unlabeled.csv")
    assert code == 2 and "has no labels, so there is no accuracy" in err
    members = "ckpt=[runs/r,runs/r/last.pt]"
    code, out, err = fer("predict", members, "data.path=unlabeled.csv", "select=greedy")
    assert code == 0 and "ensemble: accuracy" in out, err
    for asked in ("data.split=auto", "data.split=none"):
        code, _, err = fer("train", "data.path=unlabeled.csv", asked, "run=n")
        assert code == 2 and "train on" in err and not Path("n").exists()


def test_a_network_is_built_once_however_often_it_labels(tiny, monkeypatch):
    """A camera asks for every frame."""
    ensemble = Ensemble.open(str(tiny()), torch.device("cpu"), 64, "none")
    built, load = [], torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module,
        "load_state_dict",
        lambda self, *args, **more: built.append(self) or load(self, *args, **more),
    )
    faces = demo(images=70, limit=None, seed=0, normalize="dataset").split("train")
    first, second = ensemble.label(faces), ensemble.with_tta("none").label(faces)
    assert len(built) == 1 and torch.equal(first, second)
