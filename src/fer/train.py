"""fer train: the loop, and what surrounds it: history, checkpoints, resume, early stopping."""

import contextlib
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fer import UserError, config, metrics, tensorboard
from fer.augment import STRENGTHS, Augment
from fer.data.faces import Data
from fer.models.network import Network, Normalize
from fer.predict import probabilities
from fer.run import (
    create,
    load_checkpoint,
    load_weights,
    lock,
    save_checkpoint,
    write_csv,
    write_environment,
    write_text,
)
from fer.runtime import (
    Interrupted,
    Signals,
    autocast,
    be_deterministic,
    join_processes,
    memory_named,
    others_named,
    pick_device,
    seed_everything,
)
from fer.schedule import Curve

SAVE_EVERY = 300  # seconds between saves inside an epoch
EVAL_BATCH = 512  # faces
MAY_CHANGE = {"train.epochs", "train.patience", "device", "data.path"}  # on resume


class Trainer:
    """One training. What changes while it runs is named in STATE or held by the network and the optimizer."""

    STATE = ("epoch", "step", "seconds", "best", "best_epoch", "history")

    def __init__(self, cfg: config.TrainConfig, device: torch.device, data: Data | None = None):
        self.cfg, self.device, self.run = cfg, device, None  # without a run folder nothing is written or printed
        self.rank, self.world = join_processes(device)
        self.writer = None  # of TensorBoard
        if cfg.deterministic:
            be_deterministic()
        seed_everything(cfg.seed)
        model = config.build("model", cfg.model).to(device)
        if cfg.start and not cfg.resume:
            start_from(model, cfg.start)
        if cfg.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.augment = config.build("augment", cfg.augment)
        self.optimizer = config.build("optim", cfg.optim, params=model.parameters())
        self.curves = build_curves(cfg, self.augment, model)
        self.dropouts = [(module, module.p) for module in dropouts(model)]

        data = data or config.build("data", cfg.data)  # last: all that is quick to refuse has been checked
        self.data_hash = data.hash
        faces, held_out = data.open("train"), data.open("validation")
        if cfg.train.copies == "drop":
            faces = faces.take((~faces.among(held_out)).nonzero()[:, 0])
        if len(faces) < 2 or not len(held_out):
            raise UserError(f"{len(faces)} faces to train and {len(held_out)} to validate on are too few")
        self.network = Network(model, Normalize.fit(data.normalize, faces.images))
        self.several = DistributedDataParallel(self.network) if self.world > 1 else self.network
        self.average, self.judged = None, self.network  # what is validated and kept as best
        if cfg.train.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.train.ema), use_buffers=True)
            self.judged = Network(self.average.module, self.network.normalize)
        self.images = faces.images.to(device)
        own = F.one_hot(faces.labels, len(data.classes)).float() if faces.targets is None else faces.targets
        self.targets, self.mode, self.classes = own.to(device), data.mode, data.classes
        if self.mode == "multi" and (cfg.train.label_smoothing or cfg.train.class_weights != "none"):
            raise UserError("data.mode=multi: goes without train.label_smoothing and train.class_weights; set them off")
        self.weights = balanced_weights(self.targets) if cfg.train.class_weights == "balanced" else None
        self.val_images, self.val_labels = held_out.images.to(device), held_out.labels.to(device)
        self.val_hash = held_out.hash

        self.history: list[dict] = []  # one row an epoch
        self.best, self.best_epoch = -1.0, 0  # validation accuracy, and after how many epochs it was reached
        self.start_epoch(0)
        self.steps = len(self.batches())

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.seconds = epoch, 0, 0.0
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # losses, right answers, steps until a NaN

    def fit(self) -> None:
        """Train to the last epoch or until patience ends. Raises Interrupted after a signal, everything saved."""
        with Signals() as signals:
            self.save("last.pt")  # from here on a killed run can be resumed
            while self.epoch < self.cfg.train.epochs and not self.out_of_patience():
                self.train_epoch(signals)
                self.validate()
                self.start_epoch(self.epoch + 1)
                self.save("last.pt")

    def train_epoch(self, signals: Signals) -> None:
        network, batches, progress = self.several.train(), self.batches(), Progress(self)
        for batch in batches[self.step :]:
            seed_everything(self.cfg.seed, self.epoch, self.step)
            strength, side = self.follow_curves()
            images, targets = self.augment(self.images[batch], self.draw(self.targets[batch]), strength)
            if self.world > 1:  # the same faces as one process augments, of which each takes its part
                images, targets = images[self.rank :: self.world], targets[self.rank :: self.world]
                seed_everything(self.cfg.seed, self.epoch, self.step, self.rank)  # of dropout
            with autocast(self.device, self.cfg.train.precision):
                logits = network(images, side)
                loss = self.loss(logits, targets)
            self.optimizer.zero_grad()
            (loss * (len(images) * self.world / len(batch)) if self.world > 1 else loss).backward()
            if self.cfg.train.clip:
                nn.utils.clip_grad_norm_(network.parameters(), self.cfg.train.clip)
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(self.network.model)

            right = (logits.argmax(1) == targets.argmax(1)).sum()
            total = self.sums[0] + loss.detach() * len(images)
            self.sums = torch.stack([total, self.sums[1] + right, self.sums[2] + total.isfinite()])
            self.step += 1
            progress.update(len(batch))
            caught, due = self.agree(signals.caught or 0, progress.save_due())
            if caught or due:
                self.save("last.pt")
            if caught:
                raise Interrupted(caught)
        progress.close()

    def agree(self, *numbers: int) -> list[int]:
        """The largest that any process has of each number."""
        if self.world > 1:
            both = torch.tensor(numbers)
            dist.all_reduce(both, dist.ReduceOp.MAX)
            return both.tolist()
        return [*numbers]

    def whole_sums(self) -> torch.Tensor:
        """The sums over all processes, steps until a NaN those of the first to have one."""
        if self.world == 1:
            return self.sums
        found, steps = self.sums[:2].clone(), self.sums[2:].clone()
        dist.all_reduce(found)
        dist.all_reduce(steps, dist.ReduceOp.MIN)
        return torch.cat([found, steps])

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        """FER+'s mode `probability`: one class by the votes for each face, anew each time."""
        if self.mode != "probability":
            return targets
        return F.one_hot(torch.multinomial(targets, 1)[:, 0], targets.shape[1]).float()

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; in FER+'s mode `multi` that of the likeliest of the right classes."""
        if self.mode == "multi":
            return -(logits.log_softmax(1) + targets.log()).amax(1).mean()
        return F.cross_entropy(logits, targets, weight=self.weights, label_smoothing=self.cfg.train.label_smoothing)

    def batches(self) -> list[torch.Tensor]:
        """The epoch's positions, in an order that depends on (seed, epoch) alone. A last batch of one, or of fewer than
        two a process, joins the batch before it: BatchNorm cannot learn from one face."""
        seed_everything(self.cfg.seed, self.epoch)
        if self.cfg.train.sampling == "balanced":
            weights = balanced_weights(self.targets.cpu())[self.targets.argmax(1).cpu()]
            order = torch.multinomial(weights, len(self.images), replacement=True)
        else:
            order = torch.randperm(len(self.images))
        parts = list(order.split(self.cfg.train.batch_size))
        if len(parts) > 1 and len(parts[-1]) < max(2, 2 * self.world):
            parts[-2:] = [torch.cat(parts[-2:])]
        return [part.to(self.device) for part in parts]

    def factors(self, step: int) -> dict[str, float]:
        """Every curve's factor at a step of this epoch."""
        accuracies = [row["val_accuracy"] for row in self.history]
        time = self.epoch + step / self.steps
        return {name: curve(time, self.cfg.train.epochs, accuracies) for name, (curve, _) in self.curves.items()}

    def follow_curves(self) -> tuple[dict[str, float], int]:
        """Set rate and dropout for the coming step; returns the strength of the augmentations and the images' side."""
        factors = self.factors(self.step)
        rate, dropout, size = factors.pop("lr"), factors.pop("dropout", 1), factors.pop("size", 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.setdefault("initial_lr", group["lr"])
        for module, own in self.dropouts:
            module.p = own * dropout
        whole = self.network.model.size  # shrunk to multiples of 4, for two poolings at least
        return factors, whole if size == 1 else max(round(size * whole / 4), 1) * 4

    def validate(self) -> None:
        """End an epoch: measure, note the row, keep the weights if they are the best so far."""
        sums = self.whole_sums()
        self.check_finite(sums)
        start = time.perf_counter()
        if self.rank == 0:
            logits = self.judged.logits(self.val_images, EVAL_BATCH, self.cfg.train.precision)
        else:
            logits = torch.empty(len(self.val_images), len(self.classes), device=self.device)
        if self.world > 1:  # one judges, all know: they must stop together
            dist.broadcast(logits, 0)
        matrix = metrics.confusion(logits.argmax(1), self.val_labels, len(self.classes)).cpu()
        loss, right, _ = (sums / len(self.images)).tolist()
        values = {name: self.curves[name][1] * factor for name, factor in self.factors(self.steps - 1).items()}
        crops = {"val_accuracy_tencrop": self.tencrop_accuracy()} if self.cfg.train.tencrop and self.rank == 0 else {}
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "lr": values.pop("lr"),
                "train_loss": loss,
                "train_accuracy": right,
                "val_loss": F.cross_entropy(logits, self.val_labels).item(),
                "val_accuracy": metrics.accuracy(matrix),
                "val_macro_f1": metrics.macro_f1(matrix),
                "seconds": self.seconds + time.perf_counter() - start,
                "images_per_second": len(self.images) / max(self.seconds, 1e-9),
                **values,
                **crops,
                **{
                    f"val_recall_{name}": r
                    for name, r in zip(self.classes, metrics.per_class(matrix)[1].tolist(), strict=True)
                },
            }
        )
        if better := self.history[-1]["val_accuracy"] > self.best:
            self.best, self.best_epoch = self.history[-1]["val_accuracy"], self.epoch + 1
        if self.run:
            if better:
                found = {"logits": logits.cpu(), "labels": self.val_labels.cpu(), "images": self.val_hash}
                self.save("best.pt", epoch=self.best_epoch, val_accuracy=self.best, validation=found)
            write_history(self.run, self.history)
            if self.writer:
                tensorboard.note(self.writer, self.history[-1])
            print(epoch_line(self.history[-1], self.cfg.train.epochs, better), flush=True)

    def tencrop_accuracy(self) -> float:
        """Validation accuracy over ten crops."""
        found = probabilities(self.judged, self.val_images, EVAL_BATCH, self.cfg.train.precision, "tencrop")
        return (found.argmax(1) == self.val_labels.cpu()).double().mean().item()

    def out_of_patience(self) -> bool:
        patience = self.cfg.train.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def check_finite(self, sums: torch.Tensor) -> None:
        finite = int(sums[2])
        if finite < self.step:
            rate = self.cfg.optim["lr"] * self.factors(finite)["lr"]
            raise UserError(
                f"epoch {self.epoch + 1}, step {finite + 1} of {self.steps}: the loss is no finite number at a rate of "
                f"{rate:.3g}; try a lower optim.lr, train.clip=1, schedule.warmup=1 or train.precision=fp32"
            )

    def save(self, file: str, **more) -> None:
        """last.pt with all that a resume needs; best.pt with the weights and `more`."""
        network, sums = self.judged, self.whole_sums() if file == "last.pt" else None
        if not self.run:
            return
        if sums is not None:
            self.check_finite(sums)
            state, network = {name: getattr(self, name) for name in self.STATE}, self.network
            state |= {"sums": sums.cpu(), "optimizer": self.optimizer.state_dict()}
            more = {"training": state | ({"average": self.average.state_dict()} if self.average else {})}
        save_checkpoint(self.run / file, self.cfg, network, **more)

    def load(self, contents: dict, path: Path) -> None:
        """Go on where the checkpoint `contents` of a last.pt stopped."""
        load_weights(self.network.model, contents["model"], path)
        state = contents["training"]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load_state_dict(state["average"])
            for name in self.STATE:
                if type(state[name]) is not type(getattr(self, name)):
                    raise TypeError
                setattr(self, name, state[name])
            self.sums = state["sums"].to(self.device).reshape(3)
            self.sums[:2] *= self.rank == 0  # they are added up
            if not (self.epoch == len(self.history) and 0 <= self.step <= self.steps):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{path}: its training state does not fit its config; the file was changed") from None


