"""Checks of values against a schema. An error is one line: the key, its value, the remedy.

pydantic finds the errors; this module words them.
"""

import difflib
from types import UnionType
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError, create_model
from typing_extensions import is_typeddict

from fer import UserError, nearest
from fer.config.schema import Strict

LARGEST_FLOAT = 3.4028234663852886e38  # of float32
LONGEST_MESSAGE = 400
WORDS = {  # pydantic's → ours
    "Value error, ": "",
    "Input should be ": "should be ",
    "List should have": "should have",
    " or should be ": " or ",
    " after validation": "",
    "a valid dictionary": "a mapping",
    "a valid list": "a list, such as [a,b]",
    "Extra inputs are not permitted": "a mapping of other keys",
}


class UnknownKeyError(UserError):
    """A dotted `key` that does not exist and resembles none at its level."""

    def __init__(self, key: str, remedy: str):
        super().__init__(f"{key}: no such key; {remedy}")
        self.key = key


def validate(schema: type[BaseModel], values: dict, prefix: str = "") -> Any:
    """`values` as an instance of `schema`; UserError for the first key that does not fit.

    prefix: put before every key in messages, such as `optim.`.
    """
    check_keys(schema, values, prefix)
    try:
        checked = schema.model_validate(values)
    except ValidationError as errors:
        raise first_error(schema, values, prefix, errors) from None
    check_numbers(checked.model_dump(), prefix)
    return checked


def check_keys(schema: type[BaseModel], values: dict, prefix: str) -> None:
    """Refuse a key that the schema does not have, with the nearest one that it has."""
    fields = schema.model_fields
    inner_schemas: dict[str, Any] = {
        name: field.annotation
        for name, field in fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    if schema.model_config.get("extra") == "forbid":
        for key in values:
            if key not in fields:
                raise unknown_key(str(key), [*fields], inner_schemas, prefix)
    for name, inner in inner_schemas.items():
        if isinstance(values.get(name), dict):
            check_keys(inner, values[name], f"{prefix}{name}.")


def unknown_key(
    key: str, fields: list[str], inner_schemas: dict[str, Any], prefix: str
) -> UserError:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.7)
    if not near:
        near = [
            f"{name}.{key}" for name, inner in inner_schemas.items() if key in inner.model_fields
        ]
    if near:
        return UserError(f"{prefix}{key}: no such key; did you mean {prefix}{near[0]}?")
    owner = prefix.rstrip(".") or "this command"
    there = ", ".join(fields) or "no keys"
    return UnknownKeyError(f"{prefix}{key}", f"{owner} has {there}")


def first_error(
    schema: type[BaseModel], values: dict, prefix: str, errors: ValidationError
) -> UserError:
    """The first of pydantic's errors as a UserError; several of one value are joined by `or`."""
    located = [(*locate(values, error["loc"]), error) for error in errors.errors()]
    where, value, first = located[0]
    refuse_layer(schema, where, value, prefix)
    if first["type"] == "missing":
        return UserError(f"{prefix}{where or first['loc'][-1]}: a value is missing")
    said = [
        error["msg"] for place, _, error in located if place == where and error["type"] != "missing"
    ]
    # No typed value can be an instance of a class, such as Tensor.
    possible = [words for words in said if "an instance of" not in words]
    line = " or ".join(dict.fromkeys(possible or said))
    if isinstance(value, list):
        line = line.replace("a valid string", "one value, not a list")
    for theirs, ours in WORDS.items():
        line = line.replace(theirs, ours)
    if where.startswith("curves."):
        line = line.replace("a mapping", "a mapping, such as {_target_: …}")
    return UserError(f"{prefix}{where}={value}: {line}"[:LONGEST_MESSAGE])


def locate(values: Any, loc: tuple) -> tuple[str, Any]:
    """The part of a pydantic location that is a path into `values`, and the value there. The rest
    of a location names members of unions.
    """
    path = []
    for part in loc:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        path.append(str(part))
    return ".".join(path), values


def check_numbers(values: Any, key: str) -> None:
    """Refuse numbers that the machine does not have: floats beyond float32, NaN, integers of more
    than 64 bits. key: that of `values`, ending in a dot unless they are a number.
    """
    if isinstance(values, dict):
        entries = list(values.items())
    elif isinstance(values, list | tuple):
        entries = list(enumerate(values))
    else:
        check_number(values, key)
        return
    for name, value in entries:
        inside = "." if isinstance(value, dict | list | tuple) else ""
        check_numbers(value, f"{key}{name}{inside}")


def check_number(value: Any, key: str) -> None:
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:  # NaN too
        raise UserError(f"{key}={value:g}: should be a finite float32, up to {LARGEST_FLOAT:.2g}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{key}={value:.3g}: needs more than 64 bits; should be below {2**63:.2g}")


def refuse_layer(schema: type[BaseModel], where: str, value: Any, prefix: str) -> None:
    """Refuse a word or mapping in a list of layers that is not a layer, with those that there are.

    where: the key, such as `features.3`. Keys other than lists of layers, and numbers, are passed.
    """
    name = where.partition(".")[0]
    if name not in schema.model_fields or not isinstance(value, str | dict):
        return
    words, mappings = layers(schema.model_fields[name].annotation)
    if not mappings:
        return
    kind = next((key for key in mappings if key in value), None)
    if isinstance(value, str) or not kind:
        there = [*words, *(f"{{{key}: …}}" for key in mappings), "a number of filters or units"]
        remedy = f"there are {', '.join(there)}"
        if isinstance(value, str):
            remedy = nearest(value, there)
        raise UserError(f"{prefix}{where}={value}: no such layer; {remedy}")
    fields: dict[str, Any] = {}
    for key, annotation in get_type_hints(mappings[kind], include_extras=True).items():
        if get_origin(annotation) is Required:
            fields[key] = (get_args(annotation)[0], ...)
        else:
            fields[key] = (annotation, None)
    validate(create_model(f"{{{kind}: …}}", __base__=Strict, **fields), value, f"{prefix}{where}.")


def layers(annotation: Any) -> tuple[list[str], dict[str, Any]]:
    """The words that a list of layers takes, and its mappings by their first key. Both are empty
    for any other type.
    """
    words: dict[str, None] = {}
    mappings: dict[str, Any] = {}
    waiting = list(get_args(annotation)) if get_origin(annotation) is list else []
    while waiting:
        kind = waiting.pop(0)
        if get_origin(kind) is Literal:
            words |= dict.fromkeys(get_args(kind))
        elif is_typeddict(kind):
            mappings[next(iter(kind.__annotations__))] = kind
        elif get_origin(kind) in (Union, UnionType):
            waiting = [*get_args(kind), *waiting]
    return list(words), mappings
