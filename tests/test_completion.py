"""Tab completion: the candidates, and the scripts for bash, zsh and fish."""

import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from fer import FilePath, cli, completion
from fer.augment import Augment
from fer.config import SCHEMAS
from fer.config.schema import FilePath as SchemaPath
from fer.data.demo import demo
from fer.data.ferplus import ferplus
from fer.data.readers import fer2013
from fer.models.convnet import ConvNet
from fer.models.torchvision import classifier
from fer.signatures import path_keys, path_parameters

COMMANDS = [*cli.COMMANDS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two runs and a folder of own configs."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "runs/first/best.pt",
        "runs/my run/best.pt",
        "mine/model/little.yaml",
        ".hidden/x",
    ):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("head: [3]\nslope: 0.1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fer tr", ["train "]),
        ("fer train model=vgg1", ["model=vgg13 ", "model=vgg16 ", "model=vgg16_plain "]),
        ("fer train -m model=dnn,simp", ["model=dnn,simple_cnn "]),
        ("fer train optim.weight", ["optim.weight_decay="]),
        ("fer train optim=adam optim.b", ["optim.betas="]),
        ("fer train optim=sgd optim.b", []),
        ("fer train train.ep", ["train.epochs="]),
        ("fer train train.epochs=3 train.ep", []),  # typed already
        ("fer curves train.ep", ["train.epochs="]),
        (
            "fer train data=fer2013_fraction data.from",
            ["data.from_index="],
        ),  # of fer2013, from which it starts
        ("fer train determ", ["deterministic="]),
        ("fer train deterministic=", ["deterministic=true ", "deterministic=false "]),
        ("fer train --con", ["--config-dir "]),
        ("fer train --config-dir m", ["mine/"]),
        ("fer train --config-dir mine model=li", ["model=little "]),
        ("fer train --config-dir mine model=little model.s", ["model.slope="]),
        ("fer report run=ru", ["run=runs/"]),
        ("fer report run=runs/", ["run=runs/first/", "run=runs/my\\ run/"]),
        ("fer report run=runs/my\\ run/", ["run=runs/my\\ run/best.pt "]),
        ("fer report run='runs/my", ["run=runs/my run/"]),
        ("fer predict ckpt=[runs/first,runs/m", ["ckpt=[runs/first,runs/my\\ run/"]),
        ("fer predict data.path=r", ["data.path=runs/"]),
        ("fer train resume=.h", ["resume=.hidden/"]),
        ("fer train resume=nowhere/", []),
        ("fer nothing ", []),
        ("fer train \\", []),
    ],
)
def test_what_may_follow(folder, line, expected):
    assert completion.candidates(COMMANDS, line) == expected


def test_hidden_files_wait_for_their_dot(folder):
    assert completion.candidates(COMMANDS, "fer train resume=") == ["resume=mine/", "resume=runs/"]


def test_every_key_of_every_command_is_completed():
    for command, schema in SCHEMAS.items():
        found = completion.candidates(COMMANDS, f"fer {command} ")
        for key, field in schema.model_fields.items():
            inner = getattr(field.annotation, "model_fields", {})
            assert {f"{key}.{name}=" for name in inner} <= set(found)
            assert inner or f"{key}=" in found


def is_path(annotation):
    """Whether a type, as it is at run time, is FilePath or holds it."""
    if annotation in (FilePath, SchemaPath):
        return True
    return any(is_path(kind) for kind in get_args(annotation) if kind is not str)


def test_completed_and_quoted_as_paths_are_the_keys_whose_type_is_a_path(folder):
    """What is read from source text is what the types are."""
    paths = set()
    for command, schema in SCHEMAS.items():
        for key, annotation in get_type_hints(schema, include_extras=True).items():
            assert is_path(annotation) == (key in path_keys(command)), key
            if is_path(annotation):
                paths.add(key)
    for target in (fer2013, ferplus, demo, classifier, Augment, ConvNet):
        parameters = inspect.signature(target, eval_str=True).parameters
        typed = {name for name, given in parameters.items() if is_path(given.annotation)}
        assert typed == path_parameters(f"{target.__module__}.{target.__qualname__}")
        paths |= typed
    assert {"resume", "ckpt", "image", "path", "votes", "weights"} <= paths
    assert {"data.path", "data.votes"} <= set(path_keys("train", "data"))  # as configs name them
    assert "model.weights" in path_keys("train", "model")
    assert completion.candidates(COMMANDS, "fer train data.votes=m") == ["data.votes=mine/"]
    Path("mylab").mkdir()
    Path("mylab/__init__.py").write_text("from .sets import faces_of_mine as faces\n")
    function = "def faces_of_mine(*, folder: FilePath): ...\n"
    Path("mylab/sets.py").write_text(f"from fer import FilePath\n{function}")
    line = "fer train data._target_=mylab.faces data.folder=mi"
    assert completion.candidates(COMMANDS, line) == ["data.folder=mine/"]
    line = "fer train data._target_=mylab.faces data.fo"
    assert completion.candidates(COMMANDS, line) == ["data.folder="]


def test_unknown_home_folders_complete_to_nothing(folder):
    assert completion.candidates(COMMANDS, "fer train data.path=~nobodyxyz/") == []


def test_completion_loads_nothing_that_takes_long(folder):
    code = (
        "import sys; from fer.cli import main; main(['-sc', 'query=bash']); "
        "print(sorted(sys.modules))"
    )
    env = os.environ | {"COMP_LINE": "fer train model=compact_cnn model."}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "model.head=" in done.stdout
    assert not any(
        f"'{heavy}'" in done.stdout
        for heavy in ("torch", "numpy", "hydra", "omegaconf", "pydantic")
    )


def bash(folder, line, word, breaks=' "='):
    """What bash puts in the place of `word`, the last of `line` by its own reckoning."""
    starter = folder / "fer"
    starter.write_text(f'#!/bin/sh\nexec {sys.executable} -m fer "$@"\n')
    starter.chmod(0o755)
    script = f"""{completion.SCRIPTS["bash"]}
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _fer {starter} {shlex.quote(word)} fer
        printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.posix
def test_bash_gets_the_part_behind_its_own_word_break(folder):
    assert bash(folder, "fer report run=ru", "ru") == ["runs/"]
    assert bash(folder, "fer report run=ru", "run=ru") == [
        "run=runs/"
    ]  # a bash that does not cut at =
    assert bash(folder, "fer report run=runs/my\\ run/", "runs/my\\ run/") == [
        "runs/my\\ run/best.pt "
    ]
    assert bash(folder, "fer train optim.weight", "optim.weight") == ["optim.weight_decay="]
    (folder / "a=b").mkdir()
    (folder / "a=b" / "x").mkdir()
    assert bash(folder, "fer report run=a=b/", "b/") == ["b/x/"]


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_what_installs_and_removes_completion_is_printed(fer, shell):
    assert fer("-sc", f"install={shell}") == (0, completion.SCRIPTS[shell] + "\n", "")
    assert f"query={shell}" in completion.SCRIPTS[shell]
    assert fer("-sc", f"uninstall={shell}") == (0, completion.REMOVALS[shell] + "\n", "")
    assert fer("-sc", f"query={shell}x")[0] == 2
