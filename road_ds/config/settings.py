"""Blocks of settings: unknown keys are errors, and what is wrong is said with key and value."""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from road_ds.common.errors import Faults, RoadError, nearest
from road_ds.common.strict_json import half_character, quote
from road_ds.config.trainer_words import HERE

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # it becomes a file name


Model = TypeVar("Model", bound=BaseModel)


# A number beyond is a slip, and more than the program can count through.
Count = Annotated[int, Field(ge=1, le=10**9)]


Number = Annotated[int, Field(ge=0, le=10**9)]


class Strict(BaseModel):
    """A block of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), frozen=True)


def validated(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`. RoadError that names the key, the value and the nearest known key otherwise."""
    if (text := half_character(data)) is not None:
        raise RoadError(f"{where}: {quote(text)} holds half a character: mend the text")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RoadError(_described(model, data, error, where)) from None


def _described(model: type[BaseModel], data: Any, error: ValidationError, where: str) -> str:
    described: dict[str, list[str]] = {}  # key -> what is wrong with it, once per allowed type
    for detail in error.errors():
        path = _keys(detail, data)
        fault = _fault(model, detail, path)
        faults = described.setdefault(".".join(path), [])
        faults.append(fault.split("; ", 1)[-1] if faults and fault.startswith("got ") else fault)
    between = ": " if where.endswith(".json") else "."
    return "\n".join(
        f"{where}{key and between + key}: {line}"
        for key, faults in described.items()
        for line in " or ".join(dict.fromkeys(faults)).split("\n")
    )


def sound(
    model: type[Model], data: Any, where: str, faults: Faults, entries: tuple[str, ...] = ()
) -> tuple[Model | None, set[str]]:
    """`data` as a `model` without what does not hold, which `faults` collects, and the keys that it was under.

    None where the rest is no such model either. entries: the blocks of named entries, which lose only the faulty ones.
    """
    context = {"parts": True}
    try:
        return model.model_validate(data, context=context), set()
    except ValidationError as error:
        faults.add(_described(model, data, error, where))
        paths = [path for detail in error.errors() if (path := _keys(detail, data))]
    left = dict(data) if isinstance(data, dict) else {}
    left |= {key: {**left[key]} for key in entries if isinstance(left.get(key), dict)}
    for key, *inner in paths:
        block, name = (left.get(key, {}), inner[0]) if key in entries and inner else (left, key)
        block.pop(name, None)
    lacking = {path[0] for path in paths}
    with suppress(ValidationError):
        return model.model_validate(left, context=context), lacking
    return None, lacking


def _keys(detail: Any, data: Any) -> list[str]:
    """The keys that lead to a fault in `data`: pydantic's own path also holds the names of a union's types."""
    path = []
    for part in detail["loc"]:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            path.append(str(part))
            data = data[part]
    return [*path, str(detail["loc"][-1])] if detail["type"] == "missing" else path


def _fault(model: type[BaseModel], detail: Any, path: list[str]) -> str:
    message = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "extra_forbidden":
        if path[-1] in getattr(model, "beside", ()) and path[-1] not in HERE:
            return 'unknown key; it belongs beside the "road" block, not inside'
        return f"unknown key{_meant(path[-1], _known_keys(model, path[:-1]))}"
    if detail["type"] == "missing":
        about = model.model_fields[path[-1]].description if path[-1] in model.model_fields else None
        return f"is required ({about})" if about else "is required"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        message = "expected a block { }"
    return f"got {quote(detail['input'])}; {message}"


def _meant(key: str, known: Iterable[str]) -> str:
    return f"; here it is {HERE[key]}" if key in HERE else nearest(key, known)


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the block at `path` may hold; what is no key of a block on the way is a name or a position."""
    models = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [block for field in fields for block in _blocks([field.annotation, *field.metadata])]
    return [key for m in models for key in m.model_fields]


def _blocks(annotations: Iterable[Any]) -> list[type[BaseModel]]:
    """The models inside type annotations, such as `dict[str, DatasetSpec] | None`."""
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            found += _blocks(get_args(annotation))
    return found
