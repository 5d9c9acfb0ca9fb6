"""From rows to batches: encoding, the cache, and assembly; ours and datasets.map as the question-answering example has it.

    python benchmarks/bench_data.py                 # 2,000 questions, 5 turns
    python benchmarks/bench_data.py --quick

Questions over contexts of 50 to 700 words of the embedded sample's vocabulary, windows of 384 tokens every 128, written as
a SQuAD file. Both read the same file with the same tokenizer, on one process, in turns:

  ours           load_features: read, encode, write the cache; then open it again; micro-batches of 16 through Padding.collate
  datasets.map   the example's function: tokenizer with overflow and offsets over batches of 1,000 rows, padded to 384; then
                 map again, which finds its cache; micro-batches through the example's default_data_collator

A row is a feature, that is a window; the example's stride is the overlap of two windows, ours the distance between them, so
ours are more. Our cache also holds the rows' texts and every token's place in them, which evaluation needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import environment, folder, table

from road_ds.common.hub import sample_path
from road_ds.common.log import quiet_libraries, write_json
from road_ds.config.road import DatasetSpec
from road_ds.data.batches import Padding
from road_ds.data.features import load_features
from road_ds.tasks.registry import task_from

LONGEST, STRIDE, MICRO = 384, 128, 16
COLUMNS = [
    "provider", "rows", "encoded rows/s", "cached rows/s", "micro-batches/s", "bytes per row", "of it features",
]  # fmt: skip


def write_squad(path: Path, questions: int, generator: np.random.Generator) -> None:
    """A SQuAD 2.0 file: four questions to a context, a third of them without an answer."""
    words = [word for word in Path(sample_path("tokenizer"), "vocab.txt").read_text().split() if word.isalpha()]
    paragraphs = []
    for first in range(0, questions, 4):
        chosen = [words[i] for i in generator.integers(len(words), size=generator.integers(50, 701))]
        context = " ".join(chosen)
        asked = []
        for number in range(first, min(first + 4, questions)):
            at = int(generator.integers(len(chosen)))
            answer = {"text": chosen[at], "answer_start": len(" ".join(chosen[:at])) + (at > 0)}
            question = " ".join(words[i] for i in generator.integers(len(words), size=9)) + " ?"
            answers = [answer] if number % 3 else []
            asked.append({"id": str(number), "question": question, "answers": answers, "is_impossible": not answers})
        paragraphs.append({"context": context, "qas": asked})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "mix", "paragraphs": paragraphs}]}))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def ours(file: Path, scratch: Path, tokenizer: Any, batches: list[np.ndarray]) -> dict[str, float]:
    """Seconds and sizes of one turn over an empty cache."""
    task = task_from({"type": "span_qa", "max_length": LONGEST, "doc_stride": STRIDE}, "qa")
    spec = DatasetSpec(task="qa", format="squad", train=str(file))

    def load() -> Any:
        return load_features("mix", "train", spec, task, tokenizer, scratch)

    cold, source = seconds(load)
    cached, source = seconds(load)
    padding = Padding("grouped", tokenizer.pad_token_id, {"mix": LONGEST})
    assembly, _ = seconds(lambda: [padding.collate(source, rows % len(source)) for rows in batches])
    features = (source.folder / "features.arrow").stat().st_size
    return {
        "rows": len(source),
        "cold": cold,
        "cached": cached,
        "assembly": assembly,
        "bytes": size(scratch),
        "features": features,
    }


def prepare(tokenizer: Any) -> Callable[[dict[str, list]], dict[str, list]]:
    """The example's function from rows to features."""

    def features(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(
            [question.lstrip() for question in rows["question"]], rows["context"],
            truncation="only_second", max_length=LONGEST, stride=STRIDE, padding="max_length",
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        starts, ends = [], []
        sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        for window, (source, spans) in enumerate(zip(sources, offsets, strict=True)):
            parts = encoded.sequence_ids(window)
            answers = rows["answers"][source]
            first = parts.index(1)
            last = len(parts) - 1 - parts[::-1].index(1)
            start = end = encoded["input_ids"][window].index(tokenizer.cls_token_id)
            if answers["text"]:
                begin = answers["answer_start"][0]
                stop = begin + len(answers["text"][0])
                if spans[first][0] <= begin and spans[last][1] >= stop:
                    start = next(i for i in range(first, last + 1) if spans[i][1] > begin)
                    end = next(i for i in range(last, first - 1, -1) if spans[i][0] < stop)
            starts.append(start)
            ends.append(end)
        return {**encoded, "start_positions": starts, "end_positions": ends}

    return features


def mapped(file: Path, scratch: Path, tokenizer: Any, batches: list[np.ndarray]) -> dict[str, float]:
    """The same by datasets.map, over an empty cache."""
    from datasets import Dataset
    from transformers import default_data_collator

    scratch.mkdir(parents=True)

    def load() -> Any:
        rows: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
        for paragraph in json.loads(file.read_text())["data"][0]["paragraphs"]:
            for asked in paragraph["qas"]:
                rows["id"].append(asked["id"])
                rows["question"].append(asked["question"])
                rows["context"].append(paragraph["context"])
                rows["answers"].append({
                    "text": [answer["text"] for answer in asked["answers"]],
                    "answer_start": [answer["answer_start"] for answer in asked["answers"]],
                })  # fmt: skip
        raw = Dataset.from_dict(rows)
        return raw.map(
            prepare(tokenizer), batched=True, remove_columns=raw.column_names,
            cache_file_name=str(scratch / "features.arrow"), new_fingerprint="features",
        )  # fmt: skip

    cold, source = seconds(load)
    cached, source = seconds(load)
    assembly, _ = seconds(
        lambda: [default_data_collator([source[int(row)] for row in rows % len(source)]) for rows in batches]
    )
    used = size(scratch)
    return {
        "rows": len(source),
        "cold": cold,
        "cached": cached,
        "assembly": assembly,
        "bytes": used,
        "features": used,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="400 questions, 2 turns")
    parser.add_argument("--json", type=Path, help="where to write, instead of results/<device>/bench_data.json")
    options = parser.parse_args(arguments)
    questions, turns = (400, 2) if options.quick else (options.questions, options.turns)
    quiet_libraries()
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    generator = np.random.default_rng(0)
    batches = [generator.integers(10**6, size=MICRO) for _ in range(200)]
    providers = {"ours": ours, "datasets.map": mapped}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in providers}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "mix.json"
        write_squad(file, questions, generator)
        for turn in range(turns):
            for name in list(providers)[:: 1 if turn % 2 else -1]:
                found[name].append(providers[name](file, Path(temporary) / f"{name}-{turn}", tokenizer, batches))
    rows: list[dict[str, Any]] = []
    for name, taken in found.items():
        count = taken[0]["rows"]
        rows.append({
            "provider": name,
            "rows": count,
            "encoded rows/s": count / median(turn["cold"] for turn in taken),
            "cached rows/s": count / median(turn["cached"] for turn in taken),
            "micro-batches/s": len(batches) / median(turn["assembly"] for turn in taken),
            "bytes per row": taken[0]["bytes"] / count,
            "of it features": taken[0]["features"] / count,
            "turns": taken,
        })  # fmt: skip
    device = torch.device("cpu")
    print(table(rows, COLUMNS))
    path = options.json or folder(device) / "bench_data.json"
    versions = {package: version(package) for package in ("datasets", "transformers", "tokenizers", "pyarrow")}
    write_json(path, {"environment": environment(device) | versions, "questions": questions, "rows": rows})
    print(f"written to {path}")
    ratios = [
        f"{what} {rows[0][what] / rows[1][what]:.2f}x"
        for what in ("encoded rows/s", "micro-batches/s", "bytes per row")
    ]
    print(f"ours against datasets.map: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
