"""Checks of a whole config and of its `_target_` nodes, and build(), which makes their objects.

Only build() instantiates. What was typed may name any class or function that can be imported; what
a checkpoint says may name this project's own, torch's optimizers, and modules that are trusted.
"""

import contextlib
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, create_model

from fer import CLASSES, FACE_SIZE, UserError, nearest, signatures
from fer.config.schema import SCHEMAS, Strict, TrainConfig, Trust
from fer.config.validation import validate

# Where the `_target_` of each group may point in a checkpoint. These only create an object,
# whatever values they are given.
OWN_TARGETS = {
    "data": ("fer.data.",),
    "model": ("fer.models.",),
    "augment": ("fer.augment.",),
    "optim": ("fer.optim.", "torch.optim."),
    "schedule": ("fer.schedule.",),
}
GROUPS = tuple(OWN_TARGETS)
# What each group makes. Named here, since none of these modules may be imported below them.
PRODUCTS = {
    "data": "fer.data.faces.Data",
    "model": "torch.nn.Module",
    "augment": "fer.augment.Augment",
    "optim": "torch.optim.Optimizer",
    "schedule": "fer.schedule.Curve",
}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
LONGEST_NAME = 100


class Open(Strict):
    """The parameters of a function that takes any other keyword too."""

    model_config = ConfigDict(extra="allow")


def check(command: str, values: dict, trust: Sequence[str] | None = None) -> Any:
    """The composed values as the command's schema, every `_target_` node completed by its
    signature's defaults. UserError names the key and the remedy.

    trust: None for values that were typed; for a checkpoint's, modules whose code it may name.
    """
    config = validate(SCHEMAS[command], values)
    for group in GROUPS:
        node = getattr(config, group, None)
        if node and "_target_" in node:
            setattr(config, group, check_node(group, node, trust=trust))
        elif isinstance(config, TrainConfig):
            raise UserError(f"{group}: nothing chosen; choose one: {group}=NAME")
    if isinstance(config, TrainConfig):
        check_training(config, trust)
    return config


def check_training(config: TrainConfig, trust: Sequence[str] | None) -> None:
    """Check what depends on several keys, and fill in what follows from others."""
    curves: dict[str, dict | None] = {}
    for name, node in config.curves.items():
        if node:
            checked = check_node("schedule", node, f"curves.{name}", trust)
            check_warmup(f"curves.{name}", checked, config.train.epochs)
            curves[name] = checked
    config.curves = curves
    check_warmup("schedule", config.schedule, config.train.epochs)
    if not isinstance(config.optim.get("lr"), int | float):
        raise UserError(
            f"optim._target_={config.optim['_target_']}: has no number lr, which the schedule "
            "multiplies; give it a parameter lr"
        )
    check_name(config)
    check_classes(config)
    for key in signatures.path_parameters(config.data["_target_"]):
        place = config.data.get(key)
        if isinstance(place, str):
            with contextlib.suppress(RuntimeError):  # ~NAME of an unknown user
                config.data[key] = str(Path(place).expanduser().absolute())  # from any folder


def check_warmup(key: str, node: dict, epochs: int) -> None:
    warmup = node.get("warmup", 0)
    if isinstance(warmup, int | float) and warmup and warmup >= epochs:
        raise UserError(
            f"{key}.warmup={warmup:g}: lasts as long as the run or longer, so that the curve "
            f"itself is never reached; set it below train.epochs={epochs}"
        )


def check_name(config: TrainConfig) -> None:
    if config.name == "torchvision" and "name" in config.model:
        config.name = config.model["name"]  # as its network is called
    name = config.name
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise UserError(
            f"name={name[:LONGEST_NAME]!r}: should be 1 to {LONGEST_NAME} printable characters"
        )
    if re.search(r"[/\\]", name) and not (config.run or config.resume):
        raise UserError(
            f"name={name}: would name a folder elsewhere; leave the slashes out, or set run="
        )


def check_classes(config: TrainConfig) -> None:
    """The network must have the data's classes; a model of ours may leave the number out. If the
    config does not say how many there are, training sets the number once it has read the data.
    """
    classes = class_count(config.data)
    if classes is None:
        return
    if "classes" not in config.model:
        if classes != len(CLASSES):
            raise UserError(
                f"model._target_={config.model['_target_']}: has no parameter classes, and the "
                f"data has {classes}; give it one, or use data.classes={len(CLASSES)}"
            )
        return
    if config.model["classes"] not in (len(CLASSES), classes):
        raise UserError(
            f"model.classes={config.model['classes']}: the data has {classes}; leave it out"
        )
    config.model["classes"] = classes


