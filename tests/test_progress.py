"""What fer train prints fits a terminal of 80 columns."""

from contextlib import redirect_stderr

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fer import progress
from fer.models.convnet import ConvNet
from fer.progress import Progress, duration, epoch_line, seconds_left, warn_if_long
from fer.text import counted, percent, with_prefix
from fer.training.clock import Throughput


class Terminal:
    """A fake terminal that records everything written to it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True

    @property
    def lines(self):
        """The content of each line, one entry per redraw."""
        return self.text.replace("\n", "\r").split("\r")


@pytest.fixture
def terminal():
    return Terminal()


def test_the_bar_fits_80_columns_and_is_wide_enough_to_be_read(terminal):
    with redirect_stderr(terminal), Progress(99, 120, 28_709, 0, shown=True) as bar:
        bar.mininterval = 0
        for _ in range(224):
            bar.note(128, lambda: (1.7923, 0.3051))
    drawn = [line for line in terminal.lines if "loss" in line]
    assert drawn and max(map(len, drawn)) < 80
    cells = [line.split("|")[1] for line in drawn]
    assert min(map(len, cells)) >= 8
    assert (
        "epoch 100/120" in drawn[-1]
        and "loss 1.792 acc 0.305" in drawn[-1]
        and " left" in drawn[-1]
    )


def test_the_bar_predicts_the_end_of_training_not_of_the_epoch(terminal):
    with (
        redirect_stderr(terminal),
        Progress(2, 10, 1000, 200, shown=True) as bar,
    ):  # 200 faces before a resume
        bar.n = 600
        assert (
            bar.status(1, 0.5, elapsed=4.0) == "loss 1.000 acc 0.500 100/s, about 74 s left"
        )  # 4 + 7 × 10
    with redirect_stderr(terminal), Progress(2, 10, 1000, 200, shown=True, epoch_seconds=60) as bar:
        bar.n = 600
        assert "about 7 min left" in bar.status(1, 0.5, elapsed=4.0)  # 4 + 7 × 60
    assert seconds_left(0, 100, 1000, 0, None) == 0


def test_what_is_printed_after_an_interrupted_epoch_has_a_line_of_its_own(terminal):
    with (
        pytest.raises(KeyboardInterrupt),
        redirect_stderr(terminal),
        Progress(0, 3, 1000, 0, shown=True) as bar,
    ):
        bar.mininterval = 0
        bar.note(128, lambda: (1.0, 0.5))
        raise KeyboardInterrupt
    assert not terminal.lines[-1].strip()
    assert terminal.lines[-2].isspace()  # the bar was wiped out


def test_without_a_terminal_there_is_no_bar(capsys):
    with Progress(0, 3, 1000, 0, shown=True) as bar:
        bar.note(128, lambda: (1.0, 0.5))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("epochs", [5, 1000])
@pytest.mark.parametrize("seconds", [0.4, 80, 4000, 100_000])
def test_the_line_of_an_epoch_fits_80_columns(better, epochs, seconds):
    row = {
        "epoch": epochs,
        "train_loss": 1.23456,
        "train_accuracy": 0.5,
        "val_loss": 1.4,
        "val_accuracy": 0.51234,
    }
    line = epoch_line(row | {"seconds": seconds}, epochs, better)
    assert len(line) <= progress.COLUMNS
    assert (
        f"epoch {epochs}/{epochs}" in line
        and "loss 1.235 acc 0.500, val loss 1.400 acc 0.5123" in line
    )
    assert line.endswith("best") == better


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "3 s"),
        (600, "10 min"),
        (19_000, "5.3 h"),
        (864_000, "10 days"),
        (7e17, "over a year"),
        (float("inf"), "over a year"),
    ],
)
def test_durations_are_rounded_to_readable_words(seconds, words):
    assert duration(seconds) == words


def test_the_warning_of_a_long_training_fits_80_columns(terminal):
    with redirect_stderr(terminal):
        warn_if_long(10**18, 123, torch.device("cpu"))
    assert "over a year (123 images/s on cpu)" in terminal.text and "a CUDA GPU" in terminal.text
    assert max(map(len, terminal.lines)) <= progress.COLUMNS
    terminal.text = ""
    with redirect_stderr(terminal):
        warn_if_long(3000, 1, torch.device("cpu"))
    assert not terminal.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (257.3e12, "257 T"),
        (1.02e12, "1.02 T"),
        (999.6e9, "1 T"),
        (32.1e6, "32.1 M"),
        (1500, "1.5 k"),
        (7, "7 "),
    ],
)
def test_numbers_have_the_prefix_that_keeps_them_short(value, text):
    assert with_prefix(value) == text


@pytest.mark.parametrize("crops", [1, 10])
def test_speed_counts_the_operations_that_torch_counts(crops):
    """A backward pass is taken as two forward passes; torch counts the forward pass."""
    model = ConvNet(features=[4, "pool", 8, "global_pool"], head=[16])
    throughput = Throughput(crops)
    throughput.faces[48], throughput.faces[24] = 3, 5
    throughput.seconds = 2.0
    operations = 0
    for side, faces in throughput.faces.items():
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(faces * crops, 1, side, side))
        operations += 3 * counter.get_total_flops()
    assert throughput.operations_per_second(model) == operations / 2.0
    assert throughput.images_per_second() == 4


def test_numbers_agree_with_their_nouns_and_shares_are_percents():
    assert counted(1, "face") == "1 face"
    assert counted(0, "face") == "0 faces" and counted(1200, "run") == "1,200 runs"
    assert percent(0.634) == "63 %" and percent(0.634, 1) == "63.4 %"
