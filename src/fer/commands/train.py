"""fer train: the training loop, what a resume needs, and how a training begins and ends.

A step is step.py's; what a person sees, progress.py's; files, run.py's; processes and signals,
runtime.py's.
"""

import contextlib
import hashlib
import math
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer import UserError, config, metrics, runtime, tensorboard
from fer.augment import SHARES, STRENGTHS, Augment, check_crop
from fer.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_weights,
    resumed,
    rewrite_settings,
    save_checkpoint,
)
from fer.commands.predict import probabilities
from fer.commands.summary import multiply_adds
from fer.data.faces import Data
from fer.models.layers import schedule_dropout
from fer.models.network import Network, Normalize
from fer.optim import Average
from fer.progress import Progress, epoch_line, one_class_lines, warn_if_long
from fer.run import create, lock, write_environment, write_history, write_text
from fer.runtime import Interrupted, Signals, Stream, over_processes, seed_of
from fer.schedule import Curve
from fer.training.objective import Objective, balanced_weights
from fer.training.step import CapturedStep, Moment, Parts, Step, can_capture

SAVE_EVERY = 300  # seconds between saves inside an epoch
SAVE_PAUSE = 5  # seconds at least between saves at the ends of epochs: last.pt of vgg13 has 130 MB
AGREE_EVERY = 10  # steps after which several processes ask one another about signals and saves
EVAL_BATCH = 512  # faces


