"""What training minimizes: targets, loss, and which answers count as right."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Objective:
    """Cross-entropy against class probabilities.

    mode: what FER+ does with its votes (Barsoum et al. 2016). `majority`, `crossentropy`: the
    targets as they are. `probability`: one class for each face, drawn anew each time by the votes.
    `multi`: any of several classes is right.
    class_weights: float C, how much a face of each class counts; None: all alike.
    """

    def __init__(
        self,
        mode: str = "majority",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ):
        self.mode = mode
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def draw(self, targets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The targets of this step, float N×C, of the faces' own, float N×C."""
        if self.mode != "probability":
            return targets
        # The largest of p / Exponential(1) is class i with probability p_i; torch.multinomial makes
        # a GPU wait.
        waits = torch.empty_like(targets).exponential_(generator=generator)
        return F.one_hot((targets / waits).argmax(1), targets.shape[1]).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; in mode `multi` that of the likeliest of the right classes."""
        if self.mode == "multi":
            return -(logits.log_softmax(1) + targets.log()).amax(1).mean()
        return F.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing
        )

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Bool N: is the likeliest class the target's? In mode `multi`, one of the right ones?"""
        predicted = logits.argmax(1)
        if self.mode == "multi":
            return targets.gather(1, predicted[:, None])[:, 0] > 0
        return predicted == targets.argmax(1)


def balanced_weights(targets: Tensor) -> Tensor:
    """A weight per class, N / (classes × faces of the class) as scikit-learn's `balanced`, from
    one-hot N×C; 0 where a class has no face.
    """
    counts = targets.sum(0)
    return torch.where(counts > 0, len(targets) / (targets.shape[1] * counts.clamp(min=1)), 0.0)
