"""The documentation: fer accepts every command in it and, in `scripts/test all`, runs it on small
data; links lead somewhere; the examples of CONTRIBUTING.md and the notebook work.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import hydra
import nbclient
import nbformat
import pytest
from PIL import Image
from skimage.data import astronaut

from fer import cli, config, config_dir

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NARROW = ["CHANGELOG.md", *NAMES]
CONTRIBUTING = "CONTRIBUTING.md"  # its commands need its examples
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"

# Commands that no test runs, by how they start, and why.
NOT_RUN = {
    "fer download": "asks Kaggle, with an account; tests/test_download.py",
    "fer --help": "tests/test_cli.py",
    "scripts/demo": "tests/test_packaging.py runs it",
    "scripts/test": "runs this",
    "scripts/bench": "takes many minutes of a machine to itself",
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 scripts/bench": "the same",
    "scripts/ablation": "24 runs of 8 epochs",
    "scripts/reproduce": "many runs; tests/test_reproduce.py",
    "tensorboard --logdir": "a server; tests/test_tensorboard.py",
    "fer app": "a server; tests/test_app.py",
    "fer predict input=0": "a camera; tests/test_photos.py",
    "fer predict input=clip.mp4": "a video; tests/test_photos.py",
    "pip install": "downloads",
    "pip uninstall": "would change the environment",
    "source .venv/bin/activate": "a shell's own",
    'eval "$(fer -sc': "a shell's own; tests/test_cli.py",
    ".venv/bin/ruff": "scripts/test runs it",
}
# What stands in the pages → what a test has in its folder, or what makes it short.
SUBSTITUTES = [
    (r"model\.weights=(IMAGENET1K_V1|\S+\.pth)", "model.weights=null"),  # would be downloaded
    (r"model\.size=96", "model.size=32"),
    ("runs/<sweep>", "runs/sweep"),
    ("runs/2026-01-31_09-00-00_sweep/", "runs/sweep/"),
    (r"runs/(…|2026-01-31_09-00-00_vgg13)", "runs/a"),
    ("/elsewhere/fer2013", "archive"),
    (r"data\.path=fer2013\b", "data.path=archive"),
    (r"data\.path=test\.csv", "data=fer2013 data.path=competition/test.csv"),
    ("data.path=/the/competition", "data=fer2013 data.path=competition"),
    (r"train\.epochs=\d+", "train.epochs=2"),
    (r"data\.images=\d+", "data.images=70"),
    ("fer selftrain", "fer selftrain clusters=20"),
    ("seed=0,1,2", "seed=0,1"),
    (
        "vgg16_staged data=demo",
        "vgg16_staged data=demo data.limit=14",
    ),  # ten crops through 40 million parameters
    ("image=3,17", "image=3,7"),
    (r"n_trials=\d+", "n_trials=2"),
    ("--nproc_per_node=4", "--standalone --nproc_per_node=2"),
    ("submitit_slurm hydra.launcher.partition=gpu", "submitit_local"),  # no Slurm here
    ("split=private", "split=private data=fer2013 data.path=archive"),
    ("data=ferplus", "data=ferplus data.path=archive"),
]
TRAINS = ("train", "mislabels", "selftrain")
SMALL = ["data=demo", "data.images=70"]


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(kind, text, the line before) of each code block: kind is a fence's language, "sh" where it
    has none or where the block is indented.
    """
    found, kind, text, before = [], None, [], ""
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if kind is None and line.startswith("```"):
            kind, text = line[3:].strip() or "sh", []
        elif kind is None and line.startswith("    ") and not before.startswith("-"):
            kind, text = "indented", [line[4:]]
        elif kind == "indented" and not line.startswith("    "):
            found.append(("sh", "\n".join(text), before))
            kind = None
        elif kind not in (None, "indented") and line.startswith("```"):
            found.append((kind, "\n".join(text), before))
            kind = None
        elif kind is not None:
            text.append(line[4:] if kind == "indented" else line)
        elif line:
            before = line
    assert kind is None, f"{page}: a block that does not end"
    return found


