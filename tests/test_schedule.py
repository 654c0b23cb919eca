"""Curves match torch.optim.lr_scheduler with the same settings, or values worked out by hand."""

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from fer.schedule import AfterPlateau, Constant, Cosine, Knots, OneCycle, Plateau, Step

EPOCHS, STEPS = 12, 5


def torch_rates(make, steps=EPOCHS * STEPS, measure=None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([measure[step]] if measure else []))
    return rates


def our_rates(curve):
    return [curve(step / STEPS, EPOCHS) for step in range(EPOCHS * STEPS)]


def test_constant():
    assert our_rates(Constant()) == [1.0] * EPOCHS * STEPS


def test_step_equals_torch():
    expected = torch_rates(lambda o: theirs.StepLR(o, 4 * STEPS, 0.3))
    assert our_rates(Step(every=4, gamma=0.3)) == pytest.approx(expected)


def test_cosine_equals_torch():
    expected = torch_rates(lambda o: theirs.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.1))
    assert our_rates(Cosine(final=0.1)) == pytest.approx(expected)


def test_cosine_with_warmup_equals_torchs_sequence():
    warm = 2 * STEPS

    def chained(optimizer):
        rise = theirs.LambdaLR(optimizer, lambda step: step / warm)
        fall = theirs.CosineAnnealingLR(optimizer, EPOCHS * STEPS - warm)
        return theirs.SequentialLR(optimizer, [rise, fall], [warm])

    assert our_rates(Cosine(final=0.0, warmup=2)) == pytest.approx(torch_rates(chained), abs=1e-12)


def test_onecycle_equals_torch():
    total = (
        EPOCHS * STEPS + 1
    )  # torch counts to the last step, we count to the end of the last epoch

    def cycle(optimizer):
        peak = (total - 1) * 0.3 + 1
        return theirs.OneCycleLR(
            optimizer,
            1.0,
            total,
            pct_start=peak / total,
            div_factor=25,
            final_div_factor=1e6,
            cycle_momentum=False,
        )

    expected = torch_rates(cycle)
    assert our_rates(OneCycle(rise=0.3, start=0.04, final=4e-8)) == pytest.approx(
        expected, abs=1e-6
    )


def test_plateau_equals_torch_and_needs_no_memory():
    accuracies = [0.2, 0.3, 0.3, 0.29, 0.35, 0.35, 0.34, 0.36, 0.1, 0.1, 0.1, 0.36]
    curve = Plateau(factor=0.5, patience=1, threshold=0.0, final=0.1)
    expected = torch_rates(
        lambda o: theirs.ReduceLROnPlateau(
            o, "max", 0.5, 1, threshold=0.0, threshold_mode="abs", min_lr=0.1
        ),
        steps=len(accuracies),
        measure=accuracies,
    )
    ours = [curve(epoch, 12, accuracies[:epoch]) for epoch in range(len(accuracies))]
    assert ours == pytest.approx(expected)
    assert min(ours) < 1


def test_knots_are_joined_by_lines_or_by_steps():
    points = {"epochs": [1, 3, 5], "values": [0.2, 1, 0]}
    lines, steps = Knots(**points), Knots(**points, shape="step")
    assert [lines(epoch, 9) for epoch in (0, 1, 2, 3, 4.5, 5, 8)] == pytest.approx(
        [0.2, 0.2, 0.6, 1, 0.25, 0, 0]
    )
    assert [steps(epoch, 9) for epoch in (0, 1, 2.9, 3, 4.9, 5, 8)] == [0.2, 0.2, 0.2, 1, 1, 0, 0]


def test_after_a_plateau_the_value_changes_once_and_stays():
    accuracies = [0.2, 0.3, 0.3, 0.25, 0.3, 0.5, 0.6]
    curve = AfterPlateau(before=0.1, after=0.9, patience=2)
    values = [curve(epoch, 9, accuracies[:epoch]) for epoch in range(8)]
    assert values == [0.1] * 5 + [0.9] * 3


@pytest.mark.parametrize(
    "curve", [Constant(warmup=3), Step(every=2, gamma=0.5, warmup=3), Cosine(final=0, warmup=3)]
)
def test_warmup_rises_linearly_to_the_curve(curve):
    at_end = curve(3, EPOCHS)
    assert [curve(t, EPOCHS) for t in (0, 1.5, 3)] == pytest.approx([0, at_end / 2, at_end])
