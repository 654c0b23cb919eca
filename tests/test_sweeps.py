"""Sweeps with Hydra's real launchers and sweepers, in other processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.errors import MissingConfigException
from processes import Command, wait_for

from fer import launch

TRAIN = [
    "train",
    "-m",
    "data=demo",
    "data.images=70",
    "model=dnn",
    "model.head=[2]",
    "device=cpu",
    "train.epochs=1",
]


def sweep(folder, *args):
    command = Command(folder, *TRAIN, *args)
    return command.wait(120), command.out, command.err


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    code, _, err = sweep(folder, "seed=0,1,2", "hydra.sweep.dir=s", "train.patience=null")
    assert code == 0, err
    return folder / "s"


@pytest.fixture
def s(swept, tmp_path):
    """A copy of a sweep of three runs, s/0 to s/2."""
    shutil.copytree(swept, tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.parametrize(
    "launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
)
def test_jobs_run_in_processes_of_a_launcher_and_their_refusals_come_back(fer, tmp_path, launcher):
    words = [f"hydra/launcher={launcher}", "hydra.sweep.dir=s", "optim=sgd", "optim.lr=-1,0.1,-2"]
    done = subprocess.run(
        [sys.executable, "-m", "fer", *TRAIN, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "fer: job 0 (optim.lr=-1): optim: Invalid learning rate: -1.0",
        "fer: job 2 (optim.lr=-2): optim: Invalid learning rate: -2.0",
    ]
    assert "all of the sweep, side by side:\n  fer report run=s\n" in done.stdout
    assert "[HYDRA]" not in done.stdout
    if launcher == "joblib":
        assert "job 1 (optim.lr=0.1), 2 of 3\n" in done.stdout
    else:
        assert ".submitit/" in done.stdout
    assert (tmp_path / "s" / "1" / "best.pt").is_file()
    code, out, err = fer("report", "run=s")
    assert code == 0 and "validation faces" in out, err


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_no_job_in_another_process(tmp_path):
    words = [*TRAIN, "seed=0,1", "hydra/launcher=joblib", "hydra.sweep.dir=s"]
    with subprocess.Popen(
        [sys.executable, "-m", "fer", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        command.stdout.close()
        assert command.wait() == 0, command.stderr.read()
    assert len([*tmp_path.glob("s/*/best.pt")]) == 2


def test_a_sweep_over_the_choices_that_a_glob_matches_counts_its_jobs(fer):
    code, out, err = fer(*TRAIN, "optim=glob(adam*)", "hydra.sweep.dir=s")
    assert code == 0, err
    assert "job 0 (optim=adam), 1 of 2\n" in out and "job 1 (optim=adamw), 2 of 2\n" in out


@pytest.mark.parametrize(
    ("group", "choice"), [("hydra/sweeper", "optuna"), ("hydra/launcher", "joblib")]
)
def test_a_plugin_that_is_not_installed_names_the_extra(group, choice):
    error = MissingConfigException("not found", f"{group}/{choice}", ["basic"])
    remedy = "a package is missing; pip install 'fer-trainer[sweeps]'"
    assert str(launch.as_user_error(error)) == f"{group}={choice}: {remedy}"


def test_a_storage_that_optuna_cannot_use_with_sqlalchemy_2_names_the_remedy():
    settings = ["hydra/sweeper=optuna", "hydra.sweeper.storage=sqlite:///x.db"]
    found = str(launch.refusal_of_plugin(AssertionError(), settings))
    assert found.startswith("hydra.sweeper.storage=sqlite:///x.db: ")
    assert found.endswith("pip install 'sqlalchemy<2' 'alembic<1.20'")
    assert "correct it" in str(launch.refusal_of_plugin(ValueError("no Slurm"), settings))


@pytest.mark.parametrize("seed", [0, 2])
def test_a_refused_trial_does_not_end_a_search(fer, tmp_path, seed):
    """Seed 0 draws 0.1, -1 and seed 2 -1, -1."""
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    more = [
        "hydra.sweeper.direction=maximize",
        f"hydra.sweeper.sampler.seed={seed}",
        "optim=sgd",
        "optim.lr=choice(-1,0.1)",
        "hydra.sweep.dir=s",
    ]
    code, out, err = fer(*TRAIN, *optuna, *more)
    numbers = [1] if seed == 0 else [0, 1]
    assert code == 2 and [line for line in err.splitlines() if line.startswith("fer: ")] == [
        f"fer: job {number} (optim.lr=-1): optim: Invalid learning rate: -1.0" for number in numbers
    ]
    if seed == 0:
        found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
        assert [*found["best_params"].values()] == [0.1]
        assert "fer report run=s" in out and "best: optim.lr=0.1 (validation accuracy 0" in out
        assert out.startswith("job 0 (optim.lr=0.1), 1 of 2\n") and "[HYDRA]" not in out
    else:
        assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_optuna_gets_the_validation_accuracy_that_it_maximizes(tmp_path):
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    more = [
        "hydra.sweeper.direction=maximize",
        "optim.lr=interval(0.0001,0.1)",
        "hydra.sweep.dir=s",
    ]
    code, _, err = sweep(tmp_path, *optuna, *more)
    assert code == 0, err
    best = [
        pd.read_csv(tmp_path / "s" / str(i) / "history.csv")["val_accuracy"].max() for i in range(3)
    ]
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(max(best), abs=1e-5)


def test_a_sweep_is_resumed_run_by_run(fer, s):
    (s / "1" / "last.pt").write_text("damaged")
    code, out, err = fer("train", "resume=s", "train.epochs=3")
    assert code == 2 and err.count("\n") == 1 and "s/1/last.pt: damaged" in err
    lengths = [len(pd.read_csv(s / str(number) / "history.csv")) for number in range(3)]
    assert lengths == [3, 1, 3]
    (s / "1" / "last.pt").unlink()
    code, out, err = fer("train", "resume=s")
    assert code == 0 and out.count("training is complete, 3 of 3 epochs") == 2, err


@pytest.mark.posix
def test_a_signal_ends_the_resuming_of_a_sweep(s, tmp_path):
    process = Command(tmp_path, "train", "resume=s", "train.epochs=10000")
    wait_for(s / "0" / "history.csv", lines=3)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.err
    assert len(pd.read_csv(s / "0" / "history.csv")) > 1
    assert [len(pd.read_csv(s / name / "history.csv")) for name in "12"] == [1, 1]


def test_a_sweep_that_cannot_be_resumed_says_so_and_how_it_can(fer, s):
    code, out, err = fer(*TRAIN, "seed=0,1", "hydra.sweep.dir=s")
    assert code == 2 and "to resume its runs:\n  fer train resume=s\n" in out, (out, err)
    (s / "0" / "last.pt").unlink()
    code, out, _ = fer("train", "resume=s")
    assert code == 0 and "s/0: left out, it has no last.pt" in out
    for name in "12":
        (s / name / "last.pt").unlink()
    code, _, err = fer("train", "resume=s")
    assert code == 2 and "resume=s: no run of this sweep has a last.pt" in err


def test_the_same_refusal_of_many_jobs_is_told_once(fer):
    code, _, err = fer(*TRAIN, "seed=0,1,2,3,4", "optim=sgd", "optim.lr=-1")
    assert (
        code == 2
        and err.count("Invalid learning rate") == 1
        and "and 4 other jobs for the same reason" in err
    )


def test_each_job_of_a_sweep_prints_its_choices_and_its_place(fer):
    code, out, err = fer(*TRAIN, "seed=range(2)", "model.dropout=0.1,0.2")
    lines = [line for line in out.splitlines() if line.startswith("job ")]
    assert code == 0 and "HYDRA" not in out + err, (out, err)
    assert lines[0] == "job 0 (seed=0, model.dropout=0.1), 1 of 4"
    assert lines[3] == "job 3 (seed=1, model.dropout=0.2), 4 of 4"
    code, _, err = fer("report", "-m", "run=a,b")
    assert code == 2 and err.startswith("fer: job 0 (run=a): a: no such"), err


def test_settings_of_hydra_are_followed_wherever_they_stand(fer):
    """A plain start composes without Hydra's launcher, which alone knows its settings."""
    folder = Path("mine/experiment")
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweep: {dir: s}, sweeper: {params: {seed: '0,1'}}}\n"
    )
    code, _, err = fer("train", *TRAIN[2:], "--config-dir=mine", "experiment=both")
    assert code == 0, err
    assert sorted(path.name for path in Path("s").iterdir() if path.is_dir()) == ["0", "1"]
    code, _, err = fer("train", *TRAIN[2:], "run=one", "hydra.job.chdir=true", "hydra.run.dir=here")
    assert code == 0, err
    assert Path("here/one/best.pt").is_file()


@pytest.mark.posix
def test_a_sweep_that_would_write_to_one_place_or_into_a_pipe_is_refused(fer, tmp_path):
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s" / "multirun.yaml")
    for args, words in (
        (["train", "seed=0,1", "run=r"], "run=r: all jobs of a sweep would write there"),
        (["curves", "seed=0,1", "out=c.png"], "out=c.png: all jobs of a sweep would write there"),
        (["train", "seed=0,1", "hydra.sweep.dir=s"], "s/multirun.yaml: not a regular file"),
    ):
        code, _, err = fer(*args, "-m", "data=demo")
        assert code == 2 and words in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_launcher_that_cannot_start_is_refused_in_a_line(fer, monkeypatch, tmp_path):
    """It needs Slurm's srun."""
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    code, _, err = fer(*TRAIN, "seed=0,1", *settings)
    assert code == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"fer: {', '.join(settings)}: ") and "srun" in err
