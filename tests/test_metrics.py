"""All metrics match scikit-learn, on random and on degenerate predictions."""

import re

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from sklearn.calibration import calibration_curve

from fer import CLASSES, metrics

C = len(CLASSES)


def random(n, seed, truth=range(C), guesses=range(C), right=0.5):
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(truth), n)
    return np.where(rng.random(n) < right, labels, rng.choice(list(guesses), n)), labels


CASES = {
    "random": random(1000, 0),
    "few": random(9, 1),
    "absent from truth": random(200, 2, truth=(0, 2, 3, 4, 5, 6)),
    "never predicted": random(200, 3, guesses=(0, 2, 3), right=0),
    "absent from both": random(200, 4, truth=(0, 2, 3), guesses=(2, 3, 4)),
    "one class": (np.full(20, 3), np.full(20, 3)),
    "one class predicted": (np.full(50, 6), random(50, 5)[1]),
    "all wrong": (np.full(20, 1), np.full(20, 2)),
    "one face": (np.array([0]), np.array([0])),
} | {f"random {seed}": random(30, seed) for seed in range(10, 40)}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    predicted, labels = request.param
    return predicted, labels, metrics.confusion(torch.tensor(predicted), torch.tensor(labels))


def test_confusion(case):
    predicted, labels, matrix = case
    assert matrix.dtype == torch.int64
    np.testing.assert_array_equal(
        matrix, reference.confusion_matrix(labels, predicted, labels=range(C))
    )


def test_confusion_takes_small_integers_and_other_class_counts():
    matrix = metrics.confusion(
        torch.tensor([200, 3]), torch.tensor([200, 200], dtype=torch.uint8), classes=201
    )
    assert (
        matrix.shape == (201, 201) and matrix[200, 200] == matrix[200, 3] == 1 and matrix.sum() == 2
    )


@pytest.mark.parametrize("label", [-1, C])
def test_a_label_out_of_range_is_an_error(label):
    with pytest.raises(RuntimeError, match="out of bounds"):
        metrics.confusion(torch.tensor([0]), torch.tensor([label]))


def test_accuracy_and_macro_f1(case):
    predicted, labels, matrix = case
    assert metrics.accuracy(matrix) == reference.accuracy_score(labels, predicted)
    expected = reference.f1_score(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(matrix) == pytest.approx(expected, abs=1e-15)


def test_per_class(case):
    predicted, labels, matrix = case
    expected = reference.precision_recall_fscore_support(
        labels, predicted, labels=range(C), zero_division=0
    )
    for ours, theirs in zip(metrics.per_class(matrix), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("names", [CLASSES, [f"a class with a long name, {i}" for i in range(C)]])
def test_reports(case, names):
    predicted, labels, matrix = case
    asked = {"labels": range(C), "target_names": names, "zero_division": 0}
    expected = reference.classification_report(labels, predicted, output_dict=True, **asked)
    ours = metrics.classification_report(matrix, names)
    assert list(ours) == list(expected)
    assert ours.pop("accuracy") == expected.pop("accuracy")
    for name in ours:
        assert ours[name] == pytest.approx(expected[name], abs=1e-15)
        assert all(
            type(value) is float for value in ours[name].values()
        )  # json takes no numpy numbers
    text = reference.classification_report(labels, predicted, digits=4, **asked)
    if not (predicted == labels).any():  # scikit-learn 1.9 then writes the counts as 20.0
        text = re.sub(r"^(.*\d) {2}( *\d+)\.0$", r"\1    \2", text, flags=re.M)
    assert metrics.report_text(matrix, names) == text


# Scikit-learn refuses it; a run without validation faces should not crash a report.
def test_an_empty_matrix_scores_zero():
    none = torch.tensor([], dtype=torch.int64)
    matrix = metrics.confusion(none, none)
    assert matrix.shape == (C, C) and not matrix.any()
    assert (
        metrics.accuracy(matrix)
        == metrics.macro_f1(matrix)
        == metrics.ece(torch.empty(0, C), none)
        == 0
    )
    assert metrics.classification_report(matrix, CLASSES)["weighted avg"] == dict.fromkeys(
        ("precision", "recall", "f1-score", "support"), 0.0
    )
    assert len(metrics.report_text(matrix, CLASSES).splitlines()) == C + 6
    assert metrics.top_confusions(matrix, CLASSES, 5) == []


def test_top_confusions():
    matrix = torch.zeros(C, C, dtype=torch.int64)
    matrix[0, 0], matrix[0, 2], matrix[0, 4] = 6, 3, 1
    matrix[1, 0], matrix[1, 1] = 3, 7
    matrix[3, 5], matrix[3, 3] = 6, 14
    expected = [
        ("happy", "surprise", 0.3, 6),
        ("angry", "fear", 0.3, 3),
        ("disgust", "angry", 0.3, 3),
    ]
    assert metrics.top_confusions(matrix, CLASSES, 3) == expected
    assert len(metrics.top_confusions(matrix, CLASSES, 99)) == 4


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.1, 1, 5])
def test_ece(bins, sharpness):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(
        sharpness * torch.randn(500, C, generator=generator, dtype=torch.float64), 1
    )
    labels = torch.randint(C, (500,), generator=generator)
    confidence, right = probabilities.max(1)[0].numpy(), (probabilities.argmax(1) == labels).numpy()
    rates, means = calibration_curve(right, confidence, n_bins=bins)
    sizes = np.bincount(
        np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence), minlength=bins
    )
    expected = (abs(rates - means) * sizes[sizes > 0]).sum() / 500
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_ece_by_hand():
    sure = torch.eye(C)[[0, 1, 2, 3]]
    assert metrics.ece(sure, torch.tensor([0, 1, 2, 3])) == 0
    assert metrics.ece(sure, torch.tensor([0, 1, 2, 4])) == 0.25
    edge = torch.tensor(
        [[0.5, 0.5, 0], [0.75, 0.25, 0]]
    )  # with 2 bins 0.5 belongs to the lower one
    assert metrics.ece(edge, torch.tensor([0, 1]), bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_temperature_and_reliability_of_known_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 7, generator=generator)
    labels = torch.distributions.Categorical(logits=logits)
    torch.manual_seed(0)
    labels = labels.sample()
    assert metrics.temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    confidence, accuracy, counts = metrics.reliability(logits.softmax(1), labels, 10)
    assert counts.sum() == 4000 and np.abs(confidence - accuracy)[counts > 200].max() < 0.06
