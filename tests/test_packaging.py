"""What is handed out works outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_of_the_sdist_does_the_demo_in_an_empty_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True)
    (wheel,), (_,) = ((tmp_path / "dist").glob(f"fer_trainer-*{kind}") for kind in (".whl", ".tar.gz"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run([tmp_path / "env" / "bin" / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    work = tmp_path / "elsewhere"
    work.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for args in ("train data=demo data.images=140 model=dnn train.epochs=1 device=cpu", "predict", "report"):
        command = [tmp_path / "env" / "bin" / "fer", *args.split()]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (work / "submission.csv").is_file()


@pytest.mark.slow
def test_the_demo_and_the_readme_commands_can_be_run_again(tmp_path):
    for _ in range(2):
        done = subprocess.run([ROOT / "scripts" / "demo"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        opened = [Path(line.strip()) for line in done.stdout.split("open:")[1].split("\n") if line.strip()]
        assert [path.name for path in opened] == ["index.html", "submission.csv"]
        assert all((ROOT / path).is_file() for path in opened)
        assert len(list((ROOT / opened[0].parent).glob("*.png"))) == 8
    accuracy = float(done.stdout.split("best validation accuracy ")[1].split()[0])
    assert accuracy > 0.6  # chance is 0.25: the share of happy
