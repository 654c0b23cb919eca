"""fer train: the loop, and how a training begins, goes on and ends.

The Trainer knows tensors, the config and the run folder that it writes; what a person sees of it stands in progress.py,
files in run.py, processes and signals in runtime.py.
"""

import hashlib
import shlex
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer import UserError, config, metrics, runtime, tensorboard
from fer.augment import SHARES, STRENGTHS, Augment, check_crop
from fer.checkpoint import find_checkpoint, load_checkpoint, load_weights, resumed, rewrite_settings, save_checkpoint
from fer.data.faces import Data
from fer.models.network import Network, Normalize
from fer.predict import probabilities
from fer.progress import Progress, epoch_line, warn_if_long
from fer.run import create, lock, write_environment, write_history, write_text
from fer.runtime import Interrupted, Signals, over_processes, seed_everything
from fer.schedule import Curve

SAVE_EVERY = 300  # seconds between saves inside an epoch
EVAL_BATCH = 512  # faces


class Trainer:
    """One training, begun, or gone on with where cfg.resume names its folder. What changes while it runs: the network,
    the optimizer, the history, and of the present epoch step, seconds and sums."""

    def __init__(self, cfg: config.TrainConfig, device: torch.device, data: Data | None = None):
        self.cfg, self.device = cfg, device
        self.run: Path | None = None  # without a run folder nothing is written or printed
        self.writer: Any = None  # of TensorBoard
        self.rank, self.world = runtime.join_processes(device)
        if cfg.deterministic:
            runtime.be_deterministic()
        seed_everything(cfg.seed)
        model = config.build("model", cfg.model).to(device)
        if cfg.start and not cfg.resume:
            start_from(model, cfg.start, cfg.data.get("normalize"))
        if cfg.train.channels_last:
            model.to(memory_format=torch.channels_last)
        self.augment = config.build("augment", cfg.augment)
        self.optimizer = config.build("optim", cfg.optim, params=model.parameters())
        self.curves = build_curves(cfg, self.augment, model)
        self.dropouts = [(module, module.p) for module in dropouts(model)]
        normalize = self.open(data or config.build("data", cfg.data))  # last: what is quick to refuse has been checked
        self.network = Network(model, normalize)
        self.several = DistributedDataParallel(self.network) if self.world > 1 else self.network
        self.average: AveragedModel | None = None
        self.judged = self.network  # what is validated and kept as best
        self.saves = {"optimizer": self.optimizer}  # whose state goes into last.pt, by name
        if cfg.train.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.train.ema), use_buffers=True)
            self.judged = Network(self.average.module, normalize)
            self.saves["average"] = self.average

        self.history: list[dict[str, Any]] = []  # one row an epoch
        self.saved = time.perf_counter()
        self.start_epoch()
        self.steps = len(self.batches(0))
        if cfg.resume:
            self.load(Path(cfg.resume) / "last.pt")

    def open(self, data: Data) -> Normalize:
        """Take the faces to train and to validate on to the device; their normalization."""
        faces, held_out = data.open("train"), data.open("validation")
        if self.cfg.train.copies == "drop":
            faces = faces.take(~faces.among(held_out))
        if len(faces) < 2 or not len(held_out):
            raise UserError(f"{len(faces)} faces to train and {len(held_out)} to validate on are too few")
        if self.augment.crop:
            check_crop(faces.images, self.augment.crop)
        own = F.one_hot(faces.labels, len(data.classes)).float() if faces.targets is None else faces.targets
        self.images, self.targets = faces.images.to(self.device), own.to(self.device)
        self.val_images, self.val_labels = held_out.images.to(self.device), held_out.labels.to(self.device)
        self.data_hash, self.val_hash, self.mode, self.classes = data.hash, held_out.hash, data.mode, data.classes
        learned = hashlib.sha256(held_out.labels.numpy().data)
        for part in (held_out.images, faces.images, own):
            learned.update(part.contiguous().numpy().data)
        self.faces = learned.hexdigest()
        self.unlabelled = data.unlabelled
        balanced = self.cfg.train.class_weights == "balanced"
        if self.mode == "multi" and (self.cfg.train.label_smoothing or balanced):
            raise UserError("data.mode=multi: goes without train.label_smoothing and train.class_weights; set them off")
        self.weights = balanced_weights(self.targets) if balanced else None
        return Normalize.fit(data.normalize, faces.images)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the most accurate epoch, the earlier of equals."""
        return max(self.history, key=itemgetter("val_accuracy"), default={"epoch": 0, "val_accuracy": -1.0})

    @property
    def done(self) -> bool:
        planned, patience = self.cfg.train.epochs, self.cfg.train.patience
        return self.epoch >= planned or (patience is not None and self.epoch - self.best["epoch"] >= patience)

    def start_epoch(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # losses, right answers, steps until a NaN

    def fit(self) -> None:
        """Train to the last epoch or until patience ends. Raises Interrupted after a signal, everything saved."""
        with Signals() as signals:
            self.save()  # from here on a killed run can be resumed
            while not self.done:
                self.train_epoch(signals)
                self.validate()
                self.start_epoch()
                self.save()

    def train_epoch(self, signals: Signals) -> None:
        network, done = self.several.train(), self.step * self.cfg.train.batch_size
        began = time.perf_counter() - self.seconds
        progress = Progress(self.epoch, self.cfg.train.epochs, len(self.images), done, shown=self.run is not None)
        for batch in self.batches(self.epoch)[self.step :]:
            seed_everything(self.cfg.seed, self.epoch, self.step)
            strength, side = self.follow_curves()
            images, targets = self.augment(self.images[batch], self.draw(self.targets[batch]), strength)
            if self.world > 1:  # all processes augment a batch alike and take a part each; their dropout is their own
                seed_everything(self.cfg.seed, self.epoch, self.step, self.rank)
                images, targets = images[self.rank :: self.world], targets[self.rank :: self.world]
            with runtime.autocast(self.device, self.cfg.train.precision):
                logits = network(images, side)
                loss = self.loss(logits, targets)
            self.optimizer.zero_grad()
            (loss * (len(images) * self.world / len(batch))).backward()  # the processes' gradients are averaged
            if self.cfg.train.clip:
                nn.utils.clip_grad_norm_(network.parameters(), self.cfg.train.clip)
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(self.network.model)

            right = self.right(logits, targets).sum()
            self.sums[:2] += torch.stack([loss.detach() * len(images), right])
            self.sums[2] += self.sums[0].isfinite()
            self.step += 1
            self.seconds = time.perf_counter() - began
            progress.note(len(batch), self.sums)
            self.after_step(signals)
        progress.close()

    def draw(self, targets: Tensor) -> Tensor:
        """FER+'s mode `probability`: one class by the votes for each face, anew each time."""
        if self.mode != "probability":
            return targets
        return F.one_hot(torch.multinomial(targets, 1)[:, 0], targets.shape[1]).float()

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Bool N: is the likeliest class the target's; in FER+'s mode `multi` one of the right ones?"""
        said = logits.argmax(1)
        return targets.gather(1, said[:, None])[:, 0] > 0 if self.mode == "multi" else said == targets.argmax(1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; in FER+'s mode `multi` that of the likeliest of the right classes."""
        if self.mode == "multi":
            return -(logits.log_softmax(1) + targets.log()).amax(1).mean()
        return F.cross_entropy(logits, targets, weight=self.weights, label_smoothing=self.cfg.train.label_smoothing)

    def batches(self, epoch: int) -> list[Tensor]:
        """An epoch's positions, in an order that depends on (seed, epoch) alone. A last batch of one, or of fewer than
        two a process, joins the batch before it: BatchNorm cannot learn from one face."""
        seed_everything(self.cfg.seed, epoch)
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
        whole = self.network.model.size
        # shrunk to multiples of 4, for two poolings at least
        return factors, whole if size == 1 else max(round(size * whole / 4), 1) * 4

    def validate(self) -> None:
        """End an epoch: measure, note the row, keep the weights if they are the best so far."""
        row, logits = self.measure()
        self.history.append(row)
        better = self.best is row
        if self.run:
            if better:
                found = {"logits": logits.cpu(), "labels": self.val_labels.cpu(), "images": self.val_hash}
                best = {"epoch": self.epoch, "val_accuracy": row["val_accuracy"], "validation": found}
                save_checkpoint(self.run / "best.pt", self.cfg, self.judged, **best)
            write_history(self.run, self.history)
            if self.writer:
                tensorboard.note(self.writer, row)
            print(epoch_line(row, self.cfg.train.epochs, better), flush=True)

    def measure(self) -> tuple[dict[str, Any], Tensor]:
        """The epoch's row of the history, curves as at its last step, and the logits of the validation faces."""
        loss, right, _ = self.whole_sums().tolist()
        start = time.perf_counter()
        logits = torch.zeros(len(self.val_images), len(self.classes), device=self.device)
        if self.rank == 0:  # one process judges, all know: they must stop together
            logits = self.judged.logits(self.val_images, EVAL_BATCH, self.cfg.train.precision)
        logits = over_processes(logits, "sum")
        matrix = metrics.confusion(logits.argmax(1), self.val_labels, len(self.classes)).cpu()
        values = {name: self.curves[name][1] * factor for name, factor in self.factors(self.steps - 1).items()}
        crops = {"val_accuracy_tencrop": self.tencrop_accuracy()} if self.cfg.train.tencrop and self.rank == 0 else {}
        recalls = zip(self.classes, metrics.per_class(matrix)[1].tolist(), strict=True)
        row = {
            "epoch": self.epoch + 1,
            "lr": values.pop("lr"),
            "train_loss": loss / len(self.images),
            "train_accuracy": right / len(self.images),
            "val_loss": F.cross_entropy(logits, self.val_labels).item(),
            "val_accuracy": metrics.accuracy(matrix),
            "val_macro_f1": metrics.macro_f1(matrix),
            "seconds": self.seconds + time.perf_counter() - start,
            "images_per_second": len(self.images) / max(self.seconds, 1e-9),
            **values,
            **crops,
            **{f"val_recall_{name}": recall for name, recall in recalls},
        }
        return row, logits

    def tencrop_accuracy(self) -> float:
        """Validation accuracy over ten crops."""
        found = probabilities(self.judged, self.val_images, EVAL_BATCH, self.cfg.train.precision, "tencrop")
        return (found.argmax(1) == self.val_labels.cpu()).double().mean().item()

    def whole_sums(self) -> Tensor:
        """The sums over all processes, steps until a NaN those of the first to have one, which is refused."""
        sums = torch.cat([over_processes(self.sums[:2], "sum"), over_processes(self.sums[2:], "min")])
        if (finite := int(sums[2])) < self.step:
            rate = self.cfg.optim["lr"] * self.factors(finite)["lr"]
            raise UserError(
                f"epoch {self.epoch + 1}, step {finite + 1} of {self.steps}: the loss is no finite number at a rate of "
                f"{rate:.3g}; try a lower optim.lr, train.clip=1, schedule.warmup=1 or train.precision=fp32"
            )
        return sums

    def after_step(self, signals: Signals) -> None:
        """Warn of a long training, save every few minutes, end after a signal; the processes do so together."""
        if self.run and self.epoch == 0 and self.step == min(20, self.steps):
            done = min(self.step * self.cfg.train.batch_size, len(self.images))
            warn_if_long(len(self.images) * self.cfg.train.epochs, done / self.seconds, self.device)
        due = time.perf_counter() - self.saved > SAVE_EVERY
        caught, due = over_processes(torch.tensor([signals.caught, due]), "max").tolist()
        if caught or due:
            self.save()
        if caught:
            raise Interrupted(caught)

    def save(self) -> None:
        """last.pt: the weights and all that a resume needs."""
        self.saved, sums = time.perf_counter(), self.whole_sums()
        if self.run:
            state = {"step": self.step, "seconds": self.seconds, "sums": sums.cpu(), "history": self.history}
            state |= {"epoch": self.epoch, "best": self.best["val_accuracy"], "best_epoch": self.best["epoch"]}
            state |= {"faces": self.faces} | {name: part.state_dict() for name, part in self.saves.items()}
            save_checkpoint(self.run / "last.pt", self.cfg, self.network, training=state)

    def load(self, path: Path) -> None:
        """Go on where the last.pt at `path` stopped."""
        contents = load_checkpoint(path)
        load_weights(self.network.model, contents["model"], path)
        try:
            state = contents["training"]
            if state.get("faces", self.faces) != self.faces:  # earlier versions do not tell
                raise UserError(f"{path}: was trained on other faces or labels; name these, or start anew elsewhere")
            for name, part in self.saves.items():
                part.load_state_dict(state[name])
            self.history, self.step, self.seconds = list(state["history"]), int(state["step"]), float(state["seconds"])
            self.sums = state["sums"].to(self.device).reshape(3)
            self.sums[:2] *= self.rank == 0  # they are added up
            if not (state["epoch"] == self.epoch >= self.best["epoch"] and 0 <= self.step <= self.steps):
                raise ValueError
            if self.epoch > self.cfg.train.epochs:
                more = f"{self.epoch} epochs are done, more than train.epochs={self.cfg.train.epochs}"
                raise UserError(f"resume={path.parent}: {more}; set it higher")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{path}: its training state does not fit its config; the file was changed") from None


