"""FER+: its rules against a simple implementation, good and damaged files, 8-class training."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer import UserError
from fer.data.ferplus import EMOTIONS, ferplus, shares
from fer.training.objective import Objective

MODES = ["majority", "probability", "crossentropy", "multi"]
TINY = ["model=dnn", "model.head=[4]", "device=cpu", "train.epochs=2", "augment=none"]


def plain(votes, mode, classes):
    """One face's targets by the paper's steps, one after the other."""
    left = [v if v > 1 else 0 for v in votes]
    total, taken = sum(left), [0] * 10
    if mode == "majority":
        best = left.index(max(left))
        taken[best] = left[best] if left[best] > 0.5 * total else 0
    elif mode == "multi":
        taken = [v if v >= 0.3 * total else 0 for v in left]
    else:
        going = True
        while (
            going and sum(taken) < 0.75 * total and sum(v > 0 for v in taken) < 3 and max(left) > 0
        ):
            most = max(left)
            for i in [i for i, v in enumerate(left) if v == most]:
                going &= i < 8
                if i < 8 or sum(taken) == 0:
                    taken[i] = most
                left[i] = 0
    best = taken.index(max(taken))
    if sum(taken) <= 0.5 * total or best >= classes:
        return [0] * classes
    own = [float(v > 0) if mode == "multi" else v for v in taken[:classes]]
    return [v / sum(own) for v in own]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [7, 8])
@given(
    votes=st.lists(st.lists(st.integers(0, 6), min_size=10, max_size=10), min_size=1, max_size=20)
)
def test_the_rules_are_the_papers(mode, classes, votes):
    found = shares(np.array(votes, float), mode, classes)
    np.testing.assert_allclose(found, [plain(row, mode, classes) for row in votes])


@pytest.mark.parametrize(
    ("votes", "mode", "expected"),
    [
        ([6, 0, 0, 0, 0, 0, 4, 0, 0, 0], "majority", [1, 0, 0, 0, 0, 0, 0, 0]),
        ([5, 0, 0, 0, 0, 0, 5, 0, 0, 0], "majority", [0] * 8),
        ([5, 0, 0, 0, 0, 0, 5, 0, 0, 0], "crossentropy", [0.5, 0, 0, 0, 0, 0, 0.5, 0]),
        ([7, 1, 1, 1, 0, 0, 0, 0, 0, 0], "crossentropy", [1, 0, 0, 0, 0, 0, 0, 0]),
        ([0, 0, 3, 0, 0, 0, 0, 0, 7, 0], "crossentropy", [0] * 8),
        ([0, 0, 6, 0, 0, 0, 2, 0, 2, 0], "probability", [0, 0, 0.75, 0, 0, 0, 0.25, 0]),
        ([0, 0, 4, 0, 0, 0, 4, 2, 0, 0], "multi", [0, 0, 0.5, 0, 0, 0, 0.5, 0]),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], "multi", [0] * 8),
        ([0, 0, 0, 0, 0, 0, 0, 8, 0, 0], "majority", [0, 0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_examples_worked_out_by_hand(votes, mode, expected):
    assert shares(np.array([votes], float), mode, 8)[0].tolist() == expected


@pytest.fixture
def folder(fer2013_csv):
    """fer2013.csv of noise and, beside it, votes: six for a face's own emotion and three for the
    next one; every 14th face has nine for contempt instead. The second row is voted to show no
    face, the third has no name.
    """
    columns = [
        "neutral",
        "happiness",
        "surprise",
        "sadness",
        "anger",
        "disgust",
        "fear",
        "contempt",
        "unknown",
        "NF",
    ]
    with (fer2013_csv.parent / "fer2013new.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Usage", "Image name", *columns])
        for face in pd.read_csv(fer2013_csv).itertuples():
            votes = dict.fromkeys(columns, 0)
            if face.Index % 14 == 0:
                votes["contempt"] = 9
            else:
                votes[EMOTIONS[face.emotion]] = 6
                votes[EMOTIONS[(face.emotion + 1) % 7]] = 3
            if face.Index == 1:
                votes["NF"] = 30
            name = "" if face.Index == 2 else f"fer{face.Index:07d}.png"
            writer.writerow([face.Usage, name, *votes.values()])
    return fer2013_csv.parent


def read(folder, **changes):
    plain = {
        "votes": None,
        "mode": "crossentropy",
        "classes": 8,
        "score": "majority",
        "limit": None,
    }
    return ferplus(str(folder), **(plain | {"normalize": "dataset"} | changes))


def test_votes_are_read_beside_the_pixels(folder):
    data = read(folder)
    assert (
        len(data.classes) == 8
        and data.sealed == {"private"}
        and data.splits["public"] is data.splits["validation"]
    )
    train = data.splits["train"]
    assert len(train) == 68  # of 70: one without a name, one without a face
    assert train.labels.tolist()[:4] == [7, 3, 4, 5] and train.targets[1].tolist() == pytest.approx(
        [0, 0, 0, 2 / 3, 1 / 3, 0, 0, 0]
    )
    seven = read(folder, classes=7)
    assert (
        len(seven.splits["train"]) == 63
        and len(seven.classes) == 7
        and seven.splits["train"].targets.shape[1] == 7
    )
    original = read(folder, score="original", classes=7).splits["validation"]
    assert original.labels.tolist() == [i % 7 for i in range(21)]
    assert len(read(folder, limit=5).splits["train"]) == 5
    pixels = folder / "fer2013.csv"
    pixels.write_text(re.sub(r"^(emotion|\d),", "", pixels.read_text(), flags=re.MULTILINE))
    assert read(folder, classes=7).splits["validation"].labels.max() < 7
    with pytest.raises(UserError, match=r"data\.score=original: .* without a label"):
        read(folder, score="original", classes=7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [], "No columns"),
        (lambda lines: ["<!DOCTYPE html>"], "is a web page; get fer2013new.csv from"),
        (lambda lines: lines[:-1], "has 104 rows for 105 faces"),
        (lambda lines: [lines[0].replace("contempt", "scorn"), *lines[1:]], "no column contempt"),
        (
            lambda lines: [*lines[:5], lines[5].replace("Training", "PublicTest"), *lines[6:]],
            "line 6: has another Usage than its face",
        ),
        (
            lambda lines: [*lines[:5], lines[5].replace(",0,", ",-1,"), *lines[6:]],
            "line 6: its votes",
        ),
        (
            lambda lines: [
                "",
                lines[0],
                "",
                *lines[1:5],
                lines[5].replace(",0,", ",-1,"),
                *lines[6:],
            ],
            "line 8: its votes",
        ),
        (
            lambda lines: [*lines[:5], lines[5].replace(",0,", ",x,"), *lines[6:]],
            "line 6: its votes",
        ),
    ],
)
def test_bad_votes_are_refused_with_file_and_line(folder, change, words):
    file = folder / "fer2013new.csv"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(UserError, match=words) as error:
        read(folder)
    assert str(file) in str(error.value)


def test_pixels_without_votes_are_refused(folder, tmp_path):
    (folder / "fer2013new.csv").unlink()
    with pytest.raises(UserError, match="No such file"):
        read(folder)
    (tmp_path / "bare.csv").write_text("emotion,pixels\n0," + " ".join(["7"] * 2304) + "\n")
    with pytest.raises(UserError, match="column Usage"):
        read(tmp_path / "bare.csv")


def test_the_label_is_the_correct_emotion_with_most_votes(folder):
    file = folder / "fer2013new.csv"
    header, first, *lines = file.read_text().splitlines()
    happiness, sadness = header.split(",").index("happiness"), header.split(",").index("sadness")
    cells = [
        cell if i < 2 else {happiness: "4", sadness: "6"}.get(i, "0")
        for i, cell in enumerate(first.split(","))
    ]
    file.write_text("\n".join([header, ",".join(cells), *lines]) + "\n")
    train = read(folder, mode="multi").splits["train"]
    assert train.labels[0] == 4 and train.targets[0].tolist() == [0, 0, 0, 0.5, 0.5, 0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_its_run_is_told_with_eight_classes(fer, folder, mode):
    data = ["data=ferplus", f"data.path={folder}", f"data.mode={mode}"]
    assert fer("train", *data, *TINY, "run=r")[0] == 0
    contents = torch.load("r/best.pt", weights_only=True)
    assert contents["classes"][-1] == "contempt" and contents["validation"]["logits"].shape[1] == 8
    if mode == "multi":
        code, out, err = fer("report", "run=r")
        assert code == 0 and "contempt" in out, err
        code, out, err = fer("evaluate", "ckpt=r", "data.score=original")
        assert code == 0 and "21 faces of validation" in out, err
        assert (
            fer(
                "predict",
                "ckpt=r",
                "data=fer2013",
                f"data.path={folder}",
                "split=public",
                "probs=p.csv",
            )[0]
            == 0
        )
        assert (
            pd.read_csv("p.csv").shape == (21, 8)
            and pd.read_csv("submission.csv")["label"].max() < 7
        )
        assert fer("explain", "ckpt=r", "target=contempt")[0] == 0
        code, _, err = fer("train", *data, *TINY, "train.label_smoothing=0.1")
        assert code == 2 and "data.mode=multi: not possible with" in err


def test_eight_classes_are_evaluated_on_seven_and_votes_are_found_from_any_folder(
    fer, folder, monkeypatch
):
    monkeypatch.chdir(folder)
    assert (
        fer("train", "data=ferplus", "data.path=.", "data.votes=fer2013new.csv", *TINY, "run=r")[0]
        == 0
    )
    (folder / "else").mkdir()
    monkeypatch.chdir(folder / "else")
    code, _, err = fer("evaluate", "ckpt=../r")
    assert code == 0, err
    seven = ["ckpt=../r", "data=fer2013", f"data.path={folder}"]
    predicted = fer("predict", *seven, "split=validation")[1].split("accuracy ")[1][:6]
    assert f"  {predicted}  " in fer("evaluate", *seven)[1]


def test_the_draws_of_mode_probability_follow_the_votes_and_a_resume_repeats_them(fer, folder):
    data = ["data=ferplus", f"data.path={folder}", "data.mode=probability", "schedule=constant"]
    fer("train", *data, *TINY, "run=whole", "train.epochs=3")
    fer("train", *data, *TINY, "run=torn")
    assert fer("train", "resume=torn", "train.epochs=3")[0] == 0
    one, other = (
        torch.load(f"{run}/last.pt", weights_only=True)["model"] for run in ("whole", "torn")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_losses_of_the_modes():
    logits, targets = torch.randn(5, 8), torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0]] * 5)
    multi = Objective("multi")
    expected = -torch.log(logits.softmax(1)[:, :2].max(1).values / 2).mean()
    assert multi.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert multi.right(torch.eye(8)[:3], targets[:3]).tolist() == [True, True, False]
    drawn = Objective("probability").draw(targets.repeat(400, 1), torch.Generator().manual_seed(0))
    assert (drawn.sum(1) == 1).all() and drawn[:, 0].mean().item() == pytest.approx(0.5, abs=0.05)
    assert Objective("crossentropy").draw(targets) is targets


def test_training_starts_from_a_checkpoint_with_a_new_last_layer_for_other_classes(fer, folder):
    assert fer("train", f"data.path={folder}", *TINY, "run=seven")[0] == 0
    start = ["start=seven/best.pt", "optim=adam", "optim.lr=1e-12", "train.epochs=1", "run=eight"]
    code, out, err = fer("train", "data=ferplus", f"data.path={folder}", *TINY[:-2], *start)
    assert code == 0 and "starts from seven/best.pt, with a new last layer for the" in out, err

    def weights(run):
        return torch.load(f"{run}/best.pt", weights_only=True)["model"]

    before, after = weights("seven"), weights("eight")
    assert torch.allclose(before["head.dense1.weight"], after["head.dense1.weight"])
    assert after["head.logits.weight"].shape == (8, 4)
    same = [*start[:-1], "run=same"]
    code, out, err = fer("train", f"data.path={folder}", *TINY[:-2], *same)
    assert code == 0 and "starts from seven/best.pt\n" in out, err
    assert torch.allclose(before["head.logits.weight"], weights("same")["head.logits.weight"])
    code, _, err = fer(
        "train", f"data.path={folder}", *TINY, "model.head=[5]", "start=seven/best.pt", "run=r"
    )
    assert code == 2 and "start=seven/best.pt: its weights do not fit this model" in err


@pytest.mark.parametrize("name", ["my votes.csv", "a,b.csv", "[x].csv", "[1], a=b (2).csv"])
def test_the_path_of_the_votes_may_hold_anything(fer, folder, name):
    (folder / "fer2013new.csv").rename(folder / name)
    places = [f"data.path={folder}", f"data.votes={folder}/{name}"]
    code, _, err = fer("train", "data=ferplus", *places, *TINY, "run=r")
    assert code == 0, err
    for command in ("evaluate", "predict"):
        code, _, err = fer(command, "ckpt=r", *places, "split=validation")
        assert code == 0, err
