"""What is handed out works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_wheel_brings_its_configs(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("fer_trainer-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert (tmp_path / "site" / "fer" / "configs" / "model" / "vgg13.yaml").is_file()
    work = tmp_path / "elsewhere"
    work.mkdir()

    def python(*args):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        return subprocess.run([sys.executable, *args], cwd=work, env=env, capture_output=True, text=True)

    assert str(tmp_path) in python("-c", "import fer; print(fer.__file__)").stdout
    args = ["data=demo", "data.images=140", "model=dnn", "train.epochs=1", "device=cpu"]
    for command in (["train", *args], ["predict"], ["report"]):
        done = python("-m", "fer", *command)
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