def start_from(model: nn.Module, path: str, normalize: str | None) -> None:
    """Copy the weights of the checkpoint at `path`, which must know faces scaled so; the last layer keeps its own where
    its classes are others."""
    contents = load_checkpoint(find_checkpoint(path))
    if (kind := contents["normalization"]["kind"]) != normalize and normalize:
        raise UserError(f"start={path}: learned by data.normalize={kind}, not {normalize}; take data.normalize={kind}")
    weights, own = contents["model"], model.state_dict()
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    if len(contents["classes"]) != len(own[f"{last}.weight"]):
        weights |= {name: value for name, value in own.items() if name.startswith(f"{last}.")}
    load_weights(model, weights, f"start={path}", "this model; train one of the same model=")


def balanced_weights(targets: Tensor) -> Tensor:
    """A weight per class, N / (classes × faces of the class) as scikit-learn's `balanced`, from one-hot N×C; 0 where a
    class has no face."""
    counts = targets.sum(0)
    return torch.where(counts > 0, len(targets) / (targets.shape[1] * counts.clamp(min=1)), 0.0)


def build_curves(cfg: config.TrainConfig, augment: Augment, model: nn.Module) -> dict[str, tuple[Curve, float]]:
    """Name → (curve, what its factor multiplies): the rate, the largest dropout, the images' side, an augmentation's
    own number (of crop and the two mixings a share). A curve that would drive nothing is refused."""
    sizes: dict[str, Any] = {"dropout": max((module.p for module in dropouts(model)), default=0.0)}
    sizes["size"] = model.size if getattr(model, "any_size", False) else 0
    sizes |= {name: getattr(augment, name) for name in STRENGTHS}
    curves = {"lr": (config.build("schedule", cfg.schedule), cfg.optim["lr"])}
    for name, node in cfg.curves.items():
        if name not in sizes:
            raise UserError(f"curves.{name}: drives nothing; there are {', '.join(sizes)} (the rate's is schedule)")
        if not sizes[name]:
            raise UserError(f"curves.{name}: would drive nothing, {name} is off; set it, or leave the curve out")
        size = 1.0 if name in SHARES else sizes[name]
        curves[name] = (config.build("schedule", node or {}, f"curves.{name}"), size)
    return curves


