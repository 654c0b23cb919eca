"""Tab completion: what may follow, and what bash, zsh and fish are told."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fer import cli, completion
from fer.config import SCHEMAS, TARGETS, path_keys

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


def test_completed_as_paths_are_the_keys_whose_type_is_a_path():
    typed = {
        key for command in COMMANDS for group in ("", *TARGETS) for key in path_keys(command, group)
    }
    assert typed == completion.PATHS


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
def test_a_shell_is_told_how_to_ask_and_how_to_forget(fer, shell):
    code, out, _ = fer("-sc", f"install={shell}")
    assert code == 0 and f"query={shell}" in out
    assert fer("-sc", f"uninstall={shell}")[0] == 0
    assert fer("-sc", f"query={shell}x")[0] == 2