def class_count(data: dict) -> int | None:
    """How many classes a checked data node asks for; None if only the data itself says."""
    if not data["_target_"].startswith(OWN_TARGETS["data"]):
        return None
    classes = data.get("classes", len(CLASSES))
    return len(classes) if isinstance(classes, list) else classes


def check_node(group: str, node: dict, key: str = "", trust: Sequence[str] | None = None) -> dict:
    """A `_target_` node, checked against the target's signature and completed by its defaults.

    key: the node's key, if it is not `group`. trust: see check().
    """
    key = key or group
    if "_target_" not in node:
        raise UserError(f"{key}: names no _target_; choose one")
    target = find_target(group, node["_target_"], key, trust)
    given = {name: value for name, value in node.items() if name != "_target_"}
    schema = parameters_schema(group, target, f"{key}._target_={node['_target_']}")
    checked = validate(schema, given, prefix=f"{key}.").model_dump()
    complete = {"_target_": node["_target_"]}
    for name, value in checked.items():
        try:
            complete[name] = json.loads(json.dumps(value))  # tuples become lists, as in YAML
        except (TypeError, ValueError):  # an object, which YAML cannot hold
            if name in given:
                complete[name] = given[name]
    return complete


def parameters_schema(group: str, target: Callable, named: str) -> type[Strict]:
    """The target's signature as a schema. named: the key and its target, for messages."""
    try:
        parameters = dict(signature(target).parameters)
    except (TypeError, ValueError):
        raise UserError(
            f"{named}: its parameters cannot be read, so it cannot be configured"
        ) from None
    if group == "optim" and not parameters.pop("params", None):  # given by the program
        raise UserError(f"{named}: not an optimizer; it has no parameter params")
    schema: type[Strict] = Strict
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            schema = Open
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL or name.startswith("_"):
            continue  # pydantic has no such fields, and no key can give them
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (checkable(parameter.annotation), default)
    with warnings.catch_warnings(action="ignore"):  # of a parameter called as a method of pydantic
        return create_model(target.__name__, __base__=schema, **fields)


def signature(target: Callable) -> inspect.Signature:
    """The target's signature, its annotations evaluated where they can be."""
    try:
        return inspect.signature(target, eval_str=True)
    except (NameError, SyntaxError, AttributeError):
        return inspect.signature(target)


def checkable(annotation: Any) -> Any:
    """An annotation, or Any where there is none that pydantic can check."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception as error:
        # Types that bring a config of their own cannot be given one, and can be checked.
        return annotation if "type-adapter-config-unused" in str(error) else Any
    return annotation


def find_target(
    group: str, path: Any, key: str, trust: Sequence[str] | None = None
) -> Callable[..., Any]:
    """The class or function of a dotted path, whose module is imported. What `trust` does not allow
    is refused before that; see check().
    """
    named = f"{key}._target_={path}"
    if not isinstance(path, str) or not DOTTED.fullmatch(path):
        raise UserError(f"{named}: should be the dotted path of a class or function")
    is_ours = path.startswith(OWN_TARGETS[group])
    if not is_ours and trust is not None:
        refuse_untrusted(group, path, named, trust)
    module_name, _, name = path.rpartition(".")
    module = import_module(module_name, named)
    target = getattr(module, name, None)
    if not callable(target):
        there = [word for word, value in vars(module).items() if callable(value) and word[0] != "_"]
        raise UserError(
            f"{named}: {module_name} has no such class or function; {nearest(name, there)}"
        )
    defined_in = f"{target.__module__}."
    if is_ours and (name.startswith("_") or not defined_in.startswith(OWN_TARGETS[group])):
        raise UserError(f"{named}: refused; this project has no such {group}")
    return target


def trusted(values: dict) -> list[str]:
    """The modules that `trust=` names among composed values, which are not yet checked."""
    schema = create_model("Trusting", __base__=Strict, trust=(Trust, []))
    return validate(schema, {"trust": values.get("trust", [])}).trust


def refuse_untrusted(group: str, path: str, named: str, trust: Sequence[str]) -> None:
    """Refuse a checkpoint's `_target_` outside this project unless its module is trusted."""
    package = path.partition(".")[0]
    if package in ("fer", *sys.stdlib_module_names, *sys.builtin_module_names):
        raise UserError(f"{named}: refused; a checkpoint may not name it as its {group}")
    if not any(f"{path}.".startswith(f"{name}.") for name in trust):
        raise UserError(
            f"{named}: refused; it is code from outside this project, which would run with your "
            f"permissions. If you trust it, type trust={package}"
        )


