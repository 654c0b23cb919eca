"""The training loop: epochs of steps, a validation after each, and saves in between.

step.py runs one step, state.py saves and restores what a resume needs, recorder.py writes the run
folder.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer import CLASSES, UserError, config, metrics, runtime
from fer.augment import Augment
from fer.checkpoint import BUILTIN, BUILTIN_MODEL, find_checkpoint, load_checkpoint, load_weights
from fer.data.faces import Data
from fer.inference import probabilities
from fer.layer_table import without_weights
from fer.models.layers import schedule_dropout
from fer.models.network import backbone, last_layer
from fer.optim import Average
from fer.progress import Progress, warn_if_long
from fer.runtime import Interrupted, Signals, Stream, all_reduce, seed_of
from fer.training import state
from fer.training.batches import TrainingFaces, epoch_batches
from fer.training.clock import Stopwatch, Throughput
from fer.training.curves import Driven, build_curves
from fer.training.objective import Objective, balanced_weights
from fer.training.optimizer_setup import build_optimizer
from fer.training.plan import Plan
from fer.training.recorder import Recorder
from fer.training.step import CapturedStep, Parts, Step, can_capture

SAVE_EVERY = 300  # seconds between saves inside an epoch
SAVE_PAUSE = 5  # seconds at least between saves at the ends of epochs: last.pt of vgg13 has 130 MB
AGREE_EVERY = 10  # steps after which several processes ask one another about signals and saves
EVAL_BATCH = 512  # faces


class Trainer:
    """One training run, new or resumed.

    During the run, these change: the weights, the optimizer, `history`; and within an epoch `step`,
    `watch` and the record of the steps. state.py saves exactly these.
    """

    def __init__(
        self,
        cfg: config.TrainConfig,
        device: torch.device,
        data: Data | None = None,
        saved: dict | None = None,
    ):
        """data: replaces the config's. saved: contents of cfg.resume's last.pt, if already read."""
        self.cfg = cfg
        self.device = device
        self.recorder: Recorder | None = None  # without one nothing is written or printed
        self.rank, self.world = runtime.join_processes(device)
        if cfg.train.batch_size < 2 * self.world and self.world > 1:
            raise UserError(
                f"train.batch_size={cfg.train.batch_size}: too small for {self.world} processes; "
                f"each needs two faces of a batch, so set at least {2 * self.world}"
            )
        if cfg.train.freeze and self.world > 1:
            raise UserError(
                f"train.freeze={cfg.train.freeze}: not possible with several processes; leave it "
                "out, or train with one"
            )
        if cfg.train.compile and self.world > 1:
            raise UserError(
                "train.compile=true: not possible with several processes; leave it out, or train "
                "with one"
            )
        self.computed_in = runtime.choose_format(device, cfg.train.precision)
        built = self.build()
        # Reading the data takes long, so what can be refused quickly comes first.
        data = data or config.build("data", cfg.data)
        if fit_outputs(cfg, data.classes) or cfg.start:
            built = self.build(data.classes)
        drop_copies = cfg.train.copies == "drop"
        self.faces = TrainingFaces.load(data, device, drop_copies, built.augment.crop)
        if cfg.start:
            earlier = Path(cfg.resume) / "last.pt" if cfg.resume else find_checkpoint(cfg.start)
            self.faces = self.faces.and_those_of(saved or load_checkpoint(earlier))
        self.network = self.faces.network(built.model)
        self.average = Average(built.model, cfg.train.ema) if cfg.train.ema else None
        self.eval_network = self.network
        if self.average:
            self.eval_network = self.faces.network(self.average.module)
        self.optimizer = built.optimizer
        self.start = built.start
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.computed_in == "fp16")

        self.history: list[dict[str, Any]] = []  # one row an epoch
        self.steps = len(self.batches(0))
        self.plan = Plan(
            curves=built.curves,
            augment=built.augment,
            seed=cfg.seed,
            epochs=cfg.train.epochs,
            steps=self.steps,
            side=built.model.size,
            rank=self.rank,
        )
        self.step_function = self.make_step(built)
        self.throughput = Throughput(built.augment.crops)
        self.saved_at = time.perf_counter()
        self.reset_epoch()
        if cfg.resume:
            path = Path(cfg.resume) / "last.pt"
            state.restore(self, saved or load_checkpoint(path), path)

    def build(self, classes: Sequence[str] | None = None) -> "Built":
        """Build what the config describes, except the data. classes: of the data; None: unknown."""
        cfg = self.cfg
        torch.manual_seed(seed_of(Stream.WEIGHTS, cfg.seed))
        # A resumed run has its weights; the file that it started from may be gone.
        node = without_weights(cfg.model) if cfg.resume else cfg.model
        model = config.build("model", node).to(self.device)
        start = ""
        if cfg.start and not cfg.resume:
            start = start_from(model, cfg.start, cfg.data.get("normalize"), classes)
        if cfg.train.channels_last:
            model.to(memory_format=torch.channels_last)
        augment = config.build("augment", cfg.augment)
        optimizer = build_optimizer(cfg.optim, model, self.device, cfg.train.backbone_lr)
        return Built(model, augment, optimizer, build_curves(cfg, augment, model), start)

    def make_step(self, built: "Built") -> Step:
        """The function that learns from a batch: from CUDA graphs if they are possible."""
        settings, faces, model = self.cfg.train, self.faces, built.model
        parts = Parts(
            device=self.device,
            images=faces.images,
            targets=faces.targets,
            augment=built.augment,
            network=self.network,
            model=DistributedDataParallel(model) if self.world > 1 else model,
            objective=build_objective(settings, faces, self.device),
            optimizer=self.optimizer,
            scaler=self.scaler,
            computed_in=self.computed_in,
            batch_size=settings.batch_size,
            compiled=torch.compile(model) if settings.compile else None,
            average=self.average,
            clip=settings.clip,
            dropouts=schedule_dropout(model) if "dropout" in built.curves else [],
            rank=self.rank,
            world=self.world,
        )
        capture = can_capture(faces.images, self.world, self.computed_in, self.optimizer)
        if capture and settings.cuda_graphs:
            return CapturedStep(parts, self.steps)
        return Step(parts, self.steps)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the most accurate epoch, the earlier of equals."""
        none_yet = {"epoch": 0, "val_accuracy": -1.0}
        return max(self.history, key=itemgetter("val_accuracy"), default=none_yet)

    @property
    def done(self) -> bool:
        if self.epoch >= self.cfg.train.epochs:
            return True
        patience = self.cfg.train.patience
        return patience is not None and self.epoch - self.best["epoch"] >= patience

    def fit(self) -> None:
        """Train to the last epoch, or until patience ends. Raises Interrupted after a signal, with
        everything saved.
        """
        with runtime.kernels(self.device, self.cfg.deterministic), Signals() as signals:
            try:
                self.save()  # from here on a killed run can be resumed
                while not self.done:
                    self.train_epoch(signals)
                    self.validate()
                    self.reset_epoch()
                    self.save_if_due(signals)
            except BaseException:
                self.keep_best_weights()
                raise
        if signals.caught:
            raise Interrupted(signals.caught)

    def reset_epoch(self) -> None:
        self.step = 0
        self.watch = Stopwatch()
        self.step_function.record.zero_()

    def train_epoch(self, signals: Signals) -> None:
        batches = self.batches(self.epoch)
        settings = self.plan.settings(self.epoch, self.accuracies)
        self.network.train()
        if self.cfg.train.freeze:
            self.freeze_backbone(self.epoch < self.cfg.train.freeze)
        self.watch.start()
        with (
            self.progress_bar() as bar,
            self.step_function.epoch(settings, self.step),
            self.tracer() as trace,
        ):
            to_do = zip(batches[self.step :], settings[self.step :], strict=True)
            for batch, step_settings in to_do:
                self.step_function(batch, step_settings)
                self.step += 1
                self.throughput.faces[step_settings.side] += len(batch)
                bar.note(len(batch), self.means)
                trace()
                self.after_step(signals)

    def freeze_backbone(self, frozen: bool) -> None:
        """Train only the last layer, or all layers. BatchNorm keeps averaging its inputs."""
        self.step_function.frozen = frozen
        for parameter in backbone(self.network.model):
            parameter.requires_grad_(not frozen)

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """The positions of an epoch's batches, int64 on the device."""
        settings = self.cfg.train
        return epoch_batches(
            self.faces, self.cfg.seed, epoch, settings.batch_size, settings.sampling, self.world
        )

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracies so far, one an epoch."""
        return [row["val_accuracy"] for row in self.history]

    @property
    def faces_done(self) -> int:
        """How many faces of the epoch have been trained on."""
        return min(self.step * self.cfg.train.batch_size, len(self.faces))

    def progress_bar(self) -> Progress:
        return Progress(
            epoch=self.epoch,
            epochs=self.cfg.train.epochs,
            faces=len(self.faces),
            done=self.faces_done,
            shown=self.recorder is not None,
            epoch_seconds=self.history[-1]["seconds"] if self.history else None,
        )

    def tracer(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """With profile=true, a trace of ten steps of the second epoch, or of the only one."""
        traced_epoch = min(1, self.cfg.train.epochs - 1)
        if self.cfg.profile and self.recorder and self.epoch == traced_epoch:
            return runtime.profile(self.recorder.folder / "trace.json")
        return contextlib.nullcontext(lambda: None)

    def means(self) -> tuple[float, float]:
        """Loss and accuracy over this process's faces so far in the epoch. Waits for the device."""
        loss, right = self.step_function.record.sum(0).tolist()
        faces = self.faces_done / self.world
        return loss / faces, right / faces

    def after_step(self, signals: Signals) -> None:
        """Warn of a long training, save every few minutes, stop after a signal. Several processes
        do so together.
        """
        if self.recorder and self.epoch == 0 and self.step == min(20, self.steps):
            self.means()  # waits until the steps are done
            faces_per_second = self.faces_done / self.watch.seconds
            faces_in_all = len(self.faces) * self.cfg.train.epochs
            warn_if_long(faces_in_all, faces_per_second, self.device)
        if self.world > 1 and self.step % AGREE_EVERY:
            return
        due = time.perf_counter() - self.saved_at > SAVE_EVERY
        self.save_or_stop(signals.caught, due)

    def save_if_due(self, signals: Signals) -> None:
        """At the end of an epoch: save, unless that was just done; stop after a signal."""
        due = self.done or time.perf_counter() - self.saved_at > SAVE_PAUSE
        self.save_or_stop(signals.caught, due)

    def save_or_stop(self, caught: int, due: bool) -> None:
        """Save if any process is due or has caught a signal, and stop in the latter case."""
        if self.world > 1:
            caught, due = all_reduce(torch.tensor([caught, due]), "max").tolist()
        if caught or due:
            self.save()
        if caught:
            raise Interrupted(caught)

    def validate(self) -> None:
        """End an epoch: measure, add the row to the history, keep the weights if they are best."""
        row, logits = self.measure()
        self.check_weights()
        if not math.isfinite(row["val_loss"]):
            self.stop_diverged("validation loss became NaN or infinite, with finite weights")
        self.history.append(row)
        if self.recorder:
            is_best = self.best["epoch"] == row["epoch"]
            if is_best:
                self.recorder.keep_best(row, self.eval_network, logits, self.faces)
            self.recorder.note_epoch(self.history, is_best)
            self.recorder.warn_if_one_class(logits, self.faces.val_labels, self.faces.classes)

    def measure(self) -> tuple[dict[str, Any], Tensor]:
        """The epoch's row of the history, and the logits of the validation faces. Learning rate and
        other scheduled values are those of the last step.
        """
        # Reading the record waits for the device, so the clock counts its work.
        loss, right = self.checked_record().sum(0).tolist()
        training_seconds = self.watch.seconds
        self.throughput.seconds += training_seconds - self.watch.before
        logits = self.validation_logits()
        labels = self.faces.val_labels
        matrix = metrics.confusion(logits.argmax(1), labels, len(self.faces.classes)).cpu()
        values = self.plan.values(self.epoch, self.steps - 1, self.accuracies)
        row = {
            "epoch": self.epoch + 1,
            "lr": values.pop("lr"),
            "train_loss": loss / len(self.faces),
            "train_accuracy": right / len(self.faces),
            "val_loss": F.cross_entropy(logits, labels).item(),
            "val_accuracy": metrics.accuracy(matrix),
            "val_macro_f1": metrics.macro_f1(matrix),
            "seconds": self.watch.seconds,
            "images_per_second": len(self.faces) / max(training_seconds, 1e-9),
            **values,
        }
        if self.cfg.train.tencrop and self.rank == 0:
            row["val_accuracy_tencrop"] = self.tencrop_accuracy()
        recalls = metrics.per_class(matrix)[1].tolist()
        for name, recall in zip(self.faces.classes, recalls, strict=True):
            row[f"val_recall_{name}"] = recall
        return row, logits

    def validation_logits(self) -> Tensor:
        """One process validates and shares the result, so that all processes stop together."""
        faces = self.faces
        logits = torch.zeros(len(faces.val_images), len(faces.classes), device=self.device)
        if self.rank == 0:
            logits = self.eval_network.logits(faces.val_images, EVAL_BATCH, self.computed_in)
        return all_reduce(logits, "sum")

    def tencrop_accuracy(self) -> float:
        """Validation accuracy over ten crops."""
        images, labels = self.faces.val_images, self.faces.val_labels.cpu()
        mean = probabilities(self.eval_network, images, EVAL_BATCH, "tencrop", self.computed_in)
        return (mean.argmax(1) == labels).double().mean().item()

    def checked_record(self) -> Tensor:
        """Losses and right answers of the epoch's steps so far, float64 on the CPU, over all
        processes. Waits for the device. Raises UserError for a loss that is not finite.
        """
        record = all_reduce(self.step_function.record.cpu(), "sum")[: self.step]
        diverged = (~record[:, 0].isfinite()).nonzero()
        if len(diverged):
            self.stop_diverged("loss became NaN or infinite", int(diverged[0]) + 1)
        return record.double()

    def check_weights(self) -> None:
        """Refuse weights that are not finite: neither last.pt nor best.pt ever holds any."""
        tensors = [*self.network.state_dict().values(), *self.eval_network.state_dict().values()]
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if not nn.utils.get_total_norm(floats, norm_type=math.inf).isfinite():
            self.stop_diverged("weights became NaN or infinite")

    def stop_diverged(self, what: str, step: int | None = None) -> NoReturn:
        """Raise UserError: `what` was found after a step of this epoch.

        step: counted from 1; None: the last step that was run.
        """
        if step is None:
            step = self.step
        if not self.history and not step:
            raise UserError(
                "the model's weights are NaN or infinite before the first step; change how it "
                "initializes them"
            )
        epoch = self.epoch
        if step == 0:  # the epoch before has just ended
            epoch, step = self.epoch - 1, self.steps
        learning_rate = self.plan.values(epoch, step - 1, self.accuracies[:epoch])["lr"]
        saved = ", and last.pt is from before that" if self.recorder else ""
        raise UserError(
            f"epoch {epoch + 1}, step {step} of {self.steps}: {what} "
            f"(learning rate {learning_rate:.3g}){saved}; start a new run with a lower optim.lr, "
            "train.clip=1, schedule.warmup=1 or train.precision=fp32"
        )

    def save(self) -> None:
        """Write best.pt, if better weights are waiting, and last.pt."""
        record = self.checked_record()
        self.check_weights()
        self.saved_at = time.perf_counter()
        if self.recorder:
            self.recorder.save(self.network, state.collect(self, record), self.faces)

    def keep_best_weights(self) -> None:
        """After a failure: write best.pt if better weights are waiting."""
        if self.recorder:
            with contextlib.suppress(UserError):  # the disk may be full; the failure matters more
                self.recorder.save_best()