def start_from(model: nn.Module, path: str) -> None:
    """Copy the weights of the checkpoint at `path`; the last layer keeps its own where its classes are others."""
    contents = load_checkpoint(path)
    weights, own = contents["model"], model.state_dict()
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    if len(contents["classes"]) != len(own[f"{last}.weight"]):
        weights |= {name: value for name, value in own.items() if name.startswith(f"{last}.")}
    load_weights(model, weights, f"start={path}", "this model; train one of the same model=")


def balanced_weights(targets: torch.Tensor) -> torch.Tensor:
    """A weight per class, N / (classes × faces of the class) as scikit-learn's `balanced`, from one-hot N×C; 0 where a
    class has no face."""
    counts = targets.sum(0)
    return torch.where(counts > 0, len(targets) / (targets.shape[1] * counts.clamp(min=1)), 0.0)


def build_curves(cfg: config.TrainConfig, augment: Augment, model: nn.Module) -> dict[str, tuple[Curve, float]]:
    """Name → (curve, what its factor multiplies): the rate, the largest dropout, the images' side, an augmentation's
    own number (of crop and the two mixings a share). A curve that would drive nothing is refused."""
    sizes = {"dropout": max((module.p for module in dropouts(model)), default=0.0)}
    sizes |= {"size": model.size * getattr(model, "any_size", False)}
    sizes |= {name: getattr(augment, name) for name in STRENGTHS}
    curves = {"lr": (config.build("schedule", cfg.schedule), cfg.optim["lr"])}
    for name, node in cfg.curves.items():
        if name not in sizes:
            raise UserError(f"curves.{name}: drives nothing; there are {', '.join(sizes)} (the rate's is schedule)")
        if not sizes[name]:
            raise UserError(f"curves.{name}: would drive nothing, {name} is off; set it, or leave the curve out")
        size = 1.0 if name in ("crop", "mixup", "cutmix") else sizes[name]
        curves[name] = (config.build("schedule", node, f"curves.{name}"), size)
    return curves


