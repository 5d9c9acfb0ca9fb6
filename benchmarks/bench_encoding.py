"""Encoding: rows per second and peak memory, ours beside the usual question-answering example's `datasets.map`.

python benchmarks/bench_encoding.py [--rows 5000 20000 80000] [--squad FILE] [--json FILE]

Speed: SQuAD questions to windows of 384 tokens that overlap by about 128, one process, same tokenizer, each way in a fresh process and
cache; the other way pads every window to 384 and looks the answer's tokens up through offsets, as the public example does.
Memory: peak resident size while made-up reviews of about 100 tokens are read from JSONL, sampled not at all, encoded and
written; its slope over the rows says what a million need.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the same one core for both

LENGTH, OVERLAP = 384, 128  # tokens; the example's doc_stride is an overlap, ours the distance between windows


def peak() -> float:
    """The peak resident size of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tokenizer():
    """The embedded sample's tokenizer."""
    from transformers import AutoTokenizer

    from road_ds.hub import sample_path

    return AutoTokenizer.from_pretrained(str(sample_path("tokenizer")))


def ours(file: str, task: dict, columns: dict) -> dict:
    """Seconds and features of road_ds on one file."""
    from road_ds.config import DatasetSpec
    from road_ds.features import load_features
    from road_ds.tasks import task_from

    spec = DatasetSpec(task="t", train=file, **columns)
    chosen, words = task_from(task, "task"), tokenizer()
    before = peak()
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        found = load_features("bench", "train", spec, chosen, words, cache)
        seconds = time.perf_counter() - began
        rows = found.manifest["examples"]
    return {"rows": rows, "features": len(found), "seconds": seconds, "peak_mib": peak(), "before_mib": before}


def mapped(file: str) -> dict:
    """Seconds and features of `datasets.map` with a batched function that pads and finds the answer's tokens."""
    import datasets

    datasets.disable_progress_bars()
    words = tokenizer()
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    before = peak()
    began = time.perf_counter()
    rows = [
        {
            "id": qa["id"], "question": qa["question"], "context": paragraph["context"],
            "answers": {"text": [a["text"] for a in qa["answers"]], "answer_start": [a["answer_start"] for a in qa["answers"]]},
        }
        for article in document["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]
    ]  # fmt: skip

    def features(batch):
        encoded = words(
            [q.lstrip() for q in batch["question"]], batch["context"], truncation="only_second", max_length=LENGTH,
            stride=OVERLAP, return_overflowing_tokens=True, return_offsets_mapping=True, padding="max_length",
        )  # fmt: skip
        origin, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        starts, ends = [], []
        for window, spans in enumerate(offsets):
            answer = batch["answers"][origin[window]]
            sequence = encoded.sequence_ids(window)
            first, last = sequence.index(1), len(sequence) - 1 - sequence[::-1].index(1)
            begin = end = 0
            if answer["answer_start"]:
                at = answer["answer_start"][0]
                stop = at + len(answer["text"][0])
                if spans[first][0] <= at and spans[last][1] >= stop:
                    begin, end = first, last
                    while begin <= last and spans[begin][0] <= at:
                        begin += 1
                    while spans[end][1] >= stop:
                        end -= 1
                    begin, end = begin - 1, end + 1
            starts.append(begin)
            ends.append(end)
        return {**encoded, "start_positions": starts, "end_positions": ends}

    with tempfile.TemporaryDirectory() as cache:
        table = datasets.Dataset.from_list(rows)
        done = table.map(
            features, batched=True, remove_columns=table.column_names, cache_file_name=f"{cache}/map.arrow"
        )
        seconds = time.perf_counter() - began
    return {"rows": len(rows), "features": len(done), "seconds": seconds, "peak_mib": peak(), "before_mib": before}


def reviews(path: Path, count: int) -> None:
    """`count` made-up reviews of about 100 tokens, one JSON object a line."""
    draw = random.Random(0)
    words = [
        line
        for line in (Path(__file__).parents[1] / "road_ds/sample_data/tokenizer/vocab.txt").read_text().split()
        if line.isalpha()
    ]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = " ".join(draw.choices(words, k=max(5, int(draw.lognormvariate(4.3, 0.6)))))
            file.write(json.dumps({"overall": float(draw.randint(1, 5)), "reviewText": text}) + "\n")


def apart(*arguments: str) -> dict:
    """What this script prints as JSON in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 80_000])
    parser.add_argument("--squad", default="road_ds/sample_data/places.train.json", help="a SQuAD file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, file = options.one
        span = {
            "type": "span_qa",
            "max_length": LENGTH,
            "doc_stride": LENGTH - OVERLAP - 20,
        }  # 20: question and special tokens

        stars = {"type": "classification", "labels": ["1", "2", "3", "4", "5"], "max_length": 256}
        runs = {
            "ours": lambda: ours(file, span, {}),
            "map": lambda: mapped(file),
            "reviews": lambda: ours(file, stars, {"shape": "amazon"}),
        }
        print(json.dumps(runs[kind]()))
        return
    result: dict = {"cores": os.cpu_count(), "threads": 1, "squad": Path(options.squad).name}
    for kind in ("ours", "map"):
        times = [apart(kind, options.squad) for _ in range(options.repeats)]
        best = min(times, key=lambda run: run["seconds"])
        result[kind] = {
            **best,
            "rows_per_second": best["rows"] / best["seconds"],
            "all_seconds": [t["seconds"] for t in times],
        }
    result["speedup"] = result["ours"]["rows_per_second"] / result["map"]["rows_per_second"]
    result["memory"] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.rows:
            file = Path(folder) / f"{count}.jsonl"
            reviews(file, count)
            result["memory"].append(apart("reviews", str(file)))
            file.unlink()
    if len(result["memory"]) > 1:
        first, last = result["memory"][0], result["memory"][-1]
        slope = max(0.0, last["peak_mib"] - first["peak_mib"]) / (last["rows"] - first["rows"])
        result["million_rows_mib"] = last["peak_mib"] + slope * (1_000_000 - last["rows"])
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