def commands(page: Path) -> list[str]:
    lines = (
        "\n".join(text for kind, text, _ in blocks(page) if kind == "sh")
        .replace("\\\n", " ")
        .splitlines()
    )
    return [line for line in lines if line.strip()]


FIRST = {
    line: name
    for name, page in reversed([*zip(NAMES, PAGES, strict=True)])
    for line in commands(page)
}


def excused(command: str) -> bool:
    return command.startswith(tuple(NOT_RUN))


def fer_words(command: str) -> list[str] | None:
    """The arguments that a command line hands to fer, None if it does not call it."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        return words[words.index("fer") + 1 :]
    return words[1:] if words[0] == "fer" else None


def write_configs(page: Path, folder: Path) -> None:
    """The YAML and Python files that a page shows, under the path in the line before."""
    for kind, text, before in blocks(page):
        if kind in ("yaml", "python") and (path := re.match(r"`([\w/]+\.(yaml|py))`", before)):
            (folder / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / path[1]).write_text(text + "\n")


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    defined = set(
        re.findall(
            r"def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
        )
    )
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and not set(named) - defined, row


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        if not path.startswith("http"):
            target = page.parent / path if path else page
            assert target.is_file(), link
            titles = (
                re.findall(r"^#+ (.+)", target.read_text(encoding="utf-8"), re.M) if heading else []
            )
            assert not heading or heading in [
                re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles
            ], link


@pytest.mark.parametrize("name", NARROW)
def test_lines_of_prose_fit_100_columns(name):
    """Tables, code blocks and pictures may be wider: they cannot be wrapped."""
    in_block = False
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        in_block ^= line.startswith("```")
        if not in_block and not line.startswith(("|", "    ", "![", "[")):
            assert len(line) <= 100, f"{name}:{number} has {len(line)} columns"


@pytest.fixture
def check_commands(tmp_path, monkeypatch):
    """Checks lists of words for fer as they stand, through Hydra and all checks of keys and values,
    up to where the command would begin.
    """
    monkeypatch.chdir(tmp_path)

    def begin(command):
        return lambda given, typed: (
            float(config.check("train", given) is not None) if command == "train" else None
        )

    for command in cli.COMMANDS:
        monkeypatch.setitem(
            sys.modules, f"fer.commands.{command}", SimpleNamespace(run=begin(command))
        )

    def check(words):
        assert cli.main(words) == 0, words

    return check


def shortened(word):
    """A word of a sweep: of several seeds the first, of several trials one."""
    word = re.sub("(?<=^seed=0),.*", "", word)
    return re.sub("(?<=n_trials=).*", "1", word)


@pytest.mark.parametrize("name", [name for name in NAMES if name != CONTRIBUTING])
def test_every_command_of_a_page_is_one_that_fer_takes(name, tmp_path, check_commands):
    write_configs(ROOT / name, tmp_path)
    for line in commands(ROOT / name):
        if FIRST[line] != name:
            continue
        words = fer_words(line)
        if words is None:
            assert excused(line), f"{line}: no test runs it; if none can, say why in NOT_RUN"
            continue
        if launcher := [
            word for word in words if word.startswith(("hydra/launcher", "hydra.launcher"))
        ]:
            words = [
                word for word in words if word not in launcher
            ]  # its processes would not know of begin()
            with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
                hydra.compose("train", launcher, return_hydra_config=True)
        check_commands([shortened(word) for word in words])


@pytest.mark.parametrize("name", NAMES)
def test_what_else_a_page_names_is_there(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"fer-trainer\[(\w+)\]", text)) <= set(extras)
    for script in re.findall(r"scripts/\w+(?:\.py)?", text):
        mode = os.R_OK if script.endswith(".py") else os.X_OK
        assert os.access(ROOT / script, mode), script
    for command in re.findall(r"`fer ([a-z]+)", text):
        assert command in cli.COMMANDS, command
    for path in re.findall(r"`((?:src|configs|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or f"\n`{path}`:\n" in text, path
    for kind, block, _ in blocks(ROOT / name):  # no command hides in a block of output
        assert kind == "sh" or not re.search(r"^(fer|scripts/|pip|torchrun) ?", block, re.M), block


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that has what the pages name: two runs, a sweep, photos, a competition's files."""
    place = tmp_path_factory.mktemp("prepared")
    sweep = ["-m", "seed=0,1", "hydra.sweep.dir=runs/sweep", "model=dnn"]
    with contextlib.chdir(place):
        for args in (sweep, ["run=runs/b", "seed=1"], ["run=runs/a"]):  # the newest is a CNN
            assert cli.main(["train", *SMALL, "train.epochs=1", "augment=none", *args]) == 0
    for folder in ("photos", "my_faces/happy", "my_faces/sad"):
        (place / folder).mkdir(parents=True)
    photos = ("photo.jpg", "me.jpg", "photos/one.jpg", "my_faces/happy/1.jpg", "my_faces/sad/2.jpg")
    for name in photos:
        Image.fromarray(astronaut()).save(place / name)
    return place