def dropouts(model: nn.Module) -> list[nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


class Progress:
    """What a person sees while an epoch runs, and the clock: a bar on a terminal, a warning of long trainings."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.images = trainer, 0
        self.begin = self.last = self.shown = self.saved = time.perf_counter()
        self.bar = tqdm(
            total=len(trainer.images),
            initial=trainer.step * trainer.cfg.train.batch_size,
            desc=f"epoch {trainer.epoch + 1}/{trainer.cfg.train.epochs}",
            unit=" images",
            leave=False,
            disable=not (trainer.run and sys.stderr.isatty()),
        )

    def update(self, images: int) -> None:
        trainer, now = self.trainer, time.perf_counter()
        trainer.seconds += now - self.last
        self.last = now
        self.images += images
        self.bar.update(images)
        if not self.bar.disable and now - self.shown > 0.5:
            self.shown = now
            done = min(trainer.step * trainer.cfg.train.batch_size, len(trainer.images))
            loss, right, _ = (trainer.sums / done).tolist()
            self.bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{right:.3f}")
        if trainer.run and trainer.epoch == 0 and trainer.step == min(20, trainer.steps):
            self.warn_if_long()

    def warn_if_long(self) -> None:
        trainer, rate = self.trainer, self.images / (self.last - self.begin)
        hours = len(trainer.images) * trainer.cfg.train.epochs / rate / 3600
        if hours > 1:
            faster = "a CUDA GPU, " if trainer.device.type == "cpu" else ""
            tqdm.write(
                f"this will take up to {hours:.1f} hours ({rate:.0f} images/s on {trainer.device.type}); faster: "
                f"{faster}a smaller model (see fer train --help), fewer train.epochs, data.limit=N",
                file=sys.stderr,
            )

    def save_due(self) -> bool:
        if self.last - self.saved < SAVE_EVERY:
            return False
        self.saved = self.last
        return True

    def close(self) -> None:
        self.bar.close()


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:.4f} accuracy "
        f"{row['train_accuracy']:.4f}  validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f} "
        f"macro F1 {row['val_macro_f1']:.4f}  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
        f"{'  best' if better else ''}"
    )


def write_history(run: Path, history: list[dict]) -> None:
    if not history:
        return
    rows = ([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in history)
    write_csv(run / "history.csv", list(history[0]), rows)


def run(values: dict, typed: list[str]) -> float:
    """Train as the composed `values` say; `typed` are the keys given on the command line. Returns the best validation
    accuracy, for sweeps that optimize it."""
    resume = Path(values["resume"]) if values.get("resume") else None
    if resume:
        contents = load_checkpoint(resume / "last.pt")
        values = resumed(contents, values, typed, resume)
    cfg = config.check("train", values)
    if "path" in cfg.data:
        with contextlib.suppress(RuntimeError):  # ~ of nobody
            cfg.data["path"] = str(Path(cfg.data["path"]).expanduser().absolute())
    device = pick_device(cfg.device)
    if cfg.tensorboard:
        tensorboard.require()
    with others_named():
        trainer = Trainer(cfg, device)
        if trainer.rank:  # the first process has the run folder, and speaks
            if resume:
                trainer.load(contents, resume / "last.pt")
            trainer.fit()
            return trainer.best
    folder = resume or create(cfg.run, cfg.name)
    try:
        with others_named():
            fit(trainer, folder, contents if resume else None)
    except Interrupted:
        print(f"stopped; everything so far is in {folder}; go on with\n  fer train resume={quote(folder)}")
        raise
    print(
        f"best validation accuracy {trainer.best:.4f} after epoch {trainer.best_epoch}; {folder} holds best.pt, "
        f"last.pt, history.csv\nnext:\n  fer predict ckpt={quote(folder / 'best.pt')} out=submission.csv\n"
        f"  fer report run={quote(folder)}"
    )
    return trainer.best


def fit(trainer: Trainer, folder: Path, contents: dict | None) -> None:
    """Train in a run folder that exists, going on from the `contents` of its last.pt if there are any."""
    cfg, device = trainer.cfg, trainer.device
    with lock(folder):
        if contents:
            trainer.load(contents, folder / "last.pt")
            write_history(folder, trainer.history)
            print(f"{folder}: goes on at epoch {trainer.epoch + 1}, step {trainer.step + 1}", flush=True)
        trainer.run, cfg.run, cfg.resume = folder, str(folder), None
        if cfg.tensorboard:
            trainer.writer = tensorboard.open_writer(folder, trainer.epoch + 1)
            trainer.writer.add_text("config", f"```\n{config.dump(cfg)}```")
        write_text(folder / "config.yaml", config.dump(cfg))
        write_environment(folder, device, trainer.data_hash)
        parameters = sum(p.numel() for p in trainer.network.parameters())
        print(
            f"{cfg.name}, {parameters:,} parameters, {len(trainer.images)} faces to train, {len(trainer.val_images)} "
            f"to validate, {device.type}, {folder}",
            flush=True,
        )
        with memory_named(device, f"train.batch_size={cfg.train.batch_size}"):
            trainer.fit()


def train_in(folder: Path, cfg: config.TrainConfig, device: torch.device, data: Data) -> Trainer:
    """A training on `data` in `folder`: begun, gone on with or, where it is done, only loaded."""
    own = config.TrainConfig(**{key: getattr(cfg, key) for key in config.TrainConfig.model_fields})
    own.run, contents = str(folder), None
    if (folder / "last.pt").is_file():
        contents = load_checkpoint(folder / "last.pt")
        saved = config.parse(contents["config"], str(folder / "last.pt"))
        if changed := list(config.difference(saved, config.plain(own.model_dump())).values()):
            raise UserError(f"{folder}: was trained with other settings ({'; '.join(changed)}); name another out=")
        own.resume = str(folder)
    trainer = Trainer(own, device, data)
    if contents and contents["training"]["epoch"] == own.train.epochs:
        trainer.load(contents, folder / "last.pt")
    else:
        fit(trainer, folder if contents else create(str(folder), own.name), contents)
    return trainer


def resumed(contents: dict, values: dict, typed: list[str], folder: Path) -> dict:
    """The run's own config, the typed keys laid over it; what would make it another training is refused."""
    if "training" not in contents:
        raise UserError(f"{folder / 'last.pt'}: holds weights only; resume needs a last.pt written by fer train")
    saved = config.parse(contents["config"], str(folder / "last.pt"))
    keys = [key for key in typed if key not in ("resume", "run")]
    merged = config.overlay(saved, config.pick(values, keys))
    changed = [line for key, line in config.difference(saved, merged).items() if key not in MAY_CHANGE]
    if changed:
        raise UserError(f"resume={folder}: cannot change {'; '.join(changed)}; start a new run for that")
    return merged | {"run": None, "resume": str(folder)}


def quote(path: Path) -> str:
    return shlex.quote(str(path))