def dropouts(model: nn.Module) -> list[nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


@runtime.others_named()
def run(values: dict, typed: list[str]) -> float:
    """Train as the composed `values` say; `typed` are the keys given on the command line. Returns the best validation
    accuracy, for sweeps that optimize it."""
    cfg = config.check("train", resumed(values, typed) if values.get("resume") else values)
    device = runtime.pick_device(cfg.device)
    if cfg.tensorboard:
        tensorboard.require()
    trainer = Trainer(cfg, device)
    if trainer.rank:  # the first process has the run folder, and speaks
        trainer.fit()
        return trainer.best["val_accuracy"]
    try:
        fit(trainer)
    except Interrupted:
        again = f"fer train resume={shlex.quote(str(trainer.run))}"
        print(f"stopped; everything so far is in {trainer.run}; go on with\n  {again}")
        raise
    folder, accuracy, epoch = trainer.run, trainer.best["val_accuracy"], trainer.best["epoch"]
    run, ckpt = shlex.quote(str(folder)), shlex.quote(f"{folder}/best.pt")
    judge = f"predict ckpt={ckpt} out=submission.csv" if trainer.unlabelled else f"evaluate ckpt={ckpt}"
    print(f"best validation accuracy {accuracy:.4f} after epoch {epoch}; {folder} holds best.pt, last.pt, history.csv")
    print(f"next:\n  fer report run={run}\n  fer {judge}")
    return accuracy


def fit(trainer: Trainer) -> None:
    """Train in the run folder that the config names, a new one or that of a training that goes on."""
    cfg, device = trainer.cfg, trainer.device
    folder = Path(cfg.resume) if cfg.resume else create(cfg.run, cfg.name)
    with lock(folder), runtime.memory_named(device, f"train.batch_size={cfg.train.batch_size}"):
        if cfg.resume:
            write_history(folder, trainer.history)
            print(f"{folder}: goes on at epoch {trainer.epoch + 1}, step {trainer.step + 1}", flush=True)
        trainer.run, cfg.run, cfg.resume = folder, str(folder), None
        if cfg.tensorboard:
            trainer.writer = tensorboard.open_writer(folder, trainer.epoch + 1)
            trainer.writer.add_text("config", f"```\n{config.dump(cfg)}```")
        write_text(folder / "config.yaml", config.dump(cfg))
        rewrite_settings(folder / "best.pt", cfg)  # reports group runs by it
        write_environment(folder, device, trainer.data_hash)
        parameters = sum(p.numel() for p in trainer.network.parameters())
        print(
            f"{cfg.name}, {parameters:,} parameters, {len(trainer.images)} faces to train, {len(trainer.val_images)} "
            f"to validate, {device.type}, {folder}",
            flush=True,
        )
        for key, node in ({"schedule": cfg.schedule} | cfg.curves).items():
            if (last := (node or {}).get("epochs", [0])[-1]) > cfg.train.epochs:
                print(f"{key}: its knots go on to epoch {last:g}, the training ends at {cfg.train.epochs}")
        trainer.fit()


def train_in(folder: Path, cfg: config.TrainConfig, device: torch.device, data: Data) -> float:
    """The best validation accuracy of a training on `data` in `folder`: begun, gone on with or, where it is done, only
    loaded."""
    own = config.TrainConfig(**{key: getattr(cfg, key) for key in config.TrainConfig.model_fields})
    own.run, last = str(folder), folder / "last.pt"
    if last.is_file():
        saved = config.parse(load_checkpoint(last)["config"], str(last))
        if changed := list(config.difference(saved, own.model_dump()).values()):
            raise UserError(f"{folder}: was trained with other settings ({'; '.join(changed)}); name another out=")
        own.resume = own.run
    trainer = Trainer(own, device, data)
    if not trainer.done:
        fit(trainer)
    return trainer.best["val_accuracy"]
