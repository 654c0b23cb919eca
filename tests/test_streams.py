"""Standard output and error that are closed, full, without a reader, or in a narrow encoding."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from processes import CONTEXT, Command

TINY = [
    "data=demo",
    "data.images=141",
    "model=dnn",
    "model.head=[8]",
    "train.epochs=4",
    "device=cpu",
]


pytestmark = pytest.mark.posix  # redirections by bash
needs_dev_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="only Linux has /dev/full, which is always full"
)


def shell(line, folder):
    command = line.replace("fer", f"{shlex.quote(sys.executable)} -m fer", 1)
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "line", ["fer --help >&-", "fer train --help >&-", "fer --version >&-", "fer --help 2>&- >&-"]
)
def test_a_closed_output_causes_no_traceback(tmp_path, line):
    done = shell(line, tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("line", ["fer train --help | head -1", "fer --help | true"])
def test_a_reader_may_close_the_pipe(tmp_path, line):
    done = shell(f"set -o pipefail; {line}", tmp_path)
    assert done.returncode == 0 and done.stderr == ""


@needs_dev_full
def test_a_full_output_is_reported_once_in_one_line(tmp_path):
    done = shell("fer --help > /dev/full", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == "fer: standard output cannot be written (No space left on device); redirect it "
        "elsewhere\n"
    )


@pytest.mark.parametrize(
    "redirection", [pytest.param("2> /dev/full", marks=needs_dev_full), "2>&-"]
)
def test_a_refusal_whose_error_stream_is_full_or_closed_keeps_its_code(tmp_path, redirection):
    assert shell(f"fer nonsense {redirection}", tmp_path).returncode == 2


def write_ascii():
    """As PYTHONIOENCODING=ascii does."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


def test_a_narrow_encoding_causes_no_traceback(tmp_path):
    done = Command(tmp_path, "summary", "model=dnn", before=write_ascii)
    assert done.wait() == 0 and "Traceback" not in done.err and "1?48?48" in done.out


def read_a_line(folder, *args):
    """Runs a command as `fer ARGS | head -1` does; returns the line, code and standard error."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    command = Command(folder, *args, stdout=writer)
    writer.close()
    with os.fdopen(os.dup(reader.fileno()), "rb", buffering=0) as pipe:
        reader.close()
        line = pipe.readline()
    return line.decode(), command.wait(), command.err


def test_a_command_continues_when_the_reader_closes_the_pipe(tmp_path):
    line, code, err = read_a_line(tmp_path, "train", *TINY, "run=r")
    assert (code, err) == (0, "") and line.startswith("r: dnn, ")
    assert len(pd.read_csv(tmp_path / "r" / "history.csv")) == 4
    line, code, err = read_a_line(tmp_path, "summary", "model=dnn")
    assert (code, err) == (0, "") and "dnn" in line


def close_stdout():
    """As Python starts where the shell has closed it."""
    os.close(1)
    sys.stdout = None


def test_a_command_that_works_needs_no_standard_output(tmp_path, tiny):
    command = Command(tmp_path, "evaluate", f"ckpt={tiny()}", "split=train", before=close_stdout)
    assert command.wait() == 0, command.err


def test_terminal_codes_in_a_name_do_not_reach_the_terminal(fer):
    name = "run\x1b[31mred\rover"
    code, out, err = fer("train", *TINY, f"run={name}")
    assert code == 0 and "\x1b" not in out and "\r" not in out, err
    assert "run\\x1b[31mred\\rover" in out


def test_closed_descriptors_do_not_become_files_of_a_run(tmp_path):
    """With 1>&- 2>&- the next file to be opened would get their numbers, and all output."""
    code = (
        "import os, sys; from fer import cli; code = cli.main(['--version']); "
        "file = open('x', 'w'); sys.exit(code or file.fileno() < 3)"
    )
    command = f'exec {sys.executable} -c "{code}" 0<&- 1>&- 2>&-'
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 0
