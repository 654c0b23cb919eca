"""Captured steps match eager steps (emulated without a GPU); fp16; limits of devices."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fer import UserError, config, explain
from fer.augment import fixed_crops
from fer.inference import probabilities
from fer.runtime import Signals
from fer.training import recorder, step
from fer.training.trainer import Trainer

TINY = [
    "data=demo",
    "data.images=141",
    "train.batch_size=20",
    "train.epochs=4",
    "train.precision=fp32",
]
CPU = torch.device("cpu")


@pytest.fixture
def trainer(compose):
    def make(*overrides, device=CPU, **nodes):
        return Trainer(config.check("train", compose("train", *TINY, *overrides) | nodes), device)

    return make


# Capture, emulated


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments and results, as a CUDA graph does; reading a value
    back is an error.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class FakeGraph:
    """torch.cuda.CUDAGraph on a CPU: a replay makes the recorded operations again, on the same
    tensors.

    A real capture runs nothing. Here the operations run as they are recorded, so the first replay
    has nothing to do.
    """

    def __init__(self):
        self.recorder = Recorder()
        self.replays = 0

    def register_generator_state(self, generator):
        assert isinstance(generator, torch.Generator)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return
        for func, args, kwargs, noted in self.recorder.calls:
            result = func(*args, **kwargs)
            if any(declared.alias_info is not None for declared in func._schema.returns):
                continue  # a view, or the argument itself
            for place, new in zip(flat(noted), flat(result), strict=True):
                if isinstance(new, torch.Tensor):
                    place.copy_(new)


def flat(result):
    return result if isinstance(result, tuple | list) else [result]


class FakeStream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def record(self, stream=None):
        pass


@contextlib.contextmanager
def fake_capture(graph, pool=None, stream=None):
    with graph.recorder:
        yield


@pytest.fixture
def gpu(monkeypatch):
    """Steps are captured, on a CPU; returns the graphs that were made.

    torch's CUDA graphs are faked. can_capture() is replaced too: it asks for tensors on a GPU,
    which no fake of torch can give.
    """
    graphs = []
    monkeypatch.setattr("fer.training.trainer.can_capture", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", fake_capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return graphs


def weights_after(trainer):
    trainer.fit()
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def history_of(trainer):
    """Its rows without the times."""
    times = ("seconds", "images_per_second")
    return [
        {key: value for key, value in row.items() if key not in times} for row in trainer.history
    ]


RECIPES = {
    "muon and growing images": [
        "model=resnet_fast",
        "++model.features=[4, {residual: 4}, pool, {residual: 8}, global_pool, dropout]",
        "++curves.size={_target_: fer.schedule.Knots, epochs: [0, 3], values: [0.5, 1], shape: "
        "step}",
    ],
    "adam, every augmentation and a curve of dropout": [
        "model=simple_cnn",
        "optim=adam",
        "++optim.fused=true",
        "++optim.eps=1e-3",
        "train.clip=1",
        "augment.erase=0.5",
        "augment.mixup=0.3",
        "augment.cutmix=1",
        "augment.brightness=0.1",
        "++curves.dropout={_target_: fer.schedule.Knots, epochs: [0, 4], values: [0, 1]}",
        "++curves.rotate={_target_: fer.schedule.Knots, epochs: [1, 4], values: [0, 1]}",
        "model.features=[4, pool]",
        "model.head=[8, dropout]",
    ],
    "five crops of each face": [
        "model=dnn",
        "model.head=[8]",
        "optim=sgd",
        "++optim.fused=true",
        "schedule=plateau",
        "++model.size=40",
        "augment.crop=40",
        "augment.crops=5",
        "augment.mixup=1",
        "++augment.resized_crop=[0.8, 1.2]",
        "augment.jitter=0.5",
        "augment.erase=0.5",
        "augment.erase_value=black",
        "augment.jitter_probability=0.5",
    ],
    "an epoch with frozen layers": [
        "model=simple_cnn",
        "model.features=[4, norm, pool]",
        "model.head=[8]",
        "augment=flip",
        "optim=adam",
        "++optim.fused=true",
        "++optim.eps=1e-3",
        "train.freeze=1",
        "train.backbone_lr=1e-4",
    ],
    "sgd and an average": [
        "model=dnn",
        "model.head=[8, norm, dropout]",
        "optim=sgd",
        "++optim.fused=true",
        "train.ema=0.9",
        "augment=none",
        "schedule=cosine",
    ],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_captured_steps_give_the_weights_and_losses_of_eager_ones(trainer, gpu, recipe):
    captured = trainer(*RECIPES[recipe])
    ours = weights_after(captured)
    assert sum(graph.replays for graph in gpu) > 2 * captured.steps
    eager = trainer(*RECIPES[recipe], "train.cuda_graphs=false")
    theirs = weights_after(eager)
    assert (
        type(captured.step_function) is step.CapturedStep and type(eager.step_function) is step.Step
    )
    for name, tensor in theirs.items():
        if not name.endswith(
            "bias"
        ):  # those before BatchNorm follow the rounding of a captured rate
            torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=2e-3, msg=name)
    for one, other in zip(history_of(captured), history_of(eager), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    if eager.average:
        for a, b in zip(captured.average.parameters(), eager.average.parameters(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("crops", [5, 10])
def test_crops_of_a_face_count_as_one_face(trainer, crops):
    """Loss, accuracy and gradient are means, whatever the number of crops."""
    recipe = ["model=dnn", "model.head=[]", "++model.size=40", "augment=none", "augment.crop=40"]
    recipe += ["optim=sgd", "optim.lr=0.1", "optim.momentum=0", "optim.nesterov=false"]
    recipe += ["optim.weight_decay=0", "schedule=constant", "train.epochs=1"]
    trained = trainer(*recipe, f"augment.crops={crops}", "train.batch_size=141")  # one step
    model, faces = trained.network.model, trained.faces
    inputs = trained.network.prepare(fixed_crops(faces.images, 40, crops))
    labels = faces.targets.argmax(1).repeat_interleave(crops)
    logits = model(inputs)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(model.parameters(), gradients, strict=True)]
    trained.fit()
    row = trained.history[0]
    assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    right = (logits.argmax(1) == labels).double().mean().item()
    assert row["train_accuracy"] == pytest.approx(right)
    for parameter, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), other)


def test_a_captured_training_resumes_from_the_middle_of_an_epoch(
    trainer, train_until, gpu, tmp_path
):
    recipe = RECIPES["muon and growing images"]
    whole = trainer(*recipe)
    expected = weights_after(whole)
    train_until(trainer(*recipe), epoch=2, step=3)
    again = trainer(*recipe, f"resume={tmp_path}")
    assert (again.epoch, again.step) == (2, 3)
    weights = weights_after(again)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, msg=name)
    for one, other in zip(history_of(again), history_of(whole), strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"),
            UserError,
            r"cannot be captured in a CUDA graph \(CUDA error: operation not permitted when stream "
            r"is capturing\); set train\.cuda_graphs=false",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "out of memory"),
    ],
)
def test_a_step_that_cannot_be_captured_is_told_with_its_remedy(
    trainer, gpu, monkeypatch, error, expected, message
):
    """A layer of the user's may read a value back."""

    @contextlib.contextmanager
    def capture(graph, pool=None, stream=None):
        try:
            yield
        finally:  # the end of such a capture fails too
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    def learn(*args):
        raise error

    t = trainer(*RECIPES["sgd and an average"])
    run = t.step_function.graphs.run

    def run_with_failing_capture(key, function):
        if key in t.step_function.graphs.seen and key[0] == "learn":
            monkeypatch.setattr(torch.cuda, "graph", capture)
            return run(key, learn)
        return run(key, function)

    monkeypatch.setattr(t.step_function.graphs, "run", run_with_failing_capture)
    with pytest.raises(expected, match=message):
        t.fit()