class Built(NamedTuple):
    """The objects that a config describes, besides the data.

    model: an nn.Module with a `size`. start: where its weights come from, in words.
    """

    model: Any  # a module and its own numbers, which mypy takes for modules too
    augment: Augment
    optimizer: torch.optim.Optimizer
    curves: dict[str, Driven]
    start: str


def build_objective(
    settings: config.Training, faces: TrainingFaces, device: torch.device
) -> Objective:
    """What a step minimizes. Raises UserError for settings that the data's mode does not allow."""
    balanced = settings.class_weights == "balanced"
    if faces.data.mode == "multi" and (settings.label_smoothing or balanced):
        raise UserError(
            "data.mode=multi: not possible with train.label_smoothing or train.class_weights; "
            "set train.label_smoothing=0 and train.class_weights=none"
        )
    class_weights = balanced_weights(faces.targets).to(device) if balanced else None
    return Objective(faces.data.mode, settings.label_smoothing, class_weights)


def fit_outputs(cfg: config.TrainConfig, classes: Sequence[str]) -> bool:
    """Give the config's model an output for each class of the data; returns whether that changed
    it. Raises UserError if the config asks for another number.
    """
    asked = cfg.model.get("classes", len(CLASSES))
    if asked == len(classes):
        return False
    if "classes" not in cfg.model:
        raise UserError(
            f"model._target_={cfg.model['_target_']}: has no parameter classes, and the data has "
            f"{len(classes)}; give it one"
        )
    if asked != len(CLASSES) or cfg.resume:
        raise UserError(
            f"model.classes={asked}: the data has {len(classes)} classes ({', '.join(classes)}); "
            "leave model.classes out, or name the data that the model was made for"
        )
    cfg.model = cfg.model | {"classes": len(classes)}
    return True


