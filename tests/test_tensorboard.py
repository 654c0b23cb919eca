"""TensorBoard's own reader finds what fer wrote."""

import sys

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer import UserError
from fer.tensorboard import open_writer

TINY = [
    "data=demo",
    "data.images=141",
    "model=dnn",
    "model.head=[4]",
    "device=cpu",
    "train.epochs=2",
]


def test_scalars_schedules_config_and_pictures_are_the_runs_own(fer):
    assert fer("train", *TINY, "tensorboard=true", "run=r")[0] == 0
    assert fer("train", "resume=r", "train.epochs=3")[0] == 0
    assert fer("report", "run=r")[0] == 0
    read = EventAccumulator("r/tensorboard").Reload()
    history = pd.read_csv("r/history.csv")
    columns = {
        "loss/train": "train_loss",
        "accuracy/val": "val_accuracy",
        "schedule/lr": "lr",
        "recall/happy": "val_recall_happy",
    }
    for tag, column in columns.items():
        found = read.Scalars(tag)
        assert [event.step for event in found] == [1, 2, 3]
        assert [event.value for event in found] == pytest.approx(list(history[column]), rel=1e-4)
    assert (
        "report/confusion" in read.Tags()["images"]
        and "config/text_summary" in read.Tags()["tensors"]
    )


def test_a_missing_package_is_refused_before_any_work_with_the_command_that_installs_it(
    fer, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = fer("train", *TINY, "tensorboard=true", "run=r")
    assert (
        code == 2
        and "pip install 'fer-trainer[tensorboard]'" in err
        and not list(tmp_path.iterdir())
    )


def test_a_file_in_place_of_its_folder_is_refused(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match=r"tensorboard: is not a folder, .*; remove it"):
        open_writer(tmp_path)
