"""`fer` in a process of its own, without the seconds that Python takes to import torch.

A server that has imported them forks itself for each command. What is forked is a process like any
other: it has its own folder, environment, streams and exit code, and signals end it.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

POSIX = os.name == "posix"
CONTEXT = multiprocessing.get_context("forkserver" if POSIX else "spawn")
if POSIX:
    CONTEXT.set_forkserver_preload(
        ["fer.commands.train", "fer.data.demo", "fer.launch", "torch._dynamo"]
    )


class Command:
    """`fer ARGS` that runs in the folder; `environment` is added to that of the tests.

    before: a function that is called in the process first. stdout: the end of a CONTEXT.Pipe() that
    the output goes to.
    """

    def __init__(self, folder, *args, before=None, stdout=None, **environment):
        self.streams = tempfile.TemporaryDirectory()
        paths = [Path(self.streams.name, name) for name in ("out", "err")]
        for path in paths:
            path.touch()
        self.out_path, self.err_path = paths
        given = (folder, args, paths, environment, before, stdout)
        self.process = CONTEXT.Process(target=run_fer, args=given)
        self.process.start()

    def send_signal(self, signal):
        os.kill(self.process.pid, signal)

    def wait(self, timeout=60):
        """The exit code; minus the signal's number if a signal ended the process."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.err}")
        return self.process.exitcode

    @property
    def out(self):
        return self.out_path.read_text()

    @property
    def err(self):
        return self.err_path.read_text()


def run_fer(folder, args, paths, environment, before, stdout):
    os.chdir(folder)
    os.environ |= environment
    for path, descriptor in zip(paths, (1, 2), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    if stdout is not None:
        os.dup2(stdout.fileno(), 1)
        stdout.close()
    sys.argv = ["fer", *args]
    if before is not None:
        before()
    from fer import cli

    sys.exit(cli.main([*args]))


def wait_for(path, lines=0):
    """Until the file exists and has that many lines."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.002)