class Trainer:
    """One training, begun, or continued where cfg.resume names its folder.

    What changes while it runs: the weights, the optimizer, the history; and within an epoch step,
    seconds and record.
    """

    def __init__(
        self,
        cfg: config.TrainConfig,
        device: torch.device,
        data: Data | None = None,
        saved: dict | None = None,
    ):
        """data: in place of the config's. saved: the contents of the last.pt of cfg.resume, if they
        were read.
        """
        self.cfg, self.device = cfg, device
        self.run: Path | None = None  # without a run folder nothing is written or printed
        self.writer: Any = None  # of TensorBoard
        self.typed: list[str] = []  # the words of the command line, for the record
        self.one_class: str | None = None  # what the last epoch called all validation faces
        self.rank, self.world = runtime.join_processes(device)
        self.computed_in = runtime.choose_format(device, cfg.train.precision)

        torch.manual_seed(seed_of(Stream.WEIGHTS, cfg.seed))
        model = config.build("model", cfg.model).to(device)
        if cfg.start and not cfg.resume:
            start_from(model, cfg.start, cfg.data.get("normalize"))
        if cfg.train.channels_last:
            model.to(memory_format=torch.channels_last)
        self.augment = config.build("augment", cfg.augment)
        self.optimizer = build_optimizer(cfg.optim, model, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.computed_in == "fp16")
        self.curves = build_curves(cfg, self.augment, model)
        dropouts = schedule_dropout(model) if "dropout" in self.curves else []
        normalize = self.take(
            data or config.build("data", cfg.data)
        )  # last: what is quick to refuse has been checked
        self.network = Network(model, normalize)
        self.average = Average(model, cfg.train.ema) if cfg.train.ema else None
        self.eval_network = (
            Network(self.average.module, normalize) if self.average else self.network
        )

        self.history: list[dict[str, Any]] = []  # one row an epoch
        self.steps = len(self.batches(0))
        parts = Parts(
            device=device,
            images=self.images,
            targets=self.targets,
            augment=self.augment,
            network=self.network,
            model=DistributedDataParallel(model) if self.world > 1 else model,
            objective=self.objective,
            optimizer=self.optimizer,
            scaler=self.scaler,
            computed_in=self.computed_in,
            batch_size=cfg.train.batch_size,
            compiled=torch.compile(model) if cfg.train.compile else None,
            average=self.average,
            clip=cfg.train.clip,
            dropouts=dropouts,
            rank=self.rank,
            world=self.world,
        )
        captured = cfg.train.cuda_graphs and can_capture(
            device, self.world, self.computed_in, self.optimizer
        )
        self.learn = CapturedStep(parts, self.steps) if captured else Step(parts, self.steps)
        self.saved = time.perf_counter()  # when last.pt was
        self.saved_once = False
        self.best_weights: dict[str, Any] | None = None  # what best.pt will hold, not yet written
        self.work = Work()
        self.start_epoch()
        if cfg.resume:
            path = Path(cfg.resume) / "last.pt"
            self.load(saved or load_checkpoint(path), path)

    def take(self, data: Data) -> Normalize:
        """Move training and validation faces to the device; returns their normalization."""
        faces, held_out = data.open("train"), data.open("validation")
        if self.cfg.train.copies == "drop":
            faces = faces.take(~faces.among(held_out))
        if len(faces) < 2 or not len(held_out):
            raise UserError(
                f"{len(faces)} faces to train and {len(held_out)} to validate on are too few"
            )
        if self.augment.crop:
            check_crop(faces.images, self.augment.crop)
        targets = faces.targets
        if targets is None:
            targets = F.one_hot(faces.labels, len(data.classes)).float()
        self.images, self.targets = faces.images.to(self.device), targets.to(self.device)
        self.val_images, self.val_labels = (
            held_out.images.to(self.device),
            held_out.labels.to(self.device),
        )
        self.data_hash, self.val_hash, self.classes = data.hash, held_out.hash, data.classes
        self.unlabelled, self.sample, self.absent = data.unlabelled, data.sample, data.absent
        digest = hashlib.sha256(held_out.labels.numpy().data)
        for part in (held_out.images, faces.images, targets):
            digest.update(part.contiguous().numpy().data)
        self.faces = digest.hexdigest()

        balanced = self.cfg.train.class_weights == "balanced"
        if data.mode == "multi" and (self.cfg.train.label_smoothing or balanced):
            raise UserError(
                "data.mode=multi: goes without train.label_smoothing and train.class_weights; "
                "set train.label_smoothing=0 and train.class_weights=none"
            )
        class_weights = balanced_weights(self.targets) if balanced else None
        self.objective = Objective(data.mode, self.cfg.train.label_smoothing, class_weights)
        return Normalize.fit(data.normalize, faces.images)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the most accurate epoch, the earlier of equals."""
        return max(
            self.history, key=itemgetter("val_accuracy"), default={"epoch": 0, "val_accuracy": -1.0}
        )

    @property
    def done(self) -> bool:
        planned, patience = self.cfg.train.epochs, self.cfg.train.patience
        return self.epoch >= planned or (
            patience is not None and self.epoch - self.best["epoch"] >= patience
        )

    def start_epoch(self) -> None:
        self.step = 0
        self.watch = Stopwatch()
        self.learn.record.zero_()

    def fit(self) -> None:
        """Train to the last epoch or until patience ends. Raises Interrupted after a signal,
        everything saved.
        """
        with runtime.kernels(self.device, self.cfg.deterministic), Signals() as signals:
            self.save()  # from here on a killed run can be resumed
            while not self.done:
                self.train_epoch(signals)
                self.validate()
                self.start_epoch()
                self.end_epoch(signals)
        if signals.caught:
            raise Interrupted(signals.caught)

    def train_epoch(self, signals: Signals) -> None:
        batches, moments = self.batches(self.epoch), self.moments()
        self.watch.start()
        done = self.step * self.cfg.train.batch_size
        earlier = self.history[-1]["seconds"] if self.history else None
        shown = self.run is not None
        bar = Progress(self.epoch, self.cfg.train.epochs, len(self.images), done, shown, earlier)
        self.network.train()
        with bar, self.learn.epoch(moments, self.step), self.tracer() as trace:
            for batch, moment in zip(batches[self.step :], moments[self.step :], strict=True):
                self.learn(batch, moment)
                self.step += 1
                self.work.faces[moment.side] += len(batch)
                bar.note(len(batch), self.means)
                trace()
                self.after_step(signals)

    def tracer(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """With profile=true, of the second epoch (the first, if it is the only one), a trace of ten
        steps.
        """
        traced = min(1, self.cfg.train.epochs - 1)
        if not (self.cfg.profile and self.run and self.epoch == traced):
            return contextlib.nullcontext(lambda: None)
        return runtime.profile(self.run / "trace.json")

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """An epoch's positions, on the device, in an order that depends on (seed, epoch) alone. A
        last batch of one, or of fewer than two a process, joins the batch before it: BatchNorm
        cannot learn from one face.
        """
        generator = torch.Generator().manual_seed(seed_of(Stream.ORDER, self.cfg.seed, epoch))
        count, size = len(self.images), self.cfg.train.batch_size
        if self.cfg.train.sampling == "balanced":
            weights = balanced_weights(self.targets.cpu())[self.targets.argmax(1).cpu()]
            order = torch.multinomial(weights, count, replacement=True, generator=generator)
        else:
            order = torch.randperm(count, generator=generator)
        sizes = [size] * (count // size) + [count % size] * (count % size > 0)
        if len(sizes) > 1 and sizes[-1] < max(2, 2 * self.world):
            sizes[-2:] = [sizes[-2] + sizes[-1]]
        if self.device.type == "cuda":
            order = order.pin_memory()  # whose copy does not wait
        return order.to(self.device, non_blocking=True).split(sizes)

    def factors(self, step: int) -> dict[str, float]:
        """Every curve's factor in the middle of a step of this epoch: at its start a warm-up has a
        rate of 0.
        """
        accuracies = [row["val_accuracy"] for row in self.history]
        middle = self.epoch + (step + 0.5) / self.steps
        return {
            name: curve(middle, self.cfg.train.epochs, accuracies)
            for name, (curve, _) in self.curves.items()
        }

    def moments(self) -> list[Moment]:
        """What is particular to each step of the coming epoch."""
        return [self.moment(step) for step in range(self.steps)]

    def moment(self, step: int) -> Moment:
        strengths = self.factors(step)
        rate, dropout, size = (
            strengths.pop("lr"),
            strengths.pop("dropout", 1.0),
            strengths.pop("size", 1.0),
        )
        side = self.network.model.size
        if size != 1:  # shrunk to multiples of 4, for two poolings at least
            side = max(round(size * side / 4), 1) * 4
        place = (self.cfg.seed, self.epoch, step)
        return Moment(
            step=step,
            rate=rate,
            dropout=dropout,
            side=side,
            amounts=self.augment.amounts(strengths),
            augmentation_seed=seed_of(
                Stream.AUGMENTATION, *place
            ),  # all processes draw alike for the whole batch
            network_seed=seed_of(Stream.NETWORK, *place, self.rank),
        )

    def means(self) -> tuple[float, float]:
        """Loss and accuracy of this process's faces so far in the epoch. Waits for the device."""
        loss, right = self.learn.record.sum(0).tolist()
        faces = min(self.step * self.cfg.train.batch_size, len(self.images)) / self.world
        return loss / faces, right / faces

    def after_step(self, signals: Signals) -> None:
        """Warn of a long training, save every few minutes, end after a signal; several processes do
        so together.
        """
        if self.run and self.epoch == 0 and self.step == min(20, self.steps):
            self.means()  # waits until the steps are done
            faces = min(self.step * self.cfg.train.batch_size, len(self.images))
            rate = faces / self.watch.seconds
            warn_if_long(len(self.images) * self.cfg.train.epochs, rate, self.device)
        due = time.perf_counter() - self.saved > SAVE_EVERY
        caught = signals.caught
        if self.world > 1:
            if self.step % AGREE_EVERY:
                return
            caught, due = self.agree(caught, due)
        if caught or due:
            self.save()
        if caught:
            raise Interrupted(caught)

    def end_epoch(self, signals: Signals) -> None:
        """Save, unless that was just done; end after a signal."""
        due = self.done or time.perf_counter() - self.saved > SAVE_PAUSE
        caught, due = self.agree(signals.caught, due)
        if caught or due:
            self.save()
        if caught:
            raise Interrupted(caught)

    def agree(self, caught: int, due: bool) -> tuple[int, bool]:
        """A signal that any process has caught, and whether any of them is due to save."""
        caught, due = over_processes(torch.tensor([caught, due]), "max").tolist()
        return caught, bool(due)

    def validate(self) -> None:
        """End an epoch: measure, note the row, keep the weights if they are the best so far."""
        row, logits = self.measure()
        self.check_weights()
        self.history.append(row)
        better = self.best is row
        if self.run:
            if better:
                self.keep_best(row, logits)
            write_history(self.run, self.history)
            if self.writer:
                tensorboard.note(self.writer, row)
            print(epoch_line(row, self.cfg.train.epochs, better), flush=True)
            self.tell_one_class(logits)

    def tell_one_class(self, logits: Tensor) -> None:
        """Say so, and why that may be, when all validation faces begin to be given one class."""
        given = logits.argmax(1).unique().tolist()
        one = (
            self.classes[given[0]]
            if len(given) == 1 and len(self.val_labels.unique()) > 1
            else None
        )
        if one and one != self.one_class:
            print(one_class_lines(one, self.rate(self.steps - 1)), flush=True)
        self.one_class = one

    def keep_best(self, row: dict[str, Any], logits: Tensor) -> None:
        """Remember the weights for best.pt, which save() writes."""
        weights = self.eval_network.model.state_dict()
        self.best_weights = {
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "model": {name: tensor.detach().clone() for name, tensor in weights.items()},
            "validation": {
                "logits": logits.cpu(),
                "labels": self.val_labels.cpu(),
                "images": self.val_hash,
            },
        }

    def measure(self) -> tuple[dict[str, Any], Tensor]:
        """The epoch's row of the history, curves as at its last step, and the logits of the
        validation faces.
        """
        loss, right = (
            self.read_record().sum(0).tolist()
        )  # waits for the device, so the clock counts its work
        training_seconds = self.watch.seconds
        self.work.seconds += training_seconds - self.watch.before
        logits = torch.zeros(len(self.val_images), len(self.classes), device=self.device)
        if self.rank == 0:  # one process validates, all know the result: they must stop together
            logits = self.eval_network.logits(self.val_images, EVAL_BATCH, self.computed_in)
        logits = over_processes(logits, "sum")
        matrix = metrics.confusion(logits.argmax(1), self.val_labels, len(self.classes)).cpu()
        values = {
            name: self.curves[name][1] * factor
            for name, factor in self.factors(self.steps - 1).items()
        }
        recalls = metrics.per_class(matrix)[1].tolist()
        row = {
            "epoch": self.epoch + 1,
            "lr": values.pop("lr"),
            "train_loss": loss / len(self.images),
            "train_accuracy": right / len(self.images),
            "val_loss": F.cross_entropy(logits, self.val_labels).item(),
            "val_accuracy": metrics.accuracy(matrix),
            "val_macro_f1": metrics.macro_f1(matrix),
            "seconds": self.watch.seconds,
            "images_per_second": len(self.images) / max(training_seconds, 1e-9),
            **values,
        }
        if self.cfg.train.tencrop and self.rank == 0:
            row["val_accuracy_tencrop"] = self.tencrop_accuracy()
        row |= {
            f"val_recall_{name}": recall for name, recall in zip(self.classes, recalls, strict=True)
        }
        if not math.isfinite(row["val_loss"]):
            self.refuse_weights()
        return row, logits

    def tencrop_accuracy(self) -> float:
        """Validation accuracy over ten crops."""
        found = probabilities(
            self.eval_network, self.val_images, EVAL_BATCH, "tencrop", self.computed_in
        )
        return (found.argmax(1) == self.val_labels.cpu()).double().mean().item()

    def read_record(self) -> Tensor:
        """The losses and right answers of the epoch's steps so far, float64 on the CPU, over all
        processes. Waits for the device. A loss that is not finite is refused.
        """
        record = over_processes(self.learn.record.cpu(), "sum")[: self.step]
        bad = (~record[:, 0].isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise UserError(
                f"epoch {self.epoch + 1}, step {step + 1} of {self.steps}: the loss became NaN or "
                "infinite "
                f"(learning rate {self.rate(step):.3g}); try a lower optim.lr, train.clip=1, "
                "schedule.warmup=1 or "
                "train.precision=fp32"
            )
        return record.double()

    def rate(self, step: int) -> float:
        return self.cfg.optim["lr"] * self.factors(step)["lr"]

    def check_weights(self) -> None:
        """Refuse weights that are not finite: neither last.pt nor best.pt ever holds any."""
        tensors = [*self.network.state_dict().values(), *self.eval_network.state_dict().values()]
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if not nn.utils.get_total_norm(floats, norm_type=math.inf).isfinite():
            self.refuse_weights()

    def refuse_weights(self) -> None:
        epoch, step = self.epoch + 1, self.step
        if step == 0:  # the epoch before has just ended
            epoch, step = self.epoch, self.steps
        raise UserError(
            f"epoch {epoch}, step {step} of {self.steps}: the weights became NaN or infinite "
            "(learning rate "
            f"{self.rate(step - 1):.3g}); nothing was saved since; try a lower optim.lr, "
            "train.clip=1 or "
            "schedule.warmup=1"
        )

    def save(self) -> None:
        """best.pt, if it is due, and last.pt: the weights and all that a resume needs."""
        record = self.read_record()
        self.check_weights()
        self.saved = time.perf_counter()
        if not self.run:
            return
        if self.best_weights:
            save_checkpoint(self.run / "best.pt", self.cfg, self.eval_network, **self.best_weights)
            self.best_weights = None
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.watch.seconds,
            "record": record,
            "history": self.history,
            "best": self.best["val_accuracy"],
            "best_epoch": self.best["epoch"],
            "faces": self.faces,
            "computed_in": self.computed_in,
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
        }
        if self.average:
            state["average"] = self.average.state_dict()
        save_checkpoint(self.run / "last.pt", self.cfg, self.network, training=state)
        self.saved_once = True

    def load(self, contents: dict, path: Path) -> None:
        """Continue where the last.pt at `path`, which has these contents, stopped."""
        load_weights(self.network.model, contents["model"], path)
        try:
            self.restore(contents["training"], path)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            raise UserError(
                f"{path}: its training state does not fit its config; the file was changed"
            ) from None

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take over what save() put into last.pt. Earlier versions saved no faces, no scaler and no
        format.
        """
        if state.get("faces", self.faces) != self.faces:
            raise UserError(
                f"{path}: was trained on other faces or labels; name these, or start anew elsewhere"
            )
        self.history = list(state["history"])
        self.step, self.watch = int(state["step"]), Stopwatch(float(state["seconds"]))
        if not (
            state["epoch"] == self.epoch >= self.best["epoch"] and 0 <= self.step <= self.steps
        ):
            raise ValueError
        if self.epoch > self.cfg.train.epochs:
            done = f"{self.epoch} epochs are done, more than train.epochs={self.cfg.train.epochs}"
            raise UserError(f"resume={path.parent}: {done}; set it higher")
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        before = state.get("computed_in", self.computed_in)
        if before != self.computed_in and self.rank == 0:
            print(f"trained in {before} so far, continues in {self.computed_in}", flush=True)
        if self.rank == 0:  # the processes' records are added up
            record = state["record"] if "record" in state else state["sums"][None, :2]
            self.learn.record[: len(record)] = record.to(self.device, torch.float32)


class Stopwatch:
    """The seconds of an epoch, also over an interruption."""

    def __init__(self, before: float = 0.0):
        self.before = before
        self.began: float | None = None

    def start(self) -> None:
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        if self.began is None:
            return self.before
        return self.before + time.perf_counter() - self.began


class Work:
    """What this process has trained so far: faces by the side of the images, and seconds."""

    def __init__(self) -> None:
        self.faces: Counter[int] = Counter()
        self.seconds = 0.0

    def speed(self, model: nn.Module) -> tuple[float, float]:
        """Images per second, and floating-point operations per second of the convolutions and dense
        layers: two a multiply-add, and the backward pass takes two of the forward pass's.
        """
        operations = sum(
            3 * 2 * multiply_adds(model, side) * faces for side, faces in self.faces.items()
        )
        return self.faces.total() / self.seconds, operations / self.seconds


def build_optimizer(node: dict, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that a checked node describes. One that cannot make a plain step is refused
    before any work.
    """
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros(2, 2)
    trial = config.build("optim", node, params=[parameter])
    try:
        trial.step()
    except (
        Exception
    ) as error:  # whatever an optimizer raises that needs a closure or sparse gradients
        reason = str(error).splitlines()[0]
        raise UserError(
            f"optim._target_={node['_target_']}: cannot train these networks ({reason}); choose "
            "optim=adam, sgd or muon"
        ) from None
    options = {}
    if device.type == "cuda":
        if "capturable" in node:
            options["capturable"] = True
        unset = node.get("fused", False) is None and node.get("foreach") is None
        if unset and isinstance(trial, torch.optim.SGD | torch.optim.Adam):
            options["fused"] = True
    return config.build("optim", node | options, params=model.parameters())


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state, learning rates as plain numbers: they are tensors while steps are captured."""
    state = optimizer.state_dict()
    state["param_groups"] = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state. How a step is computed is this device's choice, not that of the one
    that saved it.
    """
    groups = []
    for saved, present in zip(state["param_groups"], optimizer.param_groups, strict=True):
        own = {key: present[key] for key in ("fused", "foreach", "capturable") if key in present}
        groups.append(saved | own)
    optimizer.load_state_dict(state | {"param_groups": groups})