def modules_named(values: dict) -> list[str]:
    """The packages outside this project whose code the nodes of a training config name. Those that
    were typed may be trusted in its checkpoint.
    """
    nodes = [values.get(group) for group in GROUPS] + list((values.get("curves") or {}).values())
    paths = [str(node["_target_"]) for node in nodes if node and "_target_" in node]
    packages = [path.partition(".")[0] for path in paths]
    return [name for name in dict.fromkeys(packages) if name not in ("fer", "torch")]


def trust_override(values: dict) -> str:
    """What a command must add to open the checkpoint of such a run: ` trust=mylab`, or nothing."""
    modules = modules_named(values)
    if len(modules) > 1:
        return f" 'trust=[{','.join(modules)}]'"
    return f" trust={modules[0]}" if modules else ""


def import_module(name: str, named: str) -> Any:
    """A module, importable from the current directory too; UserError where it raises."""
    try:
        with current_directory_on_path():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{named}: no module {error.name}; it should be in the current directory or on "
                "PYTHONPATH"
            ) from error
        raise UserError(
            f"{named}: {name} imports {error.name}, which is not installed; install its package"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{named}: importing {name} raised {in_one_line(error)}") from error


@contextlib.contextmanager
def current_directory_on_path() -> Iterator[None]:
    """Within the context modules are looked for in the current directory too, after all others."""
    place = str(Path.cwd())
    added = place not in sys.path and "" not in sys.path
    if added:
        sys.path.append(place)
    try:
        yield
    finally:
        if added and place in sys.path:
            sys.path.remove(place)


def in_one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def build(group: str, node: dict, key: str = "", **provided: Any) -> Any:
    """The object that a checked node describes. What the target refuses is a UserError that
    names the node's `key`, by default the group.

    provided: arguments that no config gives, such as an optimizer's params.
    """
    key = key or group
    path = node["_target_"]
    target = find_target(group, path, key)
    values = {name: value for name, value in node.items() if name != "_target_"}
    is_ours = path.startswith(OWN_TARGETS[group])
    try:
        made = target(**values, **provided)
    except NotImplementedError:  # a RuntimeError, of torch's meta device
        raise
    except (ValueError, RuntimeError) as error:  # torch refuses sizes and memory so
        line = (str(error).splitlines() or [""])[0]
        # Our own classes name a parameter that is wrong, PARAMETER=VALUE.
        separator = "." if line.partition("=")[0] in values else ": "
        raise UserError(f"{key}{separator}{line}") from error
    except Exception as error:
        if is_ours:
            raise
        line = f"{key}: {path} raised {in_one_line(error)}; FER_DEBUG=1 shows where"
        raise UserError(line) from error
    check_product(group, made, f"{key}._target_={path}")
    if group == "model" and not is_ours:
        check_network(made, node.get("classes", len(CLASSES)), f"{key}._target_={path}")
    return made


def check_product(group: str, made: Any, named: str) -> None:
    """Refuse an object that is not what its group makes."""
    module, _, name = PRODUCTS[group].rpartition(".")
    product = getattr(importlib.import_module(module), name)
    if not isinstance(made, product):
        raise UserError(f"{named}: makes a {type(made).__name__}, not a {PRODUCTS[group]}")


def check_network(model: Any, classes: int, named: str) -> None:
    """Set the `size` of a user's model if it has none. Refuse a model that does not turn gray faces
    into logits.
    """
    import torch  # takes seconds; not every command needs it

    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UserError(f"{named}: has no parameters to train")
    if not hasattr(model, "size"):
        model.size = FACE_SIZE
    training = model.training
    model.eval()
    faces = torch.zeros(2, 1, model.size, model.size, device=parameter.device)
    shape = f"2×1×{model.size}×{model.size}"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model(faces)
    except NotImplementedError:
        raise
    except Exception as error:
        raise UserError(
            f"{named}: given faces of {shape}, it raised {in_one_line(error)}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        made = "×".join(map(str, logits.shape)) if hasattr(logits, "shape") else type(logits)
        raise UserError(
            f"{named}: turns faces of {shape} into {made}, not into logits of 2×{classes}"
        )