@pytest.fixture
def stage(prepared, fer2013_csv, tmp_path):
    """tmp_path with all of that, and small FER2013 files made of noise."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    _, *rows = fer2013_csv.read_text().splitlines()
    columns = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    votes = [
        ",".join("8" if (int(row[0]) + 4) % 7 == i else "0" for i in range(10)) for row in rows
    ]
    lines = [
        f"{row.rsplit(',', 1)[1]},fer{i:07}.png,{vote}"
        for i, (row, vote) in enumerate(zip(rows, votes, strict=True))
    ]
    (fer2013_csv.parent / "fer2013new.csv").write_text(
        "\n".join([f"Usage,Image name,{columns}", *lines]) + "\n"
    )
    (tmp_path / "competition").mkdir()
    pairs = [row.split(",")[:2] for row in rows]
    (tmp_path / "competition" / "train.csv").write_text(
        "\n".join(["emotion,pixels", *map(",".join, pairs)]) + "\n"
    )
    (tmp_path / "competition" / "test.csv").write_text(
        "\n".join(["pixels", *(p for _, p in pairs[:9])]) + "\n"
    )
    (tmp_path / "sample_submission.csv").write_text(
        "id,emotion\n" + "".join(f"{i},0\n" for i in range(11))
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != CONTRIBUTING])
def test_the_commands_of_a_page_run(name, stage, fer):
    """In their order, in one folder, on small data and for few epochs."""
    write_configs(ROOT / name, stage)
    for line in commands(ROOT / name):
        if excused(line) or FIRST[line] != name:
            continue
        short = line
        for what, instead in SUBSTITUTES:
            short = re.sub(what, instead, short)
        words = fer_words(short)
        given = [word.partition("=")[0] for word in words]
        if words[0] in TRAINS and not {"train.epochs", "resume", "--help"} & {*given}:
            words += ["train.epochs=3"]  # longer than the warmup of sweeps.md
        if words[0] in (*TRAINS, "inspect") and not {"data", "data.path", "resume", "--help"} & {
            *given
        }:
            words += SMALL
        if "torchrun" in line or "launcher" in line:  # other processes start from a whole one
            start = (
                ["torch.distributed.run", *short.split()[1:3], "-m"] if "torchrun" in line else []
            )
            command = [sys.executable, "-m", *start, "fer", *words]
            done = subprocess.run(command, cwd=stage, capture_output=True, text=True)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = fer(*words)
        assert code == 0, f"{line}\n{' '.join(words)}\n{out[-2000:]}{err[-4000:]}"


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id
        else:
            assert max(map(len, cell.source.splitlines())) <= 100, cell.id


def test_every_command_of_the_notebook_is_one_that_fer_takes(check_commands):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    lines = re.findall(r"^ *!(.+)", source.replace("\\\n", " "), re.M)
    values = {"RUN": "runs/a", "IMAGES": "70", "EPOCHS": "2"}
    assert {line.split()[1] for line in lines} == {"train", "report", "evaluate", "predict"}
    for line in lines:
        line = re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "there"), line)
        check_commands(fer_words(line))


@pytest.mark.parametrize(
    "place", ["fer2013", "competitions/fer", "datasets/someone/fer2013/images"]
)
def test_the_notebook_finds_data_where_kaggle_puts_it(tmp_path, place):
    for split in ("train", "test"):
        (tmp_path / place / split).mkdir(parents=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.id == "train")
    before_training, _, _ = source.partition("if has_input")
    variables = {"Path": Path, "INPUT": str(tmp_path)}
    exec(before_training, variables)
    assert variables["has_input"] and variables["data"] == tmp_path / place
    exec(before_training, variables | {"INPUT": str(tmp_path / "none")})


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """With few faces, where fer is installed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    settings.source += "\nINPUT, IMAGES, EPOCHS = 'none', 140, 1"
    python = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{python}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = {
        cell.id: [kind for output in cell.outputs for kind in output.get("data", [])]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert outputs["install"] == []
    assert outputs["report"].count("image/png") == 3
    assert "text/html" in outputs["page"]
    assert {"image/png", "text/html"} <= {*outputs["predict"]}


def apply_examples(folder: Path) -> None:
    """Copies the project to `folder` and makes the changes that CONTRIBUTING.md shows.

    A block after "`path`:" is a new file. A block after "In `path`, above `text`:" goes above the
    line that begins with the text, at the same indentation.
    """
    for part in ("src", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    for kind, text, heading in blocks(ROOT / CONTRIBUTING):
        if kind == "sh":
            continue
        if new_file := re.fullmatch(r"`(\S+)`:", heading):
            assert not (folder / new_file[1]).exists(), heading
            (folder / new_file[1]).write_text(text + "\n", encoding="utf-8")
            continue
        change = re.fullmatch(r"In `(\S+)`, above `(.+)`:", heading)
        assert change, f"where does this go? {heading}\n{text}"
        path, anchor = folder / change[1], change[2]
        lines = path.read_text(encoding="utf-8").splitlines()
        places = [i for i, line in enumerate(lines) if line.strip().startswith(anchor)]
        assert len(places) == 1, f"{heading} there are {len(places)} such lines"
        indent = re.match(" *", lines[places[0]])[0]
        lines[places[0] : places[0]] = textwrap.indent(text, indent).splitlines()
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_examples_of_contributing_apply_and_pass_the_linter(tmp_path):
    apply_examples(tmp_path)
    for args in (["format"], ["check"]):
        command = [sys.executable, "-m", "ruff", *args, "src", "tests"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_contributing_run_on_its_examples(tmp_path):
    apply_examples(tmp_path)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    for line in commands(ROOT / CONTRIBUTING):
        if excused(line):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] in ("fer", ".venv/bin/python"), line
        words = ["-m", *words] if words[0] == "fer" else words[1:]
        if "pytest" in words:
            words += ["-n", "0"]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert (tmp_path / "runs" / "little" / "report" / "seconds.png").is_file()


def test_the_architecture_names_every_module_and_the_rows_of_the_contract():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    first_cells = [
        line.split("|")[1]
        for line in text.partition("## Modules")[2].splitlines()
        if line.startswith("| `")
    ]
    rows = [re.findall(r"`(\w+)`", cell) for cell in first_cells]
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert rows == [re.findall(r"fer\.(\w+)", layer) for layer in linter["contracts"][0]["layers"]]
    modules = {
        path.stem
        for path in (ROOT / "src" / "fer").iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    assert not {name for name in modules if not name.startswith("_") and f"`{name}`" not in text}