def start_from(
    model: nn.Module, path: str, normalize: str | None, classes: Sequence[str] | None = None
) -> str:
    """Copy the weights of the checkpoint at `path` into the model; the last layer keeps its own if
    the checkpoint has other classes. Returns what was copied, in words. Raises UserError if its
    faces were normalized differently.
    """
    contents = load_checkpoint(find_checkpoint(path))
    kind = contents["normalization"]["kind"]
    if normalize and kind != normalize:
        raise UserError(
            f"start={path}: was trained with data.normalize={kind}, not {normalize}; "
            f"set data.normalize={kind}"
        )
    weights = contents["model"]
    new_weights = model.state_dict()
    last, _ = last_layer(model)
    other_count = len(contents["classes"]) != len(new_weights[f"{last}.weight"])
    other_classes = other_count or (classes and contents["classes"] != list(classes))
    if other_classes:
        for name, value in new_weights.items():
            if name.startswith(f"{last}."):
                weights[name] = value
    fits = "this model; choose the model= and model.size= that it was trained with"
    if path == BUILTIN:
        fits += f": model={BUILTIN_MODEL}"
    load_weights(model, weights, f"start={path}", fits)
    if other_classes:
        return f"starts from {path}, with a new last layer for the classes of this data"
    return f"starts from {path}"
