"""Encoding: rows per second beside the usual question-answering example's `datasets.map`, and peak memory over rows.

python benchmarks/bench_encoding.py [--quick] [--squad FILE] [--rows 20000 1000000] [--sample N] [--text 1024] [--json FILE]

Speed: SQuAD questions to windows of 384 tokens that overlap by 128, one core, the same tokenizer, each turn in a process
and with a cache of its own, turns alternating. The example calls the tokenizer with overflow, pads to 384 and looks the
answer's tokens up through offsets; ours also keeps the examples and each token's best window. Its `stride` is the overlap,
our `doc_stride` the distance: questions are cut to QUESTION tokens, so that both make the same windows, which is checked.
Memory: peak resident size of a process that reads made-up reviews of about 100 words from JSONL, draws a sample of them by
a reservoir, encodes and writes them.
Text: documents of about 2,300 characters, sequences of PACKED tokens, all cores; from the file to the kept features, hashes
included. The documents are the embedded text's, a few together, with new words among them (every twentieth), as many as ordinary text has.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the same one core for both

LENGTH, OVERLAP, QUESTION, PACKED = 384, 128, 8, 128  # tokens
DISTANCE = LENGTH - 3 - QUESTION - OVERLAP  # 3: [CLS] and twice [SEP]

Way = Callable[[str], Any]  # makes the features in a cache folder


def tokenizer() -> Any:
    """The embedded sample's tokenizer."""
    from transformers import AutoTokenizer

    from road_ds.common.hub import sample_path

    return AutoTokenizer.from_pretrained(str(sample_path("tokenizer")))


def load(file: str, cache: str, task: dict, **settings: Any) -> Any:
    """The features of one file by road_ds."""
    from road_ds.config.road import DatasetSpec
    from road_ds.data.features import load_features
    from road_ds.tasks.registry import task_from

    spec = DatasetSpec(task="t", train=file, **settings)
    return load_features("bench", "train", spec, task_from(task, "task"), tokenizer(), cache)


def ours(file: str) -> Way:
    """The windows of a SQuAD file by road_ds; reading the file is part of what is timed."""
    return lambda cache: load(file, cache, {"type": "span_qa", "max_length": LENGTH, "doc_stride": DISTANCE})


