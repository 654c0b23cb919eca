"""fer download, with Kaggle faked: where the files go, and the message for each of its errors."""

import sys

import kagglehub
import pytest
import requests
from kagglehub.exceptions import KaggleApiHTTPError, UnauthenticatedError

from fer.commands.download import COMPETITION


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """Replaces Kaggle. Returns the list of requested handles."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "train.csv").write_text("emotion,pixels\n")
    requested = []
    for name in ("competition_download", "dataset_download"):
        monkeypatch.setattr(
            kagglehub, name, lambda handle: requested.append(handle) or str(tmp_path / "cache")
        )
    return requested


def test_files_are_put_where_train_looks_for_them_and_nothing_is_replaced(fer, kaggle, tmp_path):
    code, out, err = fer("download")
    assert code == 0 and "train.csv in data" in out, err
    assert (tmp_path / "data" / "train.csv").read_text() == "emotion,pixels\n"
    code, _, err = fer("download", "source=msambare/fer2013")
    assert code == 2 and "data/train.csv: already exists" in err
    assert kaggle == [COMPETITION, "msambare/fer2013"]


def test_a_link_to_nowhere_is_not_written_through(fer, kaggle, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").symlink_to(tmp_path / "elsewhere.csv")
    code, _, err = fer("download")
    assert code == 2 and "data/train.csv: already exists" in err
    assert not (tmp_path / "elsewhere.csv").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnauthenticatedError(), "not logged in to Kaggle; create a token"),
        (requests.ConnectionError("x"), "cannot reach Kaggle (ConnectionError)"),
        (
            KaggleApiHTTPError("403 Client Error", response=None),
            "accept the rules at kaggle.com/c/",
        ),
    ],
)
def test_an_error_of_kaggle_is_one_line(fer, monkeypatch, error, words):
    def refuse(handle):
        raise error

    monkeypatch.setattr(kagglehub, "competition_download", refuse)
    code, _, err = fer("download")
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_missing_package_is_named_with_the_command_that_installs_it(fer, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    code, _, err = fer("download")
    assert code == 2 and "pip install 'fer-trainer[download]'" in err
