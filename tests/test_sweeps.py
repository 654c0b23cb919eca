"""Hydra's own launchers and sweeper, for real: jobs in other processes, an objective that comes back."""

import subprocess
import sys

import pandas as pd
import pytest
import yaml

TRAIN = ["train", "-m", "data=demo", "data.images=70", "model=dnn", "model.head=[2]", "device=cpu", "train.epochs=1"]


def sweep(folder, *args):
    done = subprocess.run([sys.executable, "-m", "fer", *TRAIN, *args], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_jobs_run_in_processes_of_a_launcher_and_their_refusals_come_back(fer, tmp_path, launcher):
    code, out, err = sweep(tmp_path, f"hydra/launcher={launcher}", "hydra.sweep.dir=s", "optim=sgd", "optim.lr=-1,0.1")
    assert (
        code == 2
        and err.splitlines()[-1] == "fer: job 0 (optim.lr=-1): optim: Invalid learning rate: -1.0"
        and "Traceback" not in err
    )
    assert (tmp_path / "s" / "1" / "best.pt").is_file()
    code, out, err = fer("report", "run=s")
    assert code == 0 and "validation faces" in out, err


def test_optuna_gets_the_validation_accuracy_that_it_maximizes(tmp_path):
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    more = ["hydra.sweeper.direction=maximize", "optim.lr=interval(0.0001,0.1)", "hydra.sweep.dir=s"]
    code, _, err = sweep(tmp_path, *optuna, *more)
    assert code == 0, err
    best = [pd.read_csv(tmp_path / "s" / str(i) / "history.csv")["val_accuracy"].max() for i in range(3)]
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(max(best), abs=1e-5)
