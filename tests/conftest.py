import copy
import functools
import itertools
import os
import signal
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from fer import cli, config
from fer.checkpoint import save_checkpoint
from fer.data import demo
from fer.models.network import Network, Normalize
from fer.runtime import Interrupted
from fer.training.recorder import Recorder

# The overrides of a training that takes a fraction of a second.
TINY = ["data=demo", "data.images=141", "model=dnn", "model.head=[8]", "device=cpu"]
CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))

os.environ.pop("FER_DEBUG", None)
os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start: two workers share two cores
torch.set_num_threads(1)
# A shell that starts the tests in the background makes them, and all they start, ignore SIGINT;
# nohup does so with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config):
    """Only the tests with the marker gpu see one, so that device=auto is the CPU in all others."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """Windows has no signals to other processes, no locks of files, no FIFOs: tests of those are
    left out there.
    """
    if os.name == "posix":
        return
    left_out = [item for item in items if item.get_closest_marker("posix")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_header():
    if os.name != "posix":
        return (
            "left out here, see docs/faq.md: tests of signals, locks, FIFOs and several processes "
            "(marker posix)"
        )
    return None


def pytest_generate_tests(metafunc):
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", MODELS)


@pytest.fixture(scope="session", autouse=True)
def drawn_once():
    """Has data=demo draw the same faces once for all tests, since most commands on so few faces
    spend more than half of their time on it. test_demo.py draws them anew.
    """
    drawn = {}
    draw = demo.draw

    @functools.wraps(draw)
    def draw_or_copy(shown, rng, keep):
        key = (shown.tobytes(), str(rng.bit_generator.state), keep)
        if key not in drawn:
            drawn[key] = draw(shown, rng, keep), rng.bit_generator.state
        pictures, rng.bit_generator.state = drawn[key]
        return pictures.copy()

    demo.draw = draw_or_copy
    yield
    demo.draw = draw


@pytest.fixture
def catalogue_model():
    """Builds a model of configs/model/ by name, with changes to its keys."""

    def make(name, **changes):
        node = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text()) | changes
        return config.build("model", config.check_node("model", node))

    return make


@pytest.fixture(scope="session")
def fer2013_text():
    generator = np.random.default_rng(0)
    rows = ["emotion,pixels,Usage"]
    for usage, count in (("Training", 70), ("PublicTest", 21), ("PrivateTest", 14)):
        for i in range(count):
            pixels = " ".join(map(str, generator.integers(0, 256, 48 * 48)))
            rows.append(f"{i % 7},{pixels},{usage}")
    return "\n".join(rows) + "\n"


@pytest.fixture
def fer2013_csv(tmp_path, fer2013_text):
    """A small fer2013.csv with all three Usages, of noise."""
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / "fer2013.csv"
    path.write_text(fer2013_text)
    return path


@pytest.fixture
def train_until(tmp_path):
    """Trains until a step, saves into tmp_path and ends there, as after a signal, which rarely
    comes at a chosen step.
    """

    def train(trainer, epoch, step):
        trainer.recorder = Recorder(tmp_path, trainer.cfg)

        def stop(signals):
            if (trainer.epoch, trainer.step) == (epoch, step):
                trainer.save()
                raise Interrupted(signal.SIGTERM)

        trainer.after_step = stop
        with pytest.raises(Interrupted):
            trainer.fit()

    return train


@pytest.fixture
def compose():
    """The values of a command's config with overrides, as Hydra composes them."""

    def make(command, *overrides):
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose(command, [*overrides, "name=test"])
        return OmegaConf.to_container(composed, resolve=True)

    return make


@pytest.fixture(scope="session")
def tiny_contents(tmp_path_factory):
    """The contents of a best.pt of a network of one hidden unit, on 70 drawn faces."""
    overrides = [
        "data=demo",
        "data.images=70",
        "model=dnn",
        "model.head=[1]",
        "device=cpu",
        "name=test",
    ]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = config.check(
            "train", OmegaConf.to_container(hydra.compose("train", overrides), resolve=True)
        )
    torch.manual_seed(0)
    network = Network(config.build("model", cfg.model), Normalize("dataset", 120.0, 60.0))
    path = tmp_path_factory.mktemp("tiny") / "best.pt"
    save_checkpoint(path, cfg, network, epoch=1, val_accuracy=0.5)
    return torch.load(path, weights_only=True)


@pytest.fixture
def tiny(tiny_contents, tmp_path):
    """Writes tiny.pt, with changes to its contents and, as `config`, to its config; returns its
    path.
    """

    def make(config=None, **changes):
        contents = copy.deepcopy(tiny_contents) | changes
        if isinstance(config, dict):
            contents["config"] = yaml.safe_dump(yaml.safe_load(contents["config"]) | config)
        elif config is not None:
            contents["config"] = config
        torch.save(contents, tmp_path / "tiny.pt")
        return tmp_path / "tiny.pt"

    return make


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock that is 6 s later whenever it is read, so that trainings save after every epoch."""
    seconds = itertools.count(0, 6)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


@pytest.fixture
def fer(capsys, monkeypatch, tmp_path):
    """Runs `fer ARGS` in an empty folder; returns (exit code, standard output, standard error).

    A key given twice counts as given last, so that tests can vary a common list of overrides.
    """
    monkeypatch.chdir(tmp_path)

    def run(*args):
        last = {}
        for position, arg in enumerate(args):
            key = arg.lstrip("+~").partition("=")[0] if "=" in arg else position
            last[key] = arg
        code = cli.main(list(last.values()))
        out, err = capsys.readouterr()
        return code, out, err

    return run
