"""scripts/reproduce: its trainings on drawn faces, the tables and headings that it writes."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from fer import UserError, cli, config

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
TINY = ["data=demo", "data.images=70", "train.epochs=2", "device=cpu"]
PAGES = ["README.md", "docs/systems.md"]


@pytest.fixture(scope="module")
def reproduce():
    path = ROOT / "scripts" / "reproduce.py"
    spec = importlib.util.spec_from_file_location("reproduce", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """A copy of the files that scripts/reproduce writes."""
    root = tmp_path / "checkout"
    for name in PAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "configs" / "experiment", root / "configs" / "experiment")
    return root


def contents(root):
    files = [root / name for name in PAGES]
    files += sorted((root / "configs" / "experiment").glob("*.yaml"))
    return {str(file.relative_to(root)): file.read_text() for file in files}


@pytest.fixture(scope="module")
def trained(reproduce, tmp_path_factory):
    """The folder of two finished trainings of compact_dnn on drawn faces."""
    runs = tmp_path_factory.mktemp("runs")
    row = reproduce.BY_NAME["compact_dnn"]
    words = [*TINY, "model.head=[4]", "train.batch_size=32"]
    trainings = [
        reproduce.Training(row, seed, runs / f"compact_dnn_{seed}", words) for seed in (0, 1)
    ]
    for training in trainings:
        assert cli.main(training.command()[3:]) == 0  # without "python -m fer"
        assert training.done
    return runs


# What stands in the pages


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_what_docs_systems_says_of_it(reproduce, name):
    found = reproduce.records((ROOT / "docs" / "systems.md").read_text())
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    lines = reproduce.heading(found[name], reproduce.BY_NAME[name].seeds)
    assert text.startswith("# @package _global_\n# ")
    assert text.count("# Command: ") == 1
    assert lines in text.partition("defaults:")[0]


def test_the_pages_are_as_scripts_reproduce_writes_them(reproduce, copy):
    before = contents(copy)
    found = reproduce.records(before["docs/systems.md"])
    assert list(found) == [row.name for row in reproduce.ROWS]
    assert {row.trained for row in reproduce.ROWS} == set(EXPERIMENTS) == set(reproduce.ORDER)
    reproduce.write_pages(found, copy)
    assert contents(copy) == before


def test_a_row_that_evaluates_other_trainings_names_their_command(reproduce):
    for row in reproduce.ROWS:
        assert row.training_words() == reproduce.BY_NAME[row.trained].training_words(), row.name


def test_the_parameters_in_the_readme_are_those_of_the_networks(reproduce, compose):
    for row in reproduce.ROWS:
        if row.title and not row.of:
            cfg = config.check("train", compose("train", row.experiment))
            with torch.device("meta"):
                model = config.build("model", cfg.model)
            count = sum(p.numel() for p in model.parameters())
            assert row.parameters.startswith(f"{count:,}"), row.name


# Figures of runs


def test_figures_come_from_the_run_folders(reproduce, trained):
    row = reproduce.BY_NAME["compact_dnn"]
    folders = [trained / "compact_dnn_0", trained / "compact_dnn_1"]
    record = reproduce.measured(row, folders, ["x=1"])
    best = [pd.read_csv(folder / "history.csv")["val_accuracy"].max() for folder in folders]
    mean, deviation = pd.Series(best).mean(), pd.Series(best).std()
    assert record["PublicTest"] == f"{mean:.4f} ± {deviation:.4f}"
    assert record["command"] == "experiment=compact_dnn x=1"
    assert (record["seeds"], record["epochs"]) == ("0, 1", "2")
    assert "torch" in record["machine"] and record["format"] in ("fp32", "bf16")
    one = reproduce.measured(row, folders[:1], [])
    assert one["PublicTest"] == f"{best[0]:.4f}"
    assert 0 <= float(one["with flips"]) <= 1 and 0 <= float(one["without copies"]) <= 1


def test_an_ensemble_is_the_mean_of_the_networks(reproduce, trained):
    row = reproduce.Row("pair", of="compact_dnn", ensemble=True)
    folders = [trained / "compact_dnn_0", trained / "compact_dnn_1"]
    record = reproduce.measured(row, folders, [])
    runs = [reproduce.Run(folder) for folder in folders]
    mean = sum(run.probabilities() for run in runs) / 2
    right = (mean.argmax(1) == runs[0].labels).mean()
    assert record["PublicTest"] == f"{right:.4f}"


def test_new_figures_go_into_the_pages_and_others_stay(reproduce, trained, copy):
    before = contents(copy)
    row = reproduce.BY_NAME["compact_dnn"]
    record = reproduce.measured(row, [trained / "compact_dnn_0", trained / "compact_dnn_1"], [])
    found = reproduce.records(before["docs/systems.md"])
    reproduce.write_pages(found | {"compact_dnn": record}, copy)
    after = contents(copy)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"README.md", "docs/systems.md", "configs/experiment/compact_dnn.yaml"}
    text = after["configs/experiment/compact_dnn.yaml"]
    assert "# Command: fer train -m experiment=compact_dnn seed=0,1\n" in text
    assert f"# Result:  PublicTest {record['PublicTest']} (2 seeds), 1 minute on " in text
    line = next(line for line in after["README.md"].splitlines() if line.startswith("| D's DNN"))
    assert record["PublicTest"] in line
    assert reproduce.records(after["docs/systems.md"])["compact_cnn"] == found["compact_cnn"]


# The command


def test_rows_are_trained_measured_and_kept(reproduce, copy, tmp_path, monkeypatch, capfd):
    """On a CPU each is timed first; a second start trains nothing; words that change the recipe
    keep the figures out of the pages.
    """
    monkeypatch.chdir(tmp_path)
    before = contents(copy)
    command = ["compact_dnn", *TINY, "--runs", "runs", "model.head=[4]", "data.limit=35"]
    assert reproduce.main(command, copy) == 0
    out = capfd.readouterr().out
    assert "runs/compact_dnn_0: about " in out
    assert "PublicTest 0." in out and "not written into the pages: data=demo" in out
    history = tmp_path / "runs" / "compact_dnn_0" / "history.csv"
    written = history.stat().st_mtime_ns
    assert reproduce.main(command, copy) == 0
    assert history.stat().st_mtime_ns == written
    assert contents(copy) == before


def test_figures_of_a_trial_do_not_get_into_the_pages(reproduce, trained, copy, capsys):
    """A later start without the trial's words finds its folders, but does not take them."""
    before = contents(copy)
    with pytest.raises(UserError, match=r"compact_dnn_0: was trained with other settings \(train"):
        reproduce.main(["compact_dnn", "--runs", str(trained)], copy)
    assert contents(copy) == before and not capsys.readouterr().out


