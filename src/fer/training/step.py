"""One training step: augment a batch, learn from it, record the loss.

CapturedStep replays it from CUDA graphs: on a GPU small networks otherwise wait for the host, which
launches some 300 kernels a step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fer import Format, UserError
from fer.augment import STRENGTHS, Augment, Number
from fer.models.layers import ScheduledDropout
from fer.models.network import Network
from fer.optim import Average
from fer.runtime import autocast, is_out_of_memory, seed_device
from fer.training.objective import Objective


@dataclass(frozen=True)
class StepSettings:
    """What is particular to one step of an epoch.

    step: its number in the epoch, from 0. lr_factor, dropout_factor: of the learning rates and of
    the dropout rates. side: of the images, in pixels. amounts: of augmentation, see
    Augment.amounts.
    """

    step: int
    lr_factor: float
    dropout_factor: float
    side: int
    amounts: dict[str, float]
    augmentation_seed: int
    network_seed: int


@dataclass
class Parts:
    """What a step works on and with.

    images: uint8 N×1×H×W, targets: float N×C, on the device or on the host. model: the network's
    model, in DistributedDataParallel if several processes train it. compiled: the model by
    torch.compile, if used. average: moving average of the weights, if used. clip: maximum gradient
    norm, if any.
    dropouts: the layers whose rate a curve drives. rank, world: of this process, and the number of
    processes.
    """

    device: torch.device
    images: Tensor
    targets: Tensor
    augment: Augment
    network: Network
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    computed_in: Format
    batch_size: int
    compiled: Callable[[Tensor], Tensor] | None = None
    average: Average | None = None
    clip: float | None = None
    dropouts: list[ScheduledDropout] = field(default_factory=list)
    rank: int = 0
    world: int = 1


class Step:
    """A step, run kernel by kernel.

    record: float32 steps×2 on the device: the summed loss and the number of right answers of each
    step of the epoch, over this process's faces.
    """

    def __init__(self, parts: Parts, steps: int):
        self.parts = parts
        self.record = torch.zeros(steps, 2, device=parts.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=parts.device)
        self.generator = torch.Generator(parts.device)
        self.frozen = False  # only the last layer learns
        self.initial_rates = [group["lr"] for group in parts.optimizer.param_groups]

    @contextlib.contextmanager
    def epoch(self, settings: Sequence[StepSettings], start: int) -> Iterator[None]:
        """The context of an epoch's steps, from step `start` on. settings: of all its steps."""
        self.position.fill_(start)
        yield

    def __call__(self, batch: Tensor, settings: StepSettings) -> None:
        """Learn from the faces at the positions `batch`, int64, where the images are."""
        self.set_rates(self.learning_rates(settings), self.dropout_rates(settings))
        self.generator.manual_seed(settings.augmentation_seed)
        inputs, targets = self.prepare(batch, settings.amounts, settings.side)
        seed_device(self.parts.device, settings.network_seed)
        self.learn(inputs, targets, len(batch))

    def learning_rates(self, settings: StepSettings) -> list[float]:
        """Of each of the optimizer's groups."""
        return [rate * settings.lr_factor for rate in self.initial_rates]

    def dropout_rates(self, settings: StepSettings) -> list[float]:
        """Of each layer whose rate a curve drives."""
        return [dropout.p * settings.dropout_factor for dropout in self.parts.dropouts]

    def set_rates(
        self, learning_rates: Iterable[float | Tensor], dropout_rates: Iterable[float | Tensor]
    ) -> None:
        groups = self.parts.optimizer.param_groups
        for group, learning_rate in zip(groups, learning_rates, strict=True):
            group["lr"] = learning_rate
        for dropout, dropout_rate in zip(self.parts.dropouts, dropout_rates, strict=True):
            dropout.rate = dropout_rate

    def prepare(
        self, batch: Tensor, amounts: Mapping[str, Number], side: int
    ) -> tuple[Tensor, Tensor]:
        """The model's input and the targets: this process's part of the batch, augmented."""
        p = self.parts
        images = p.images.index_select(0, batch).to(p.device)
        targets = p.targets.index_select(0, batch).to(p.device)
        targets = p.objective.draw(targets, self.generator)
        part = slice(p.rank, None, p.world) if p.world > 1 else None
        images, targets = p.augment.apply(images, targets, amounts, self.generator, part)
        return p.network.prepare(images, side), targets

    def learn(self, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
        """Forward, backward and update. batch_size: of the whole batch, over all processes."""
        p = self.parts
        faces = len(inputs) // p.augment.crops
        # The last batch of an epoch has another shape, which would be compiled again.
        model = p.compiled if p.compiled and faces == p.batch_size else p.model
        with autocast(p.device, p.computed_in):
            logits = model(inputs)
            loss = p.objective.loss(logits, targets)
        p.optimizer.zero_grad()
        # Processes average their gradients, but the last batch may not divide evenly among them.
        share = faces * p.world / batch_size
        p.scaler.scale(loss if share == 1 else loss * share).backward()
        self.update()
        self.note(loss.detach(), p.objective.right(logits.detach(), targets), faces)

    def update(self) -> None:
        """Update the weights, and their moving average."""
        p = self.parts
        if p.clip:
            p.scaler.unscale_(p.optimizer)
            nn.utils.clip_grad_norm_(p.model.parameters(), p.clip)
        scale = p.scaler.get_scale() if p.scaler.is_enabled() and p.average else None
        p.scaler.step(p.optimizer)
        p.scaler.update()
        if p.average:
            # The scaler skips a step whose gradient overflows fp16, and lowers its scale.
            skipped = scale is not None and p.scaler.get_scale() < scale
            if not skipped:
                p.average.update_parameters(p.network.model)

    def note(self, loss: Tensor, right: Tensor, faces: int) -> None:
        """Record the step. loss: mean. right: bool, one for each crop of each face."""
        right_faces = right.sum() / self.parts.augment.crops
        row = torch.stack([loss.float() * faces, right_faces])
        self.record.index_copy_(0, self.position, row[None])
        self.position.add_(1)


class CapturedStep(Step):
    """The same step as two CUDA graphs that run in parallel: one prepares the next batch while the
    other learns from this one.

    A graph's kernels read their arguments from fixed addresses. So what changes from step to step
    is copied there before a replay: face positions, augmentation amounts, learning rates, dropout
    rates. What decides which kernels run is part of the graph's key. A batch of another size, the
    last of an epoch, runs kernel by kernel.
    """

    def __init__(self, parts: Parts, steps: int):
        super().__init__(parts, steps)
        device = parts.device
        self.graphs = Graphs(self.generator)
        self.main = torch.cuda.Stream(device)
        self.feeder = torch.cuda.Stream(device)
        self.prepared, self.taken = torch.cuda.Event(), torch.cuda.Event()
        self.batch = torch.zeros(parts.batch_size, dtype=torch.int64, device=device)
        self.amounts = torch.zeros(len(STRENGTHS), device=device)
        self.rates = torch.zeros(len(self.initial_rates) + len(parts.dropouts), device=device)
        # By image side: the inputs and targets that the captured graph learns from.
        self.inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self.fed: tuple[Tensor, Tensor] | None = None  # the prepared batch

    @contextlib.contextmanager
    def epoch(self, settings: Sequence[StepSettings], start: int) -> Iterator[None]:
        amounts = [[step.amounts.get(name, 0.0) for name in STRENGTHS] for step in settings]
        rates = [self.learning_rates(step) + self.dropout_rates(step) for step in settings]
        # Copies from pinned memory do not wait.
        self.amount_rows = torch.tensor(amounts).pin_memory()
        self.rate_rows = torch.tensor(rates).pin_memory()
        groups = len(self.initial_rates)
        self.set_rates(self.rates[:groups], self.rates[groups:])
        self.position.fill_(start)
        outside = torch.cuda.current_stream(self.parts.device)
        self.main.wait_stream(outside)
        self.feeder.wait_stream(outside)
        self.taken.record(self.feeder)
        try:
            with torch.cuda.stream(self.main):
                yield
        finally:
            outside.wait_stream(self.main)
            outside.wait_stream(self.feeder)

    def __call__(self, batch: Tensor, settings: StepSettings) -> None:
        captured = len(batch) == self.parts.batch_size
        with torch.cuda.stream(self.feeder):
            self.feeder.wait_event(self.taken)
            self.feed(batch, settings, captured)
            self.prepared.record(self.feeder)
        self.main.wait_event(self.prepared)
        self.rates.copy_(self.rate_rows[settings.step], non_blocking=True)
        seed_device(self.parts.device, settings.network_seed)
        assert self.fed is not None
        if not captured:
            self.learn(*self.fed, len(batch))
            self.taken.record(self.main)
            return
        if settings.side not in self.inputs:
            self.inputs[settings.side] = (
                torch.empty_like(self.fed[0]),
                torch.empty_like(self.fed[1]),
            )
        inputs, targets = self.inputs[settings.side]
        inputs.copy_(self.fed[0])
        targets.copy_(self.fed[1])
        self.taken.record(self.main)
        key = ("learn", settings.side, self.frozen)
        self.graphs.run(key, partial(self.learn, inputs, targets, len(batch)))

    def feed(self, batch: Tensor, settings: StepSettings, captured: bool) -> None:
        """Prepare the batch into self.fed."""
        self.amounts.copy_(self.amount_rows[settings.step], non_blocking=True)
        amounts = {name: self.amounts[STRENGTHS.index(name)] for name in settings.amounts}
        self.generator.manual_seed(settings.augmentation_seed)
        if captured:
            self.batch.copy_(batch)
            key = ("prepare", settings.side, *settings.amounts)
            self.fed = self.graphs.run(
                key, partial(self.prepare, self.batch, amounts, settings.side)
            )
        else:
            self.fed = self.prepare(batch, amounts, settings.side)


class Graphs:
    """Functions without arguments, captured into CUDA graphs that share their memory.

    The first call for a key runs the function as it is, so that libraries load and optimizers make
    their state; the second captures it. generator: one that the functions draw from besides the
    device's default one.
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.seen: set[tuple] = set()
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, object]] = {}
        self.pools: dict[str, Any] = {}  # by kind

    def run(self, key: tuple, function: Callable[[], object]):
        """The function's result, at the same place in memory from the second call on."""
        if key not in self.seen:
            self.seen.add(key)
            return function()
        if key not in self.graphs:
            self.graphs[key] = self.capture(key[0], function)
        graph, result = self.graphs[key]
        graph.replay()
        return result

    def capture(
        self, kind: str, function: Callable[[], object]
    ) -> tuple[torch.cuda.CUDAGraph, object]:
        # Graphs of one kind never run at the same time, so they may share a pool.
        if kind not in self.pools:
            self.pools[kind] = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pools[kind], stream=stream):
                result = function()
        except RuntimeError as error:
            # The end of a capture that has failed fails too; the first error says why.
            cause = error.__context__ or error
            if is_out_of_memory(cause):
                raise cause from None
            reason = str(cause).splitlines()[0]
            raise UserError(
                f"a training step cannot be captured in a CUDA graph ({reason}); set "
                "train.cuda_graphs=false"
            ) from error
        return graph, result


def can_capture(
    images: Tensor, world: int, computed_in: Format, optimizer: torch.optim.Optimizer
) -> bool:
    """Can steps be captured? Only with the faces on a CUDA device, in one process, and with an
    optimizer that does not wait for the host. Not in fp16: its scaler decides on the host whether a
    step counts.
    """
    if images.device.type != "cuda" or world > 1 or computed_in == "fp16":
        return False
    return takes_tensors(optimizer)


def takes_tensors(optimizer: torch.optim.Optimizer) -> bool:
    """Does the optimizer run on the device alone, its learning rate a tensor?"""
    defaults = optimizer.defaults
    if "capturable" in defaults:
        return bool(defaults["capturable"])
    return bool(defaults.get("fused")) or getattr(optimizer, "capturable", False)
