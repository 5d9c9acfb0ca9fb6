"""A model's tokenizer, held against the embedding whose rows its ids name and against the texts that it is to read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.digest import text_sha256
from road_ds.common.errors import RoadError, first_line
from road_ds.common.strict_json import quote

FAR = 2  # an embedding with so many rows for each entry was not trained with the tokenizer; padding adds a few hundred
SAMPLE = 200  # rows that are looked at


def read_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of a model folder. RoadError when it has no fast version (character offsets come from it)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a damaged file fails in the library's own ways
        files = "tokenizer.json, tokenizer_config.json or what stands in their place"
        raise RoadError(f"{name}: the tokenizer cannot be loaded from {files}: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise RoadError(
            f"{name}: the tokenizer has no fast version (tokenizer.json), which gives the character offsets"
        )
    if tokenizer.pad_token_id is None:
        raise RoadError(f"{name}: the tokenizer has no padding token: expected the tokenizer of an encoder")
    return tokenizer


def check_vocabulary(tokenizer: Any, config: Any, name: str, *, trained: bool = True) -> None:
    """RoadError where an entry has no row in a model's embedding, or most rows have no entry.

    config: the model's; trained: whether it has weights, so that the tokenizer must be theirs. A matrix padded to a multiple of 128 or so has a few rows more than the tokenizer entries.
    """
    rows = getattr(config, "vocab_size", None)
    if not isinstance(rows, int):
        raise RoadError(f"{name}: {config.model_type} has no vocab_size: expected a model that reads text")
    without = sorted((at, token) for token, at in tokenizer.get_vocab().items() if at >= rows)
    if without:
        names = ", ".join(quote(token) for _, token in without[:5])
        raise RoadError(
            f"{name}: the tokenizer has {len(tokenizer):,} entries, ids up to {without[-1][0]}, the embedding {rows:,} rows "
            f"(vocab_size): no row for {names}{', ...' if len(without) > 5 else ''}: give both of one model, or widen the "
            f"embedding with resize_token_embeddings({without[-1][0] + 1}) and save it"
        )
    if rows > FAR * len(tokenizer):
        fresh = f"give at most {FAR * len(tokenizer):,}, or leave it out for a row to each entry"
        raise RoadError(
            f"{name}: the tokenizer has {len(tokenizer):,} entries, the embedding {rows:,} rows (vocab_size): "
            f"{_cause(tokenizer) if trained else fresh}"
        )


def check_texts(tokenizer: Any, features: Any, name: str) -> None:
    """RoadError where most of the texts are unknown words to the tokenizer, or nothing at all; a sample is looked at.

    features: encoded rows by number, whose input_ids are [tokens].
    """
    around = {getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "cls", "sep", "pad")}
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in {None, *around} else -1
    special = [token for token in tokenizer.all_special_ids if token != unknown]
    rows = np.unique(np.linspace(0, len(features) - 1, SAMPLE).astype(int)) if len(features) else np.array([])
    unread = 0
    for row in rows:
        ids = np.asarray(features[row].input_ids)
        text = ids[~np.isin(ids, special)]
        unread += bool(np.mean(text == unknown) > 0.5) if len(text) else True
    if 2 * unread > len(rows):
        raise RoadError(
            f"{name}: of {unread} of {len(rows)} rows the tokenizer, of {len(tokenizer):,} entries, knows less than half of the "
            f"words: {_cause(tokenizer)}"
        )


def _cause(tokenizer: Any) -> str:
    """Why a tokenizer knows too little: the file that its folder lacks, or that it is another one's."""
    files = list(dict.fromkeys(["tokenizer.json", *type(tokenizer).vocab_files_names.values()]))
    folder = Path(tokenizer.name_or_path)
    if any((folder / file).is_file() for file in files):
        return f"{folder} holds the tokenizer of another model or language"
    return f"{folder} holds none of {', '.join(files)}: copy the tokenizer's files there"


def tokenizer_hash(tokenizer: Any) -> str:
    """A fingerprint of everything that decides how text becomes ids.

    Truncation and padding are left out: they are what the last call asked for, not the tokenizer's own.
    """
    own = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    text = json.dumps([own, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return text_sha256(text)