def test_every_row_can_be_tried_on_drawn_faces(reproduce, tmp_path):
    for row in reproduce.ROWS:
        training = reproduce.Training(row, 0, tmp_path, ["data=demo", "data.images=70"])
        assert reproduce.settings_of(training.all_words()).data["images"] == 70


def test_drawn_faces_are_counted_for_the_estimate(reproduce):
    settings = reproduce.settings_of(["data=demo", "data.images=70"])
    assert reproduce.training_faces(settings.data) == 70
    assert reproduce.training_faces(settings.data | {"limit": 35}) == 35
    assert reproduce.training_faces(reproduce.settings_of([]).data) == 28_709


def test_the_data_may_be_named_as_a_key_too(reproduce, copy, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(reproduce, "train_all", lambda trainings, *_: started.extend(trainings))
    reproduce.main(["compact_dnn", "--runs", str(tmp_path), "data.path=elsewhere"], copy)
    assert started[0].words == ["data.path=elsewhere"]
    reproduce.main(["compact_dnn", "--runs", str(tmp_path), "--data", "there"], copy)
    assert started[1].words == ["data.path=there"]


def test_what_does_not_fit_into_the_time_is_left_out(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "estimate", lambda training: 3600)
    row = reproduce.BY_NAME["compact_dnn"]
    training = reproduce.Training(row, 0, tmp_path / "x", TINY)
    assert reproduce.train_all([training], 1, time.monotonic() + 120, on_cpu=True) == []
    assert "about 60 minutes here; left out, 2 minutes are left" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_training_is_stopped_when_the_time_is_up_and_resumes(reproduce, tmp_path, capsys):
    row = reproduce.BY_NAME["compact_dnn"]
    words = ["data=demo", "data.images=70", "train.epochs=100000", "device=cpu", "model.head=[4]"]
    folder = tmp_path / "x"
    training = reproduce.Training(row, 0, folder, words)
    process = reproduce.start(training, 1)
    try:
        for _ in range(600):
            if (folder / "last.pt").is_file():
                break
            time.sleep(0.1)
        reproduce.stop({training: process})
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped, and saved; the same command resumes it" in capsys.readouterr().out
    assert training.command()[-1] == f"resume={folder}" and not training.done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kill"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)],
    ids=["ctrl-c", "sigterm"],
)
def test_stopping_it_lets_its_trainings_save(tmp_path, number, kill):
    """A terminal sends Ctrl-C to all processes, `timeout` and schedulers only to the first."""
    words = ["data=demo", "data.images=70", "train.epochs=100000", "device=cpu", "model.head=[4]"]
    script = ROOT / "scripts" / "reproduce.py"
    command = [sys.executable, script, "compact_dnn", *words, "--runs", tmp_path]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = tmp_path / "compact_dnn_0"
    for _ in range(600):
        if (folder / "last.pt").is_file():
            break
        time.sleep(0.1)
    kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert f"{folder}: stopped, and saved; the same command resumes it\n" in out
    assert err == "stopped; the same command resumes it\n"
    log = (tmp_path / "compact_dnn_0.log").read_text()
    assert "stopped, and everything so far is saved" in log and "Traceback" not in log


