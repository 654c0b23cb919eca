"""Accuracy, confusion matrix, precision, recall, F1, calibration, intervals and tests.

What training needs each epoch is computed on its device; scikit-learn and scipy do the rest.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer import CLASSES


def confusion(predicted: Tensor, labels: Tensor, classes: int = len(CLASSES)) -> Tensor:
    """Counts, int64 C×C: rows are true classes, columns predictions. predicted, labels: N class
    numbers each.
    """
    cell = labels.long() * classes + predicted.long()
    # Not bincount: on CUDA it reads minimum and maximum back to the host, even with minlength.
    # Integer addition is exact in any order.
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=cell.device)
    return counts.scatter_add_(0, cell, torch.ones_like(cell)).view(classes, classes)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole for counts; 0 where both are 0."""
    return part / np.maximum(whole, 1)


def accuracy(confusion: Tensor) -> float:
    """The fraction of correct predictions; 0 for an empty matrix."""
    return confusion.trace().item() / max(1, confusion.sum().item())


def per_class(confusion: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1 (float64, 0 where undefined) and support (int64), one per class."""
    counts = confusion.cpu().numpy()
    correct, predicted, support = counts.diagonal(), counts.sum(0), counts.sum(1)
    precision = share(correct, predicted)
    recall = share(correct, support)
    f1 = share(2 * correct, predicted + support)
    return precision, recall, f1, support


def macro_f1(confusion: Tensor) -> float:
    """The mean F1 of the classes that occur as label or prediction, like scikit-learn's
    f1_score(average="macro", zero_division=0). "macro avg" of classification_report averages over
    all classes, so it is lower if a class never occurs.
    """
    occurs = (confusion.sum(0) + confusion.sum(1) > 0).cpu().numpy()
    if not occurs.any():
        return 0.0
    _, _, f1, _ = per_class(confusion)
    return float(f1.mean(where=occurs))


def report_text(confusion: Tensor, classes: Sequence[str]) -> str:
    """classification_report as text, with four digits and integer counts."""
    text = classification_report(confusion, classes, output_dict=False)
    return re.sub(r"(\d+)\.0$", r"  \1", text, flags=re.MULTILINE)


def classification_report(
    confusion: Tensor, classes: Sequence[str], output_dict: bool = True
) -> Any:
    """scikit-learn's classification_report(zero_division=0) over all `classes`."""
    import sklearn.metrics  # takes a second

    # Each cell of the matrix is one sample, weighted by its count. Two extra samples with weights 1
    # and -1 cancel out; without them scikit-learn refuses an empty matrix.
    cells = np.indices(confusion.shape).reshape(2, -1)
    truth, predicted = np.append(cells, [[0, 0], [1, 1]], axis=1)
    weights = np.append(confusion.cpu(), [1, -1])
    return sklearn.metrics.classification_report(
        truth,
        predicted,
        labels=range(len(classes)),
        target_names=classes,
        sample_weight=weights,
        digits=4,
        output_dict=output_dict,
        zero_division=0,
    )


def top_confusions(
    confusion: Tensor, classes: Sequence[str], n: int, least: int = 1
) -> list[tuple[str, str, float, int]]:
    """The `n` most frequent mistakes, as (true, predicted, share of the true class, count).

    Sorted by share, then by count. least: classes with fewer faces are left out.
    """
    counts = confusion.cpu().numpy()
    support = counts.sum(1)
    shares = share(counts, support[:, None])
    wrong = [(t, p) for t, p in np.argwhere(counts) if t != p and support[t] >= least]
    wrong.sort(key=lambda cell: (-shares[*cell], -counts[*cell]))
    return [(classes[t], classes[p], float(shares[t, p]), int(counts[t, p])) for t, p in wrong[:n]]


def reliability(
    probabilities: Tensor, labels: Tensor, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and number of faces in each bin of the confidence.

    The `bins` bins are of equal width, open on the left; an empty bin has confidence and accuracy
    0. probabilities: N×C, each row sums to 1. labels: N.
    """
    confidence, predicted = probabilities.cpu().double().max(1)
    bin_of_face = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    correct = (predicted == labels.cpu()).double()
    counts = np.bincount(bin_of_face, torch.ones_like(confidence), bins)
    mean_confidence = share(np.bincount(bin_of_face, confidence, bins), counts)
    accuracy = share(np.bincount(bin_of_face, correct, bins), counts)
    return mean_confidence, accuracy, counts


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017), from 0 to 1; 0 without faces."""
    confidence, accuracy, counts = reliability(probabilities, labels, bins)
    return float((counts * abs(confidence - accuracy)).sum() / max(1, counts.sum()))


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T from 0.05 to 20 that minimizes the cross-entropy of logits / T (Guo et al.
    2017). logits: N×C. labels: N.

    The cross-entropy is convex in 1 / T, so bisection on its derivative finds the minimum.
    """
    logits = logits.cpu().double()
    logits_of_labels = logits.gather(1, labels.cpu()[:, None])[:, 0]
    low, high = 0.05, 20.0  # of 1 / T
    for _ in range(50):
        middle = (low * high) ** 0.5
        expected_logits = ((logits * middle).softmax(1) * logits).sum(1)
        if expected_logits.sub(logits_of_labels).mean() > 0:
            high = middle
        else:
            low = middle
    return 1 / low


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of right / count, by Wilson's score (1927)."""
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(won: int, lost: int) -> float:
    """The two-sided exact p of McNemar's test (1947) for two networks.

    won: faces that only the first classifies correctly. lost: that only the second does.
    """
    from scipy.stats import binomtest  # takes a second to import

    return binomtest(won, won + lost).pvalue if won + lost else 1.0
