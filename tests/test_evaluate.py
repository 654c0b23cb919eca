"""fer evaluate matches scipy and counts by hand, and logs evaluations on PrivateTest."""

import csv
import re
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from fer import CLASSES, inference, metrics
from fer.checkpoint import Checkpoint
from fer.commands.evaluate import log_evaluation

TINY = ["model=dnn", "model.head=[16]", "device=cpu", "train.epochs=2"]


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (2300, 3589), (1, 3)])
def test_the_interval_equals_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 9), (9, 3), (400, 350), (1, 0)])
def test_mcnemar_equals_the_binomial_test(won, lost):
    tail = sum(comb(won + lost, wins) for wins in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert metrics.mcnemar(won, lost) == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_seeds_are_averaged_and_runs_tested_in_pairs(fer):
    args = ["data=demo", "data.images=300", *TINY]
    for seed in (0, 1, 2):
        assert fer("train", *args, f"seed={seed}", f"run=runs/{seed}")[0] == 0
        fer("predict", f"ckpt=runs/{seed}", "split=validation", f"out={seed}.csv")
    code, out, err = fer("evaluate", "ckpt=runs/*/best.pt", "select=uniform")
    assert code == 0, err
    accuracies = [
        pd.read_csv(f"runs/{seed}/history.csv")["val_accuracy"].max() for seed in (0, 1, 2)
    ]
    assert f"3 seeds: {np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1):.4f} (sd)" in out
    assert out.count("McNemar p = ") == 3 and "ensemble, uniform" in out
    labels = Checkpoint.open(Path("runs/0/best.pt")).data().split("validation").labels.numpy()
    first, second = (pd.read_csv(f"{seed}.csv")["label"] == labels for seed in (0, 1))
    won, lost = (second & ~first).sum(), (first & ~second).sum()
    assert won != lost
    line = f"runs/1/best.pt against runs/0/best.pt: right alone {won}, wrong alone {lost}, McNemar"
    assert line in out
    assert "seeds: " not in fer("evaluate", "ckpt=[runs/0/best.pt,runs/0/last.pt]")[1]
    for seed in (3, 4):
        more = ["optim=sgd", f"seed={seed}", f"run=runs/{seed}"]
        assert fer("train", *args, *more)[0] == 0
    out = " ".join(fer("evaluate", "ckpt=[runs/0,runs/1,runs/3,runs/4]")[1].split())
    assert "(sd) of runs/0/best.pt, runs/1/best.pt 2 seeds: " in out
    assert "(sd) of runs/3/best.pt, runs/4/best.pt " in out


def test_weights_of_an_ensemble_are_chosen_on_validation_faces_whatever_is_labeled(
    fer, fer2013_csv, monkeypatch
):
    for seed in (0, 1):
        assert (
            fer("train", f"data.path={fer2013_csv}", *TINY, f"seed={seed}", f"run=r{seed}")[0] == 0
        )
    chosen_on = []
    greedy = inference.greedy

    def noted(parts, labels):
        chosen_on.append(labels)
        return greedy(parts, labels)

    monkeypatch.setattr(inference, "greedy", noted)
    for command in ("evaluate", "predict"):
        code, _, err = fer(command, "ckpt=[r0,r1]", "select=greedy", "split=private")
        assert code == 0, err
    validation = Checkpoint.open(Path("r0/best.pt")).data().split("validation").labels
    assert len(chosen_on) == 2 and all(torch.equal(labels, validation) for labels in chosen_on)


def test_accuracy_is_also_shown_without_copies_of_training_faces(fer, fer2013_csv):
    rows = list(csv.reader(fer2013_csv.open()))
    training = next(row for row in rows if row[2] == "Training")
    places = [i for i, row in enumerate(rows) if row[2] == "PublicTest"][:6]
    for i in places:
        rows[i][1] = training[1]
    fer2013_csv.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    code, out, _ = fer("evaluate", "ckpt=r")
    assert code == 0 and "21 faces of validation, 6 of them exact copies of training faces" in out
    fer("predict", "ckpt=r", "split=validation", "out=v.csv")
    labels = [int(row[0]) for row in rows if row[2] == "PublicTest"]
    hits = np.array(pd.read_csv("v.csv")["label"] == labels)
    assert f"{hits.mean():.4f}" in out and f"{hits[6:].mean():.4f}" in out


def test_copies_within_data_that_no_network_was_trained_on_are_left_out_too(fer, fer2013_csv):
    assert fer("train", "data=demo", "data.images=141", *TINY, "run=r")[0] == 0
    faces = pd.read_csv(fer2013_csv)
    public = faces.index[faces["Usage"] == "PublicTest"]
    faces.loc[public[:3], "pixels"] = faces.loc[0, "pixels"]
    faces.to_csv(fer2013_csv, index=False)
    code, out, err = fer("evaluate", "ckpt=r", "data=fer2013", f"data.path={fer2013_csv}")
    assert code == 0 and "21 faces of validation, 3 of them exact copies" in out, err


def test_copies_of_any_members_training_faces_are_left_out(fer, fer2013_csv):
    for seed in (0, 1):
        data = [
            "data=fer2013_fraction",
            f"data.path={fer2013_csv}",
            "data.fraction=0.3",
            f"data.seed={seed}",
        ]
        assert fer("train", *data, *TINY, f"run=r{seed}")[0] == 0
    assert ", 0 of them exact copies" in fer("evaluate", "ckpt=r1")[1]
    own, other = (Checkpoint.open(Path(f"r{seed}/best.pt")).data() for seed in (0, 1))
    known = int(own.split("validation").among(other.split("train")).sum())
    out = fer("evaluate", "ckpt=[r0,r1]")[1]
    assert known and f" of r0/best.pt's data, {known} of them exact copies" in out


def test_what_a_network_has_learned_is_a_copy_whatever_split_it_is_called_now(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    code, out, _ = fer("evaluate", "ckpt=r", "data.split=fraction", "data.fraction=0.3")
    assert (
        code == 0
        and "21 faces of validation, 21 of them exact copies" in out
        and out.splitlines()[2].endswith(" -")
    )
    assert "r/best.pt was trained on 21 of these 21 faces" in out


def test_every_evaluation_on_private_faces_is_logged_in_the_run(fer, fer2013_csv, tmp_path):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    code, out, _ = fer("evaluate", "ckpt=r")
    assert code == 0 and not (tmp_path / "r" / "evaluations.csv").exists()
    for look in (1, 2):
        code, out, err = fer("evaluate", "ckpt=r", "split=private")
        assert code == 0 and f"evaluation {look} of r on private" in out, err
    noted = pd.read_csv("r/evaluations.csv")
    assert list(noted["split"]) == ["private"] * 2 and f"{noted['accuracy'][0]:.4f}" in out
    fer("report", "run=r")
    page = (tmp_path / "r" / "report" / "index.html").read_text()
    assert "Evaluated on PrivateTest 2 times" in page


def test_an_evaluation_on_training_faces_is_not_logged(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    _, *lines = fer2013_csv.read_text().splitlines()
    training = [line.rsplit(",", 1)[0] for line in lines if line.endswith(",Training")]
    private = [line.rsplit(",", 1)[0] for line in lines if line.endswith(",PrivateTest")]
    train_csv = fer2013_csv.with_name("train.csv")
    train_csv.write_text("\n".join(["emotion,pixels", *training]))
    code, out, err = fer("evaluate", "ckpt=r", f"data.path={train_csv}")
    assert code == 0 and f"{len(training)} faces of all" in out, err
    assert "logged" not in out and not Path("r/evaluations.csv").exists()
    assert "\naccuracy " in fer("predict", "ckpt=r", f"data.path={train_csv}", "out=x.csv")[1]

    train_csv.write_text("\n".join(["emotion,pixels", *training, private[0]]))
    code, out, err = fer("evaluate", "ckpt=r", f"data.path={train_csv}")
    assert code == 0 and "evaluation 1 of r on all, logged" in out, err
    out = fer("predict", "ckpt=r", f"data.path={train_csv}", "out=x.csv")[1]
    assert "no accuracy is shown" in out and "\naccuracy " not in out


def test_a_split_without_labels_is_refused(fer, fer2013_csv):
    text = fer2013_csv.read_text().splitlines()
    train = [
        line.rsplit(",", 1)[0] for line in text if not line.endswith(("PublicTest", "PrivateTest"))
    ]
    (fer2013_csv.parent / "train.csv").write_text("\n".join(train))
    (fer2013_csv.parent / "test.csv").write_text("pixels\n" + train[1].split(",")[1])
    fer2013_csv.unlink()
    assert fer("train", f"data.path={fer2013_csv.parent}", *TINY, "run=r")[0] == 0
    code, _, err = fer("evaluate", "ckpt=r", "split=test")
    assert code == 2 and "split=test: has no labels" in err


def test_concurrent_evaluations_are_all_logged(tiny, tmp_path):
    member = Checkpoint.open(tiny())
    data = SimpleNamespace(split=lambda split: [0], hash="")
    with ThreadPoolExecutor(8) as pool:
        said = list(
            pool.map(lambda i: log_evaluation(member, "private", "none", data, "0.5"), range(16))
        )
    assert sorted(int(line.split()[1]) for line in said) == list(range(1, 17))
    assert len(pd.read_csv(tmp_path / "evaluations.csv")) == 16


def test_a_network_knows_the_faces_it_was_trained_on_in_any_layout(fer, fer2013_csv, tmp_path):
    """Their hashes are in best.pt, so its own data is not read again."""
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    faces = pd.read_csv(fer2013_csv)
    training = faces[faces["Usage"] == "Training"]
    for face in training.itertuples():
        picture = tmp_path / "pictures" / CLASSES[face.emotion] / f"{face.Index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(face.pixels.split(), np.uint8)
        Image.fromarray(pixels.reshape(48, 48)).save(picture)
    faces["pixels"] = faces["pixels"].str.split().str[::-1].str.join(" ")  # upside down
    faces.to_csv(fer2013_csv, index=False)  # other faces in their place

    code, out, err = fer("evaluate", "ckpt=r", "split=train")
    assert code == 0, err
    assert "was trained on" not in out and "not available" not in out
    code, out, err = fer("evaluate", "ckpt=r", "data.path=pictures", "split=validation")
    assert code == 0, err
    count = int(re.search(r"(\d+) faces of validation", out)[1])
    assert f"r/best.pt was trained on {count} of these {count} faces" in out


def test_of_a_checkpoint_of_an_earlier_version_its_data_tells_the_training_faces(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    best = Path("r/best.pt")
    contents = torch.load(best, weights_only=True)
    del contents["training_faces"]
    torch.save(contents, best)
    code, out, err = fer("evaluate", "ckpt=r", "split=train")
    assert code == 0 and "r/best.pt was trained on" in out, err
    moved = fer2013_csv.rename(fer2013_csv.with_name("moved.csv"))
    code, out, _ = fer("evaluate", "ckpt=r", f"data.path={moved}")
    assert code == 0 and ", 0 of them exact copies" in out
    missing = next(line for line in out.splitlines() if "not available" in line)
    assert "fer2013.csv: no such folder or file); only copies of this data's" in missing
    assert "looked for" not in missing  # what a training would be told


def save_in_class_folders(faces, classes, folder, **options):
    """Write the faces as pictures of 96×96: <folder>/<class>/<number>.jpg."""
    for i, (image, label) in enumerate(zip(faces.images, faces.labels.tolist(), strict=True)):
        place = Path(folder) / classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).resize((96, 96)).save(place / f"{i}.jpg", **options)


def test_training_faces_are_recognized_after_compression(fer):
    assert fer("train", "data=demo", "data.images=300", *TINY, "run=r")[0] == 0
    data = Checkpoint.open(Path("r/best.pt")).data()
    for split in ("train", "validation"):
        save_in_class_folders(data.split(split), data.classes, split, quality=75)
    code, out, err = fer("evaluate", "ckpt=r", "data=fer2013", "data.path=train")
    assert code == 0 and "r/best.pt was trained on most of these faces, which were" in out, err
    code, out, err = fer("evaluate", "ckpt=r", "data=fer2013", "data.path=validation")
    assert code == 0 and "was trained on" not in out, err


def test_a_fine_tuned_network_was_also_trained_on_the_faces_before(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    faces = Checkpoint.open(Path("r/best.pt")).data().split("validation")
    save_in_class_folders(faces, CLASSES, "mine")
    assert fer("train", "data.path=mine", *TINY, "start=r/best.pt", "run=fine")[0] == 0
    Path("r").rename("elsewhere")
    assert fer("train", "resume=fine", "train.epochs=2")[0] == 0
    for file in ("best.pt", "last.pt"):
        words = [f"ckpt=fine/{file}", f"data.path={fer2013_csv}", "split=train"]
        code, out, err = fer("evaluate", *words)
        assert code == 0 and f"fine/{file} was trained on" in out, err


def test_class_folders_of_other_faces_are_evaluated_whole(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    faces = Checkpoint.open(Path("r/best.pt")).data().split("validation")
    save_in_class_folders(faces, CLASSES, "mine")
    code, out, err = fer("evaluate", "ckpt=r", "data.path=mine")
    assert code == 0 and f"{len(faces)} faces of all" in out, err
    # Folders that it was trained on are split as for the training.
    assert fer("train", "data.path=mine", *TINY, "run=own")[0] == 0
    Path("mine").rename("moved")
    code, out, err = fer("evaluate", "ckpt=own", "data.path=moved")
    assert code == 0 and "faces of validation" in out, err


def test_a_folder_of_one_class_is_evaluated(fer, fer2013_csv):
    assert fer("train", f"data.path={fer2013_csv}", *TINY, "run=r")[0] == 0
    faces = Checkpoint.open(Path("r/best.pt")).data().split("train")
    happy = faces.take(faces.labels == CLASSES.index("happy"))
    save_in_class_folders(happy, CLASSES, "mine")
    code, out, err = fer("evaluate", "ckpt=r", "data.path=mine")
    assert code == 0 and f"{len(happy)} faces of all" in out, err