def test_only_what_is_left_of_a_training_is_counted(reproduce, tmp_path):
    row = reproduce.BY_NAME["compact_dnn"]
    training = reproduce.Training(row, 0, tmp_path, ["train.epochs=5"])
    assert reproduce.epochs_left(training) == 5
    (tmp_path / "history.csv").write_text("epoch,val_accuracy\n1,0.2\n2,0.3\n")
    assert reproduce.epochs_left(training) == 3


def test_a_training_that_ends_as_the_time_is_up_is_done(reproduce, trained, capsys):
    training = reproduce.Training(reproduce.BY_NAME["compact_dnn"], 0, trained / "compact_dnn_0")
    reproduce.stop({training: subprocess.Popen([sys.executable, "-c", ""])})
    assert capsys.readouterr().out == f"{training.folder}: done\n"


@pytest.mark.slow
def test_a_training_that_fails_is_told_and_others_go_on(reproduce, tmp_path):
    row = reproduce.BY_NAME["compact_dnn"]
    wrong = reproduce.Training(row, 0, tmp_path / "a", [*TINY, "model.haed=[4]"])
    right = reproduce.Training(row, 0, tmp_path / "b", [*TINY, "model.head=[4]"])
    failures = reproduce.train_all([wrong, right], 2, time.monotonic() + 100, on_cpu=False)
    assert len(failures) == 1
    assert "a: ended with code 2: fer: model.haed: no such key" in failures[0]
    assert right.done and not wrong.done


def test_rows_without_a_figure_come_first(reproduce):
    found = {"compact_cnn": {"PublicTest": "0.64"}, "leaky_bn": {"PublicTest": "not run"}}
    names = ["compact_cnn", "leaky_bn", "vgg16_staged_ensemble", "vgg16_staged_tencrop"]
    order = [(row.name, seed) for row, seed in reproduce.planned(names, None, found)]
    staged = [("vgg16_staged", seed) for seed in (0, 1, 2)]
    assert order == [("leaky_bn", 0), *staged, ("compact_cnn", 0)]


def test_a_figure_of_several_seeds_is_measured_again_with_all_of_them(reproduce):
    found = {"compact_cnn": {"PublicTest": "0.64 ± 0.01", "seeds": "1, 2"}}
    order = [(row.name, seed) for row, seed in reproduce.planned(["compact_cnn"], None, found)]
    assert order == [("compact_cnn", 0), ("compact_cnn", 1), ("compact_cnn", 2)]
    order = [(row.name, seed) for row, seed in reproduce.planned(["compact_cnn"], "5", found)]
    assert order == [("compact_cnn", 5)]


@pytest.mark.slow
def test_submissions_are_written_for_a_competition(
    reproduce, trained, fer2013_csv, tmp_path, monkeypatch
):
    _, *rows = fer2013_csv.read_text().splitlines()
    place = tmp_path / "competition"
    place.mkdir()
    pairs = [row.split(",")[:2] for row in rows]
    lines = ["emotion,pixels", *map(",".join, pairs)]
    (place / "train.csv").write_text("\n".join(lines) + "\n")
    (place / "test.csv").write_text("\n".join(["pixels", *(p for _, p in pairs[:9])]) + "\n")
    crops = reproduce.Row("crops", of="compact_dnn", tta="tencrop")
    monkeypatch.setitem(reproduce.BY_NAME, "crops", crops)
    networks = [trained / "compact_dnn_0", trained / "compact_dnn_1"]
    folders = {"compact_dnn": networks, "crops": networks[:1]}
    reproduce.write_submissions(str(place), folders, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["compact_dnn_0.csv", "compact_dnn_1.csv", "crops_0.csv"]
    assert len(pd.read_csv(tmp_path / "out" / files[0])) == 9
    with pytest.raises(UserError, match="--private /nowhere"):
        reproduce.write_submissions("/nowhere", folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["compact"], "compact: no such system"),
        (["--seeds", "a"], "whole numbers"),
        (["--jobs", "0"], "1 or more"),
        (["--minutes", "-1"], "more than 0"),
        (["--private", "/nowhere"], "--private /nowhere: no such folder"),
    ],
)
def test_wrong_arguments_are_refused(reproduce, given, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.arguments(given)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ferplus_vgg13", "vgg16_staged", "best_single"])
def test_recipes_with_a_warmup_and_stages_can_be_timed(reproduce, compose, name):
    trial = reproduce.trial_words(reproduce.BY_NAME[name].training_words())
    checked = config.check("train", compose("train", *trial))
    assert (checked.data["limit"], checked.train.epochs) == (64, 2)
