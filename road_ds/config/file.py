"""A run's JSON file -> the "road" block and DeepSpeed's part, both validated; KEY=VALUE overrides."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from road_ds.common.errors import Faults, RoadError, nearest
from road_ds.common.hub import expanded
from road_ds.common.strict_json import flat_keys, half_character, load_json, parse_json, quote
from road_ds.config import catalog, deepspeed_keys
from road_ds.config.road import RoadConfig
from road_ds.config.settings import _meant, sound, validated


def setting(assignment: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE`; VALUE is JSON, or plain text where it is not."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise RoadError(f"--set {assignment}: expected KEY=VALUE, for example --set road.steps=20")
    try:
        return key, parse_json(text)
    except ValueError:
        return key, text


def override(data: dict[str, Any], assignment: str) -> None:
    """Sets one key in place from `KEY=VALUE`."""
    key, value = setting(assignment)
    *parents, last = key.split(".")
    block = data
    for parent in parents:
        block = block.setdefault(parent, {})
        if not isinstance(block, dict):
            raise RoadError(f"--set {assignment}: {parent!r} is not a block of settings")
    block[last] = value


Settings = str | Path | Mapping[str, Any]  # a run's file, or what would stand in it
HERE = "run"  # what settings without a file are called


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """Settings given by Python's keywords as KEY=VALUE; those of the "road" block by their name alone."""
    keys = {f"road.{key}" if key in RoadConfig.model_fields else key: value for key, value in overrides.items()}
    return [f"{key}={_as_json(value, key)}" for key, value in keys.items()]


def _as_json(value: Any, where: str) -> str:
    """Plain values, and paths, as JSON."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RoadError(f"{where}: expected what JSON can hold, and paths: {error}") from None


def _read(settings: Settings) -> tuple[Any, str]:
    """What stands in a run's file, and the file's name."""
    if isinstance(settings, Mapping):
        return json.loads(_as_json(dict(settings), HERE)), HERE
    if half_character(str(settings)) is not None:
        raise RoadError(f"{quote(str(settings))}: the path is not UTF-8: rename the file or folder")
    return load_json(settings), str(settings)


def load_config(settings: Settings, overrides: list[str] | tuple[str, ...] = ()) -> tuple[RoadConfig, dict[str, Any]]:
    """The validated `"road"` block, and DeepSpeed's part of the file as it is given.

    `road.output` is filled in as `runs/<config name>`, and `road.use` applied. Raises RoadError for anything that does not hold; sizes that
    depend on the number of processes or the device are fitted later, by `fit_batch`, `fit_precision` and `fit_optimizer`.
    """
    faults = Faults()
    config, ds = read_config(settings, overrides, faults)
    faults.end()
    return config, ds


def read_config(
    settings: Settings, overrides: list[str] | tuple[str, ...], faults: Faults
) -> tuple[RoadConfig, dict[str, Any]]:
    """As `load_config`, with the faults collected and what is left without the faulty parts, to be looked at further."""
    data, path = _read(settings)
    if not isinstance(data, dict):
        raise RoadError(f'{path}: expected an object with DeepSpeed\'s keys and a "road" block')
    for assignment in overrides:
        override(data, assignment)
    for key in unwritable(data):
        faults.add(
            f"{path}: {key}: holds a NUL or half a character, which neither a path nor UTF-8 can hold: mend the text"
        )
    for key, value in flat_keys(data).items():
        if isinstance(value, int) and abs(value) >= 2**63:
            faults.add(f"{path}: {key}: got {quote(value)}; expected a number below 2^63")
    faults.end()
    road = data.pop("road", None)
    if road is None:
        raise RoadError(f'{path}: has no "road" block (model, tasks, datasets, steps ...){nearest("road", data)}')
    for key in [*data]:
        if fault := deepspeed_keys.misplaced(key, RoadConfig.model_fields):
            faults.add(f"{path}: {key}: {fault}")
            del data[key]
    check_engine(data, path, faults)
    try:
        road = catalog.expand(road) if isinstance(road, dict) else road
    except RoadError as error:
        faults.add(f"{path}: road.{error}")
        raise faults.all() from None
    config, lacking = sound(RoadConfig, road, f"{path}: road", faults, ("datasets", "tasks"))
    if config is None:
        raise faults.all()
    for keys, fault in config.unfit():
        if not keys & lacking:
            faults.add(f"{path}: road: {fault}")
    with faults.caught():
        config = config.narrowed()
    with faults.caught():
        output = str(expanded(config.output or f"runs/{Path(path).stem}", "road.output "))
        config = config.model_copy(update={"output": output})
    config._file = path
    return config, data


def unwritable(value: Any, key: str = "") -> Iterator[str]:
    """The keys under which a text stands that neither a path nor UTF-8 can hold."""
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        yield quote(key)[1:-1]
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unwritable(inner, f"{key}.{name}" if key else str(name))
            yield from unwritable(name, f"{key}.{name}" if key else str(name))


def check_engine(ds: dict[str, Any], where: str, faults: Faults) -> None:
    """Collects unknown keys and values that do not hold in DeepSpeed's part, inside its blocks too, and takes them out."""
    for key in sound(deepspeed_keys.Engine, ds, where, faults)[1]:
        ds.pop(key, None)
    checks: dict[str, Callable[[dict[str, Any], str], None]] = {
        block: partial(_check_block, model) for block, model in deepspeed_keys.own_models().items()
    }
    for key, check in {**checks, "optimizer": _check_optimizer}.items():
        if key in ds:
            try:
                check(ds[key], f"{where}: {key}")
            except RoadError as error:
                faults.add(str(error))
                del ds[key]


def _check_block(model: type[BaseModel], block: dict[str, Any], where: str) -> None:
    enabled, stage = block.get("enabled", False), block.get("stage", 0)
    if not isinstance(enabled, bool):
        raise RoadError(f"{where}.enabled: got {quote(enabled)}; input should be true or false")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise RoadError(f"{where}.stage: got {quote(stage)}; allowed: 0, 1, 2, 3")
    validated(model, block, where)


def _check_optimizer(block: dict[str, Any], where: str) -> None:
    name, params = block["type"], block.get("params", {})
    known = deepspeed_keys.optimizers()
    kind = known.get(name) or known.get(name.lower())
    if kind is None:
        raise RoadError(f"{where}.type: got {quote(name)}{nearest(name, known)}; allowed: {', '.join(known)}")
    keys = deepspeed_keys.optimizer_keys(kind, params)
    faults = Faults()
    for key in params:
        if key not in keys:
            faults.add(f"{where}.params.{key}: unknown key of {name}{_meant(key, keys)}")
    lr = params.get("lr")
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not 0 < lr < float("inf"):
        faults.add(f"{where}.params.lr: got {quote(lr)}; input should be a number above 0")
    elif fault := deepspeed_keys.optimizer_fault(kind, params):
        faults.add(f"{where}.params: {name} does not take {quote(params, 200)}: {fault}")
    faults.end()