@pytest.mark.parametrize(
    ("device", "world", "computed_in", "expected"),
    [
        ("cuda", 1, "bf16", True),
        ("cuda", 1, "fp32", True),
        ("cuda", 2, "bf16", False),
        ("cuda", 1, "fp16", False),
        ("cpu", 1, "bf16", False),
        ("mps", 1, "fp32", False),
    ],
)
def test_steps_are_captured_on_one_gpu_only(device, world, computed_in, expected):
    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    optimizer = torch.optim.SGD(parameters, lr=0.1, fused=True)
    images = SimpleNamespace(device=torch.device(device))
    assert step.can_capture(images, world, computed_in, optimizer) is expected
    for other in (torch.optim.SGD(parameters, lr=0.1), torch.optim.Adagrad(parameters)):
        assert not step.can_capture(images, world, computed_in, other)  # it waits for the host


# The loop makes no wait


def test_no_step_reads_a_value_back(trainer):
    for recipe in RECIPES.values():
        t = trainer(*recipe)
        batches, settings = t.batches(0), t.plan.settings(0, [])
        with t.step_function.epoch(settings, 0):
            t.step_function(batches[0], settings[0])
            with Recorder():
                t.step_function(batches[1], settings[1])


def test_only_whole_batches_go_through_a_compiled_network(trainer, monkeypatch):
    sizes = []

    def compiled(model):
        return lambda inputs: sizes.append(len(inputs)) or model(inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    t = trainer("model=dnn", "model.head=[8]", "train.compile=true", "train.epochs=1")
    t.fit()
    assert sizes == [20] * 6  # the last has 21
    assert (
        t.network.state_dict().keys()
        == trainer("model=dnn", "model.head=[8]").network.state_dict().keys()
    )


# fp16


def test_fp16_scales_the_loss_and_its_state_is_saved(trainer, tmp_path):
    recipe = ["model=dnn", "model.head=[8]", "optim=sgd", "train.precision=fp16", "train.epochs=2"]
    t = trainer(*recipe)
    t.recorder = recorder.Recorder(tmp_path, t.cfg)
    t.fit()
    assert t.scaler.is_enabled() and t.history[-1]["train_loss"] < 3
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["training"]
    assert saved["scaler"] == t.scaler.state_dict() and saved["computed_in"] == "fp16"
    again = trainer(*recipe, "train.epochs=3", f"resume={tmp_path}")
    assert again.scaler.state_dict() == saved["scaler"]


def test_a_gradient_that_overflows_fp16_skips_the_step_and_nothing_else(trainer):
    t = trainer(
        "model=dnn",
        "model.head=[8]",
        "optim=sgd",
        "train.precision=fp16",
        "train.ema=0.5",
        "train.clip=1",
    )
    batches, settings = t.batches(0), t.plan.settings(0, [])
    scale = 2.0**120  # with which every gradient is infinite
    with t.step_function.epoch(settings, 0):
        t.step_function(batches[0], settings[0])
        before = [p.clone() for p in t.network.parameters()]
        average = [p.clone() for p in t.average.parameters()]
        t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": scale})
        t.step_function(batches[1], settings[1])
        assert all(map(torch.equal, before, t.network.parameters()))
        assert all(map(torch.equal, average, t.average.parameters()))
        assert t.scaler.get_scale() < scale
        t.step = 2
        assert t.checked_record().isfinite().all()  # a skipped step is no NaN
        t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": 1024.0})
        t.step_function(batches[2], settings[2])
        assert not all(map(torch.equal, before, t.network.parameters()))
        assert t.optimizer.param_groups[0]["lr"] == pytest.approx(t.plan.values(0, 2, [])["lr"])


def test_a_first_step_that_overflows_leaves_no_momentum_in_a_fused_sgd(trainer, monkeypatch):
    """torch allocates its momentum without setting it, and does not set it in a skipped step."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor: empty_like(tensor).fill_(torch.nan))
    recipe = ["model=dnn", "model.head=[8]", "optim=sgd", "++optim.fused=true"]
    t = trainer(*recipe, "train.precision=fp16")
    t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": 2.0**120})
    batches, settings = t.batches(0), t.plan.settings(0, [])
    with t.step_function.epoch(settings, 0):
        t.step_function(batches[0], settings[0])
        t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": 1024.0})
        t.step_function(batches[1], settings[1])
    t.check_weights()


@pytest.mark.parametrize("fused", ["true", "false"])
def test_sgd_trains_layers_that_were_frozen_before(trainer, tmp_path, fused):
    """On a GPU it is fused; a training may be frozen on one device and go on on another."""
    recipe = ["model=dnn", "model.head=[8]", "optim=sgd", "train.freeze=1"]
    frozen = trainer(*recipe, f"++optim.fused={fused}", "train.epochs=1")
    frozen.recorder = recorder.Recorder(tmp_path, frozen.cfg)
    frozen.fit()
    on = trainer(*recipe, "++optim.fused=true", "train.epochs=2", f"resume={tmp_path}")
    before = next(on.network.parameters()).clone()
    on.fit()
    assert on.epoch == 2 and not torch.equal(before, next(on.network.parameters()))


# Devices without float64


class OnHost(torch.Tensor):
    """What .cpu() gave."""


class NoDoubles(TorchFunctionMode):
    """As on MPS: a float64 tensor that is not on the host is a TypeError."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in flat(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                made_here = not any(isinstance(arg, torch.Tensor) for arg in args)
                on_host = isinstance(tensor, OnHost) or (made_here and "device" not in kwargs)
                if not on_host:
                    raise TypeError(f"{func}: Cannot convert a MPS Tensor to float64")
        return result


@pytest.fixture
def no_doubles(monkeypatch):
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: cpu(tensor).as_subclass(OnHost))
    return NoDoubles()