def start_from(model: nn.Module, path: str, normalize: str | None) -> None:
    """Copy the weights of the checkpoint at `path`, which must know faces scaled so; the last layer
    keeps its own where its classes are others.
    """
    contents = load_checkpoint(find_checkpoint(path))
    if (kind := contents["normalization"]["kind"]) != normalize and normalize:
        raise UserError(
            f"start={path}: learned by data.normalize={kind}, not {normalize}; take "
            f"data.normalize={kind}"
        )
    weights, own = contents["model"], model.state_dict()
    last = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ][-1]
    if len(contents["classes"]) != len(own[f"{last}.weight"]):
        weights |= {name: value for name, value in own.items() if name.startswith(f"{last}.")}
    load_weights(model, weights, f"start={path}", "this model; train one of the same model=")


def why_still(name: str, model: nn.Module) -> str:
    """Why a curve over `name` would drive nothing, and what would change that, if anything can."""
    if name == "size":
        return f"this model takes {model.size}×{model.size} pixels only; "
    if name == "dropout":
        return "this model has no dropout, or at a rate of 0; give it one, or "
    return f"augment.{name} is off; set it, or "


def build_curves(
    cfg: config.TrainConfig, augment: Augment, model: nn.Module
) -> dict[str, tuple[Curve, float]]:
    """Name → (curve, what its factor multiplies): the rate, the largest dropout, the images' side,
    an augmentation's own number (of crop and the two mixings a share). A curve that would drive
    nothing is refused.
    """
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    sizes: dict[str, Any] = {"dropout": max(dropouts, default=0.0)}
    sizes["size"] = model.size if getattr(model, "any_size", False) else 0
    sizes |= {name: getattr(augment, name) for name in STRENGTHS}
    curves = {"lr": (config.build("schedule", cfg.schedule), cfg.optim["lr"])}
    for name, node in cfg.curves.items():
        if name not in sizes:
            raise UserError(
                f"curves.{name}: drives nothing; there are {', '.join(sizes)} (the rate's is "
                "schedule)"
            )
        if not sizes[name]:
            raise UserError(
                f"curves.{name}: {why_still(name, model)}remove the curve with curves.{name}=null"
            )
        size = 1.0 if name in SHARES else sizes[name]
        curves[name] = (config.build("schedule", node or {}, f"curves.{name}"), size)
    return curves


