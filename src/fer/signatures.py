"""Keys that are paths, and parameters of a `_target_`, read from source text without importing it.

A parameter or field is a path if its annotation names FilePath. Importing would take seconds, and
would run code: Tab completion and the quoting of paths need neither.
"""

import ast
import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from fer import config_dir

SCHEMA = "fer.config.schema"


@dataclass(frozen=True)
class PathKey:
    """A key whose value is a path. listed: whether it may be a list in brackets instead."""

    listed: bool


def path_keys(
    command: str, group: str = "", user_dir: str | None = None, target: str | None = None
) -> dict[str, PathKey]:
    """The command's own keys that are paths, and those of `group` that are paths for any of its
    configs, or for a `target` that was typed.
    """
    keys = path_fields(f"{command.capitalize()}Config")
    targets = [target] if target else []
    for root in [config_dir(), Path(user_dir)] if user_dir else [config_dir()]:
        for file in sorted((root / group).glob("*.yaml")) if group else ():
            with contextlib.suppress(OSError):  # which Hydra reports
                targets += targets_in(file, file.stat().st_mtime_ns)
    for dotted in targets:
        for name, annotation in parameters(dotted).items():
            if path := path_key(annotation):
                keys[f"{group}.{name}"] = path
    return keys


@functools.cache
def targets_in(file: Path, modified: int) -> list[str]:
    """The `_target_` of a config; none where it names none or is not YAML, which Hydra reports.

    modified: tells the file's versions apart.
    """
    node: object = None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        return [node["_target_"]]
    return []


def path_parameters(target: str) -> set[str]:
    """Names of the parameters of a `_target_` that are paths."""
    return {name for name, annotation in parameters(target).items() if path_key(annotation)}


def path_fields(schema: str, prefix: str = "") -> dict[str, PathKey]:
    """The dotted keys of a schema that are paths, with those of schemas within."""
    keys = {}
    for name, annotation in fields(SCHEMA, schema).items():
        if path := path_key(annotation):
            keys[f"{prefix}{name}"] = path
        if isinstance(annotation, ast.Name):
            keys |= path_fields(annotation.id, f"{prefix}{name}.")
    return keys


def path_key(annotation: ast.expr | None) -> PathKey | None:
    """The PathKey of a parameter or field with this annotation; None if it is not a path."""
    if annotation is None:
        return None
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with contextlib.suppress(SyntaxError):
            annotation = ast.parse(annotation.value, mode="eval").body
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}
    return PathKey(listed="list" in names) if "FilePath" in names else None


def parameters(target: str) -> dict[str, ast.expr | None]:
    """Parameter → annotation of a class or function, by its dotted path; none if it is not found.

    Of a class: of its __init__, or else its annotated fields, as of a dataclass.
    """
    module, _, name = target.rpartition(".")
    definition = find(module, name)
    if isinstance(definition, ast.ClassDef):
        for statement in definition.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                definition = statement
    if isinstance(definition, ast.FunctionDef):
        arguments = [*definition.args.args, *definition.args.kwonlyargs]
        return {arg.arg: arg.annotation for arg in arguments if arg.arg != "self"}
    return fields(module, name)


def fields(module: str, name: str) -> dict[str, ast.expr | None]:
    """Annotated fields of a class, with those of its bases that the module knows by name."""
    definition = find(module, name)
    annotations: dict[str, ast.expr | None] = {}
    if isinstance(definition, ast.ClassDef):
        for base in definition.bases:
            if isinstance(base, ast.Name) and base.id != name:
                annotations |= fields(module, base.id)
        for statement in definition.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                annotations[statement.target.id] = statement.annotation
    return annotations


def find(module: str, name: str, depth: int = 5) -> ast.stmt | None:
    """The class or function that a module calls `name`: its own, or one that it imports from
    another module. depth: how many imports are followed.
    """
    for statement in statements(module):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.ImportFrom) and depth:
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    return find(imported_module(module, statement), alias.name, depth - 1)
    return None


def imported_module(module: str, statement: ast.ImportFrom) -> str:
    """The absolute name of the module in `from … import`, in the source of `module`."""
    if not statement.level:
        return statement.module or ""
    is_package = next(files(module)).name == "__init__.py"
    parts = module.split(".")
    kept = parts[: len(parts) - statement.level + is_package]
    return ".".join([*kept, statement.module] if statement.module else kept)


def statements(module: str) -> list[ast.stmt]:
    """The statements of a module's source; none if it is not found or not Python."""
    for file in files(module):
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            return parsed(file, file.stat().st_mtime_ns)
    return []


@functools.cache
def parsed(file: Path, modified: int) -> list[ast.stmt]:
    """The statements of a source file. modified: tells its versions apart."""
    return ast.parse(file.read_bytes()).body


def files(module: str) -> Iterator[Path]:
    """Where a module's source may lie: this package, the current directory, sys.path."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return
    for root in [Path(__file__).parents[1], Path.cwd(), *map(Path, sys.path)]:
        for file in (
            root.joinpath(*parts).with_suffix(".py"),
            root.joinpath(*parts, "__init__.py"),
        ):
            if file.is_file():
                yield file