def test_training_and_prediction_need_no_float64_on_the_device(trainer, no_doubles):
    t = trainer(
        *RECIPES["adam, every augmentation and a curve of dropout"],
        "train.epochs=1",
        "train.tencrop=true",
    )
    with no_doubles:
        with pytest.raises(TypeError, match="float64"):
            t.faces.images.double()
        t.fit()
        probabilities(t.eval_network, t.faces.val_images, 20, "flip")


def test_explaining_needs_no_float64_on_the_device(trainer, no_doubles):
    t = trainer("model.features=[8,pool,8]", "train.epochs=1")
    network = t.eval_network.eval()
    images = t.faces.val_images[:3].float()
    classes = torch.tensor([0, 1, 2])
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    with no_doubles:
        explain.saliency(network, images, classes)
        explain.smooth_grad(network, images, classes, samples=2)
        explain.integrated_gradients(network, images, classes, steps=4)
        explain.grad_cam(network, layer, images, classes)
        explain.ascend(network, layer, classes, steps=2)


# Optimizers that cannot train


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_make_a_plain_step_is_refused(trainer, name):
    with pytest.raises(
        UserError, match=rf"optim\._target_=torch\.optim\.{name}: cannot train .*choose optim=adam"
    ):
        trainer("model=dnn", optim={"_target_": f"torch.optim.{name}"})


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_on_a_gpu_captured_steps_give_the_losses_of_eager_ones(trainer, recipe):
    device = torch.device("cuda", 0)
    few = [override for override in RECIPES[recipe] if "fused" not in override]
    captured = trainer(*few, device=device)
    eager = trainer(*few, "train.cuda_graphs=false", device=device)
    for t in (captured, eager):
        t.fit()
    assert captured.step_function.graphs.graphs and type(eager.step_function) is step.Step
    for one, other in zip(captured.history, eager.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "SGD",
        "Adam",
        "AdamW",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "ASGD",
        "Rprop",
        "Adagrad",
    ],
)
def test_on_a_gpu_torchs_optimizers_train(trainer, name):
    optim = {"_target_": f"torch.optim.{name}", "lr": 0.001}
    t = trainer("model=dnn", "model.head=[8]", device=torch.device("cuda", 0), optim=optim)
    t.fit()
    assert (type(t.step_function) is step.CapturedStep) == (name != "Adagrad")
    assert t.history[-1]["train_loss"] < t.history[0]["train_loss"] + 0.5


@pytest.mark.gpu
def test_on_a_gpu_an_epoch_of_captured_steps_does_not_wait(trainer):
    t = trainer(*RECIPES["muon and growing images"], device=torch.device("cuda", 0))
    t.fit()
    t.history.pop()
    t.reset_epoch()
    with torch.profiler.profile() as profile, Signals() as signals:
        t.train_epoch(signals)
    waits = (
        "aten::item",
        "aten::_local_scalar_dense",
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
    )
    found = {event.key: event.count for event in profile.key_averages() if event.key in waits}
    assert sum(found.values()) <= 1, found  # the profiler's own end
