"""What a model folder holds besides its tokenizer: configuration and weights. A damaged file is a RoadError that names it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from road_ds.common.errors import RoadError, first_line
from road_ds.common.strict_json import load_json


def read_config(folder: Path, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The Hugging Face configuration of a model folder, with some settings changed."""
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, **(settings or {}))
    except Exception as error:  # what a file or a user may write fails in the library's own ways
        given = " with road.model.config" if settings else ""
        raise RoadError(f"{name}: config.json{given} cannot be used: {first_line(error)}") from None


def written_head(folder: Path) -> tuple[list[str], list[str]]:
    """The architectures that a folder's config.json names, and the names of its labels in their order."""
    config = load_json(folder / "config.json")
    facts = [config.get("architectures") or [], config.get("id2label") or {}] if isinstance(config, dict) else []
    if list(map(type, facts)) != [list, dict] or not all(key.isdecimal() for key in facts[1]):
        raise RoadError(
            f"{folder / 'config.json'}: architectures or id2label cannot be used: expected [a name] and {{number: name}}"
        )
    architectures, names = facts
    return list(map(str, architectures)), [str(names[key]) for key in sorted(names, key=int)]


def load_weights(kind: Any, folder: Path, name: str, *, spared: str = "position_ids", **options: Any) -> Any:
    """The model of a folder, of a Hugging Face class, with all weights that it has.

    RoadError where one is missing, or has another shape than the configuration says; those named `spared` may be missing.
    """
    if not any(folder.glob("model*.safetensors")):
        raise RoadError(
            f"{name}: no model.safetensors: weights are read as safetensors only; a hub repository often has them in a "
            f"revision, given as {name}@refs/pr/N"
        )
    try:
        model, report = kind.from_pretrained(
            str(folder), use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True,
            output_loading_info=True, **options,
        )  # fmt: skip
    except Exception as error:
        raise RoadError(f"{name}: the weights cannot be loaded: {first_line(error)}") from None
    missing = sorted(k for k in report["missing_keys"] if spared not in k and not k.endswith("position_ids"))
    if missing:
        raise RoadError(
            f"{name}: {len(missing)} weights of {type(model).__name__} are missing, the first is {missing[0]}"
        )
    if other := sorted(report["mismatched_keys"]):
        weight, found, expected = other[0]
        raise RoadError(
            f"{name}: {len(other)} weights have another shape than config.json says, the first is {weight}: "
            f"{list(found)}, expected {list(expected)}"
        )
    return model


def read_tensors(folder: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """The named tensors of a folder's safetensors files, as far as they are there."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(str(file), "pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name in names}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RoadError(f"{file}: the weights cannot be read: {first_line(error)}") from None
    return found
