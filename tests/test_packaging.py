"""The wheel works outside the checkout; the scripts, dependencies and workflow are complete."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_of_the_sdist_does_the_demo_in_an_empty_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True)
    (wheel,), (_,) = (
        (tmp_path / "dist").glob(f"fer_trainer-*{kind}") for kind in (".whl", ".tar.gz")
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-m", "pip", "install", "--quiet", wheel], check=True
    )
    work = tmp_path / "elsewhere"
    work.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for args in (
        "train data=demo data.images=140 model=dnn train.epochs=1 device=cpu",
        "predict",
        "report",
        "evaluate ckpt=builtin split=validation data=demo data.images=140 device=cpu",
    ):
        command = [tmp_path / "env" / "bin" / "fer", *args.split()]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (work / "submission.csv").is_file()


@pytest.mark.slow
def test_the_demo_and_the_readme_commands_can_be_run_again(tmp_path):
    for _ in range(2):
        done = subprocess.run(
            [ROOT / "scripts" / "demo"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        opened = [
            Path(line.strip()) for line in done.stdout.split("open:")[1].split("\n") if line.strip()
        ]
        assert [path.name for path in opened] == ["index.html", "submission.csv"]
        assert all((ROOT / path).is_file() for path in opened)
        assert len(list((ROOT / opened[0].parent).glob("*.png"))) == 8
    accuracy = float(done.stdout.split("best validation accuracy ")[1].split()[0])
    assert accuracy > 0.6  # chance is 0.25: the share of happy


def normal(name):
    """A distribution's name as all its spellings are compared."""
    return name.lower().replace("_", "-")


def test_what_is_imported_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [declared["dependencies"], *declared["optional-dependencies"].values()]
    names = {normal(re.split(r"[\[<>= ]", line)[0]) for group in groups for line in group}
    modules = metadata.packages_distributions()
    for path in (ROOT / "src" / "fer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module]
            for module in (
                {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"fer"}
            ):
                owners = {normal(name) for name in modules.get(module, [module])}
                assert owners & names, f"{path.name} imports {module}"


def test_hydra_whose_inner_parts_are_used_has_an_upper_bound():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"hydra-core>=[\d.]+,<[\d.]+"', text) and re.search(
        r'"omegaconf>=[\d.]+,<[\d.]+"', text
    )


def test_the_workflow_covers_every_python_and_system_and_runs_all_at_night():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    matrix = workflow["jobs"]["fast"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    newest = [line.rpartition(" ")[2] for line in metadata.metadata("torch").get_all("Classifier")]
    minors = [int(version[2:]) for version in newest if re.fullmatch(r"3\.\d+", version)]
    assert matrix["python"] == [f"3.{minor}" for minor in range(11, max(minors) + 1)]
    assert workflow[True]["schedule"]  # YAML reads the key `on` as true
    assert any(
        step.get("run") == "scripts/test all" for step in workflow["jobs"]["nightly"]["steps"]
    )
