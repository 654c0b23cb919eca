"""Accuracy, confusion, precision/recall/F1 and calibration: tensors in, numbers out, as
scikit-learn counts them.

What a training asks every epoch is counted here, on its device; reports and tests come from
scikit-learn and scipy.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer import CLASSES


def confusion(predicted: Tensor, labels: Tensor, classes: int = len(CLASSES)) -> Tensor:
    """Counts, int64 C×C: rows truth, columns prediction. `predicted` and `labels` hold N class
    numbers each.
    """
    cell = labels.long() * classes + predicted.long()
    # Not bincount: on CUDA it reads min and max back to the host, minlength or no. Integer adds are
    # exact in any order.
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=cell.device)
    return counts.scatter_add_(0, cell, torch.ones_like(cell)).view(classes, classes)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole of counts; 0 where the whole, and so the part, is 0."""
    return part / np.maximum(whole, 1)


def accuracy(confusion: Tensor) -> float:
    """The share of right answers; 0 of nothing."""
    return confusion.trace().item() / max(1, confusion.sum().item())


def per_class(confusion: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1 (float64, 0 where undefined) and support (int64), C each."""
    counts = confusion.cpu().numpy()
    right, predicted, support = counts.diagonal(), counts.sum(0), counts.sum(1)
    return (
        share(right, predicted),
        share(right, support),
        share(2 * right, predicted + support),
        support,
    )


def macro_f1(confusion: Tensor) -> float:
    """scikit-learn's f1_score(average="macro", zero_division=0): the mean F1 of the classes that
    occur in truth or in prediction. "macro avg" in the report is over all classes, so it is lower
    when one never occurs.
    """
    occurs = (confusion.sum(0) + confusion.sum(1) > 0).cpu().numpy()
    return float(per_class(confusion)[2].mean(where=occurs)) if occurs.any() else 0.0


def report_text(confusion: Tensor, classes: Sequence[str]) -> str:
    """classification_report as text, with four digits and whole counts."""
    text = classification_report(confusion, classes, output_dict=False)
    return re.sub(r"(\d+)\.0$", r"  \1", text, flags=re.MULTILINE)


def classification_report(
    confusion: Tensor, classes: Sequence[str], output_dict: bool = True
) -> Any:
    """What scikit-learn's classification_report(zero_division=0) gives for all `classes`."""
    import sklearn.metrics  # takes a second

    # Every cell is a face that weighs its count. One more comes and goes: scikit-learn refuses to
    # score nothing.
    truth, predicted = np.append(
        np.indices(confusion.shape).reshape(2, -1), [[0, 0], [1, 1]], axis=1
    )
    asked = {
        "labels": range(len(classes)),
        "target_names": classes,
        "digits": 4,
        "zero_division": 0,
    }
    weights = np.append(confusion.cpu(), [1, -1])
    return sklearn.metrics.classification_report(
        truth, predicted, sample_weight=weights, output_dict=output_dict, **asked
    )


def top_confusions(
    confusion: Tensor, classes: Sequence[str], n: int, least: int = 1
) -> list[tuple[str, str, float, int]]:
    """The `n` likeliest mistakes, (true, predicted, share of the true class, count), by share, then
    count, of classes that `least` faces or more belong to.
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
    """Mean confidence, accuracy (0 to 1, 0 of an empty bin) and count over `bins` equal bins (low,
    high] of the confidence. `probabilities` N×C, each row sums to 1; `labels` N.
    """
    confidence, predicted = probabilities.cpu().double().max(1)
    place = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    right = (predicted == labels.cpu()).double()
    sums = [
        np.bincount(place, values, bins)
        for values in (confidence, right, torch.ones_like(confidence))
    ]
    confidences, rights, counts = np.array(sums, dtype=np.float64)
    return share(confidences, counts), share(rights, counts), counts


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017), 0 to 1, of nothing 0; see reliability."""
    confidence, accuracy, counts = reliability(probabilities, labels, bins)
    return float((counts * abs(confidence - accuracy)).sum() / max(1, counts.sum()))


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T, from 0.05 to 20, for which logits / T (N×C) have the least cross-entropy with `labels`
    (Guo et al. 2017); a convex function of 1 / T, so bisection on its slope finds it.
    """
    logits, low, high = logits.cpu().double(), 0.05, 20.0
    own = logits.gather(1, labels.cpu()[:, None])[:, 0]
    for _ in range(50):  # of 1 / T
        middle = (low * high) ** 0.5
        slope = ((logits * middle).softmax(1) * logits).sum(1).sub(own).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / low


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927)."""
    z, share = 1.959963985, right / count
    middle = share + z**2 / (2 * count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test (1947): that of two networks one wins `won` faces that
    the other has wrong, and loses `lost`, though both are as good.
    """
    from scipy.stats import binomtest  # takes a second to import

    return binomtest(won, won + lost).pvalue if won + lost else 1.0