@runtime.others_named()
def run(values: dict, typed: dict[str, str]) -> float:
    """Train as the composed `values` say; returns the best validation accuracy, for sweeps that
    optimize it.

    typed: each key given on the command line, and its words.
    """
    runs = runs_of_sweep(values.get("resume"))
    if runs:
        return resume_sweep(runs, values, typed)
    return run_one(values, typed)


def runs_of_sweep(named: str | None) -> list[Path]:
    """The run folders in the sweep folder that `resume` names, by number; none where it names a
    run.
    """
    folder = Path(named or "")
    if not named or not folder.is_dir() or (folder / "last.pt").exists():
        return []
    found = [path.parent for path in folder.glob("*/last.pt") if path.parent.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def resume_sweep(runs: list[Path], values: dict, typed: dict[str, str]) -> float:
    """Resume each run of a sweep in turn; returns the best accuracy of all. What is refused of one
    does not stop the others; a signal stops all.
    """
    accuracies, refusals = [], []
    for folder in runs:
        try:
            accuracies.append(run_one(values | {"resume": str(folder)}, typed))
        except UserError as error:
            refusals.append(str(error))
    if refusals:
        raise UserError("\nfer: ".join(refusals))
    return max(accuracies)


def run_one(values: dict, typed: dict[str, str]) -> float:
    """One training, new or resumed."""
    saved = None
    if values.get("resume"):
        values, saved = resumed(values, list(typed))
    cfg = config.check("train", values)
    device = runtime.pick_device(cfg.device)
    if cfg.tensorboard:
        tensorboard.require()
    with (
        runtime.processes_left(),
        runtime.memory_named(device, f"train.batch_size={cfg.train.batch_size}"),
    ):
        trainer = Trainer(cfg, device, saved=saved)
        del saved  # as large as the network and the optimizer
        trainer.typed = list(typed.values())
        if trainer.rank:  # the first process has the run folder, and speaks
            trainer.fit()
        else:
            fit_and_say(trainer)
    return trainer.best["val_accuracy"]


def fit_and_say(trainer: Trainer) -> None:
    """Train, then say what was reached and what comes next; after a signal, how to continue."""
    try:
        fit(trainer)
    except Interrupted:
        again = f"fer train resume={shlex.quote(str(trainer.run))}"
        print(f"stopped; everything so far is in {trainer.run}; go on with\n  {again}")
        raise
    folder, accuracy, epoch = trainer.run, trainer.best["val_accuracy"], trainer.best["epoch"]
    held = [
        name for name in ("best.pt", "last.pt", "history.csv") if Path(str(folder), name).is_file()
    ]
    print(
        f"best validation accuracy {accuracy:.4f} after epoch {epoch}; {folder} holds "
        f"{', '.join(held)}"
    )
    if "best.pt" not in held:
        print(
            f"best.pt was removed after epoch {epoch}, and no later epoch was better; last.pt has "
            "the last weights"
        )
    if trainer.work.seconds:
        images, operations = trainer.work.speed(trainer.network.model)
        print(
            f"trained at {images:,.0f} images/s, {operations / 1e12:.3g} TFLOP/s in "
            f"{trainer.computed_in}"
        )
    run, ckpt = shlex.quote(str(folder)), shlex.quote(f"{folder}/{held[0]}")
    judge = f"evaluate ckpt={ckpt}"
    if trainer.unlabelled:
        sample = f" sample={shlex.quote(trainer.sample)}" if trainer.sample else ""
        judge = f"predict ckpt={ckpt}{sample} out=submission.csv"
    print(f"next:\n  fer report run={run}\n  fer {judge}")


def fit(trainer: Trainer) -> None:
    """Train in the run folder that the config names: a new one, or one that is resumed."""
    cfg, device = trainer.cfg, trainer.device
    folder = Path(cfg.resume) if cfg.resume else create(cfg.run, cfg.name)
    with lock(folder), none_left(trainer, folder):
        if cfg.resume:
            write_history(folder, trainer.history)
            print(where_it_continues(trainer, folder), flush=True)
        trainer.run, cfg.run, cfg.resume = folder, str(folder), None
        if cfg.tensorboard:
            trainer.writer = tensorboard.open_writer(folder, trainer.epoch + 1)
            trainer.writer.add_text("config", f"```\n{config.dump(cfg)}```")
        write_text(folder / "config.yaml", config.dump(cfg))
        rewrite_settings(folder / "best.pt", cfg)  # reports group runs by it
        machine = runtime.describe(device, trainer.computed_in)
        write_environment(folder, trainer.data_hash, trainer.typed, machine)
        parameters = sum(p.numel() for p in trainer.network.parameters())
        print(
            f"{cfg.name}, {parameters:,} parameters, {len(trainer.images)} faces to train, "
            f"{len(trainer.val_images)} "
            f"to validate, {device.type}, {trainer.computed_in}, {folder}",
            flush=True,
        )
        for line in warnings_of(cfg, trainer):
            print(line, flush=True)
        trainer.fit()


def where_it_continues(trainer: Trainer, folder: Path) -> str:
    """At which step a resumed training continues or, where it is done, how to train longer."""
    if not trainer.done:
        return f"{folder}: goes on at epoch {trainer.epoch + 1}, step {trainer.step + 1}"
    again, settings = f"fer train resume={shlex.quote(str(folder))}", trainer.cfg.train
    if trainer.epoch >= settings.epochs:
        longer = f"{again} train.epochs={2 * settings.epochs}"
        return (
            f"{folder}: training is complete, {trainer.epoch} of {settings.epochs} epochs; to "
            f"train longer:\n  {longer}"
        )
    longer = f"{again} train.patience=null"
    stalled = f"{settings.patience} epochs without a better one (train.patience)"
    return (
        f"{folder}: training ended after epoch {trainer.epoch}, {stalled}; to train longer:\n  "
        f"{longer}"
    )


@contextlib.contextmanager
def none_left(trainer: "Trainer", folder: Path) -> Iterator[None]:
    """Within the context a new training that fails before its first save leaves no folder: it could
    not be resumed.
    """
    new = not trainer.cfg.resume
    try:
        yield
    except UserError:
        if new and not trainer.saved_once:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def warnings_of(cfg: config.TrainConfig, trainer: Trainer) -> list[str]:
    """What is likely not meant, a line each."""
    lines = []
    for key, node in ({"schedule": cfg.schedule} | cfg.curves).items():
        last = (node or {}).get("epochs", [0])[-1]
        if last > cfg.train.epochs:
            lines.append(
                f"{key}: its knots extend to epoch {last:g}, but training stops at "
                f"{cfg.train.epochs}"
            )
    if trainer.absent:
        lines.append(
            f"no faces of {', '.join(trainer.absent)} to train on: the network cannot learn them"
        )
    crop, size = trainer.augment.crop, trainer.network.model.size
    if crop and crop < size:
        lines.append(
            f"augment.crop={crop}: crops are enlarged {size / crop:.2g} times to the model's "
            f"{size} pixels, but whole "
            f"faces validate; model.size={crop} trains and validates at one scale"
        )
    if cfg.data.get("validation") == "test":
        lines.append(
            "data.validation=test: the test faces select the epoch here, so their accuracy says "
            "nothing of new faces"
        )
    return lines


# What names a place or a device, and changes nothing of a training.
PLACES = {"run", "resume", "device", "data.path", "data.votes"}


def train_in(folder: Path, cfg: config.TrainConfig, device: torch.device, data: Data) -> float:
    """The best validation accuracy of a training on `data` in `folder`: begun, gone on with or,
    where it is done, only loaded.
    """
    own = config.TrainConfig(**{key: getattr(cfg, key) for key in config.TrainConfig.model_fields})
    own.run, last = str(folder), folder / "last.pt"
    contents = None
    if last.is_file():
        contents = load_checkpoint(last)
        differences = config.difference(
            config.parse(contents["config"], str(last)), own.model_dump()
        )
        changed = [line for key, line in differences.items() if key not in PLACES]
        if changed:
            raise UserError(
                f"{folder}: was trained with other settings ({'; '.join(changed)}); name another "
                "out="
            )
        own.resume = own.run
    with runtime.memory_named(device, f"train.batch_size={cfg.train.batch_size}"):
        trainer = Trainer(own, device, data, contents)
        del contents  # as large as the network and the optimizer
        if not trainer.done:
            fit(trainer)
    return trainer.best["val_accuracy"]