def mapped(file: str) -> Way:
    """The windows by `datasets.map` with a batched function that pads and finds the answer's tokens; only it is timed."""
    import datasets

    datasets.disable_progress_bars()
    words = tokenizer()
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    rows = [
        {
            "id": qa["id"], "question": qa["question"], "context": paragraph["context"],
            "answers": {"text": [a["text"] for a in qa["answers"]], "answer_start": [a["answer_start"] for a in qa["answers"]]},
        }
        for article in document["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]
    ]  # fmt: skip

    def features(batch: dict) -> dict:
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

    table = datasets.Dataset.from_list(rows)
    plain = {"batched": True, "remove_columns": table.column_names}
    return lambda cache: table.map(features, cache_file_name=f"{cache}/map.arrow", **plain)


def reviews(file: str, sample: str) -> Way:
    """Encoded reviews, `sample` of them drawn."""
    stars = {"type": "classification", "labels": ["1", "2", "3", "4", "5"], "max_length": 256}
    return lambda cache: load(file, cache, stars, shape="amazon", sample=int(sample))


def packed(file: str) -> Way:
    """The sequences of a file of text, as a pretraining task asks for them."""
    from road_ds.config.road import DatasetSpec
    from road_ds.data.features import load_features
    from road_ds.tasks.sequences import sequences
    from road_ds.tasks.text import TextTask

    class Packed(TextTask):
        def labelled(self, example: Any) -> bool:
            return True

        def encode(self, examples: Any, words: Any, first: int = 0) -> Any:
            return sequences(examples, words, self.max_length, first)

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    task, spec = Packed(type="packed", max_length=PACKED), DatasetSpec(task="t", train=file)
    return lambda cache: load_features("bench", "train", spec, task, tokenizer(), cache)


def cut_questions(source: str, target: Path) -> int:
    """Writes the SQuAD file with each question cut to QUESTION tokens, shorter ones left out; how many are left."""
    words, left = tokenizer(), 0
    document = json.loads(Path(source).read_text(encoding="utf-8"))
    for paragraph in (paragraph for article in document["data"] for paragraph in article["paragraphs"]):
        kept = []
        for qa in paragraph["qas"]:
            ends = words(qa["question"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            cut = qa["question"][: ends[QUESTION - 1][1]] if len(ends) >= QUESTION else ""
            if len(words(cut, add_special_tokens=False)["input_ids"]) == QUESTION:
                kept.append({**qa, "question": cut})
        paragraph["qas"] = kept
        left += len(kept)
    target.write_text(json.dumps(document), encoding="utf-8")
    return left


def check_same_windows(file: str, folder: str) -> int:
    """How many windows both ways make of a file, after comparing ids, types and answers of each."""
    here, there = ours(file)(folder), mapped(file)(folder)
    assert len(here) == len(there), (len(here), len(there))
    answers = 0
    for i, other in enumerate(there):
        feature = here[i]
        length = sum(other["attention_mask"])
        assert feature.input_ids.tolist() == other["input_ids"][:length], i
        assert feature.token_type_ids.tolist() == other["token_type_ids"][:length], i
        answers += feature.labels.tolist() == [other["start_positions"], other["end_positions"]]
    # the two read an answer differently where it ends inside a token
    assert answers > 0.99 * len(there), (answers, len(there))
    return len(here)


def write_reviews(path: Path, count: int) -> None:
    """`count` made-up reviews of about 100 words, one JSON object a line."""
    draw = random.Random(0)
    vocabulary = Path(__file__).parents[1] / "road_ds/data/sample_data/tokenizer/vocab.txt"
    words = [line for line in vocabulary.read_text(encoding="utf-8").split() if line.isalpha()]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = " ".join(draw.choices(words, k=max(5, int(draw.lognormvariate(4.44, 0.6)))))
            file.write(json.dumps({"overall": float(draw.randint(1, 5)), "reviewText": text}) + "\n")


def write_text(path: Path, mib: int) -> None:
    """So many MiB of documents with blank lines between them."""
    draw = random.Random(0)
    source = Path(__file__).parents[1] / "road_ds/data/sample_data/text.train.txt"
    documents = source.read_text(encoding="utf-8").strip().split("\n\n")
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < mib * 2**20:
            lines = "\n".join(draw.choices(documents, k=12)).split("\n")
            lines = [f"{line} {draw.getrandbits(24):x}" if i % 2 else line for i, line in enumerate(lines)]
            written += file.write("\n".join(lines) + "\n\n")


def apart(kind: str, *arguments: str) -> dict:
    """What one turn of `kind` measured, in a process of its own."""
    command = [sys.executable, __file__, "--turn", kind, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def turn(kind: str, *arguments: str) -> dict:
    """Seconds (libraries already imported; of text those of all cores too), features and peak memory in MiB of one way on one file."""
    import datasets  # noqa: F401

    from road_ds.data import features  # noqa: F401
    from road_ds.tasks import base as tasks  # noqa: F401

    kinds: dict[str, Callable[..., Way]] = {"ours": ours, "mapped": mapped, "reviews": reviews, "text": packed}
    way = kinds[kind](*arguments)
    tokenizer()
    with tempfile.TemporaryDirectory() as cache:
        before = peak()
        began, used = time.perf_counter(), time.process_time()
        made = way(cache)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        result = {
            "features": len(made),
            "seconds": round(seconds, 3),
            "peak_mib": round(peak()),
            "before_mib": round(before),
        }
        if kind == "text":
            kept = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
            result |= rates(Path(arguments[0]).stat().st_size, made.manifest.examples, int(made.lengths.sum()), seconds)
            result |= {"kept_mib": round(kept / 2**20), "cpu_seconds": round(used, 1)}
    return result


def rates(size: int, documents: int, tokens: int, seconds: float) -> dict:
    """What was read, and how much of it in a second."""
    counts = {"mib": size / 2**20, "documents": documents, "tokens": tokens}
    return {
        **{name: round(count) for name, count in counts.items()},
        **{
            f"{name}_per_second": round(count / seconds, 1 if name == "mib" else None) for name, count in counts.items()
        },
    }


def peak() -> float:
    """The peak resident size of this process in MiB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speed(squad: str, turns: int, folder: str) -> dict:
    """Rows a second of both ways on the same rows, and how many times faster ours is: medians, least and most."""
    file = Path(folder) / "questions.json"
    rows = cut_questions(squad, file)
    windows = check_same_windows(str(file), folder)
    pairs = [(apart("ours", str(file)), apart("mapped", str(file))) for _ in range(turns)]
    result: dict[str, Any] = {"squad": Path(squad).name, "rows": rows, "windows": windows, "turns": turns}
    for name, measured in zip(("ours", "mapped"), zip(*pairs, strict=True), strict=True):
        seconds = [one["seconds"] for one in measured]
        result[name] = {"rows_per_second": round(rows / statistics.median(seconds)), "seconds": seconds}
    ratios = [other["seconds"] / own["seconds"] for own, other in pairs]
    result["times_faster"] = {
        "median": round(statistics.median(ratios), 2), "least": round(min(ratios), 2), "most": round(max(ratios), 2)
    }  # fmt: skip
    return result


def memory(counts: list[int], sample: int, folder: str) -> list[dict]:
    """Peak memory by number of rows, of which `sample` are drawn."""
    result = []
    for count in counts:
        file = Path(folder) / f"{count}.jsonl"
        write_reviews(file, count)
        result.append({"rows": count, "mib_on_disk": round(file.stat().st_size / 2**20)}
                      | apart("reviews", str(file), str(sample)))  # fmt: skip
        print(json.dumps(result[-1]), file=sys.stderr, flush=True)
        file.unlink()
    return result


def packing(sizes: list[int], folder: str) -> list[dict]:
    """Rates and peak memory by MiB of text."""
    result = []
    for size in sizes:
        file = Path(folder) / "text.txt"
        write_text(file, size)
        result.append(apart("text", str(file)))
        print(json.dumps(result[-1]), file=sys.stderr, flush=True)
        file.unlink()
    return result


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn and few rows: shows that it runs")
    parser.add_argument("--squad", default="road_ds/data/sample_data/places.train.json", help="a SQuAD file")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--sample", type=int, default=1_000_000, help="rows drawn from the reviews")
    parser.add_argument("--text", type=int, nargs="*", default=[64, 1024], help="MiB of text to pack")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--turn", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(turn(*options.turn)))
        return
    turns, counts, sizes = (1, [500, 2000], [1]) if options.quick else (options.turns, options.rows, options.text)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "cores": os.cpu_count(),
            "threads": 1,
            "speed": speed(options.squad, turns, folder) if turns else None,
            "memory": {"sample": options.sample, "runs": memory(counts, options.sample, folder)},
            "text": packing(sizes, folder),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
