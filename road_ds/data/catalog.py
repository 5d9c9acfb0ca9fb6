"""Known data sets by name: where their rows are, how they are read, which task and labels they have. CATALOG is a table.

`"datasets": ["snli", "qqp"]` uses the entries as they are; `{"snli": {"path": "folder"}}` reads the publisher's original
files or a save_to_disk folder there; `{"small": {"catalog": "snli", "max_rows": 1000}}` is one more of the same kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from road_ds.errors import RoadError, nearest

Settings = dict[str, Any]  # keys of road.datasets


@dataclass(frozen=True)
class Hub:
    """Rows on the Hugging Face hub, in repositories of data files: splits by part."""

    path: str
    config: str | None
    parts: Mapping[str, str]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """Rows as the publisher gives them: file names in one folder by part (each may end in .gz), read with these settings."""

    format: str
    parts: Mapping[str, str]
    settings: Settings = field(default_factory=dict)
    of_part: Mapping[str, Settings] = field(default_factory=dict)  # what differs in one part


@dataclass(frozen=True)
class Entry:
    """A data set: rows = how many its parts have after what `dropped` says, bad ones included, where that is published.

    Another count is a warning. docs/data_sets.md says where each entry was looked up.
    """

    task: str
    metric: str
    licence: str
    citation: str
    files: tuple[Files, ...]
    hub: Hub | None = None
    settings: Settings = field(default_factory=dict)
    train: str = "train"
    dev: str | float = "dev"
    rows: Mapping[str, int] = field(default_factory=dict)
    dropped: str = "nothing"
    note: str = ""  # where no hub has the rows, its last sentence says why


NLI = ["entailment", "neutral", "contradiction"]
PAIR = ["not_entailment", "entailment"]

# The tasks of the paper's four kinds, and one for each GLUE set whose labels are its own.
TASKS: dict[str, Settings] = {
    "mrc": {"type": "span_qa"},
    "nli": {"type": "classification", "labels": NLI},
    "sentiment": {"type": "classification", "labels": ["1", "2", "3", "4", "5"], "max_length": 256},
    "paraphrase": {"type": "classification", "labels": ["not_duplicate", "duplicate"]},
    "cola": {"type": "classification", "labels": ["unacceptable", "acceptable"]},
    "sst2": {"type": "classification", "labels": ["negative", "positive"]},
    "mrpc": {"type": "classification", "labels": ["not_equivalent", "equivalent"]},
    "stsb": {"type": "regression"},
    "qnli": {"type": "classification", "labels": PAIR, "max_length": 256},
    "rte": {"type": "classification", "labels": PAIR, "max_length": 256},
    "wnli": {"type": "classification", "labels": PAIR},
}

THREE = {"train": "train", "dev": "validation", "test": "test"}
TWO = {"train": "train", "dev": "validation"}
GLUE_LICENCE = "other: each GLUE set has its source's"
GLUE_CITATION = "Wang et al. 2019, GLUE, ICLR"


def _glue(config: str, **parts: str) -> Hub:
    return Hub("nyu-mll/glue", config, {**THREE, **parts}, {"columns": {"id": "idx"}})


def _tsv(columns: Settings, of_test: Settings | None = None, **parts: str) -> Files:
    """GLUE's own files: quotes are literal; the test part has no label."""
    texts = {key: value for key, value in columns.items() if key != "label"}
    names = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv", **parts}
    of_test = {"columns": {"id": "index", **texts}} if of_test is None else {"columns": of_test}
    settings = {"columns": columns, "quoting": False}
    return Files("tsv", names, settings, {part: of_test for part in names if part.startswith("test")})


def _mrqa(subset: str, train: int, dev: int, citation: str) -> Entry:
    """One in-domain set of MRQA 2019: answerable questions only, contexts of at most 800 tokens."""
    return Entry(
        task="mrc",
        metric="f1",
        licence="unknown",
        citation=f"{citation}; Fisch et al. 2019, MRQA shared task",
        hub=Hub("mrqa-workshop/mrqa", "plain_text", TWO, {"keep": {"subset": subset}}),
        files=(
            Files("jsonl", {"train": f"train/{subset}.jsonl", "dev": f"dev/{subset}.jsonl"}),
            Files("jsonl", {"train": f"{subset}.train.jsonl", "dev": f"{subset}.dev.jsonl"}),
        ),
        settings={"shape": "mrqa"},
        rows={"train": train, "dev": dev},
        note="MRQA protocol: answerable questions only; compare answered_f1 (no-answer off)",
    )


NQ = "Kwiatkowski et al. 2019, Natural Questions, TACL"
TRIVIA = "Joshi et al. 2017, TriviaQA, ACL"
NEWS = "Trischler et al. 2017, NewsQA, RepL4NLP"

CATALOG: dict[str, Entry] = {
    # ------------------------------------------------------------------------- machine reading comprehension
    "squad": Entry(
        task="mrc",
        metric="f1",
        licence="CC BY-SA 4.0",
        citation="Rajpurkar et al. 2016, SQuAD, EMNLP",
        hub=Hub("rajpurkar/squad", "plain_text", TWO),
        files=(
            Files("squad", {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}),
            Files("squad", {"train": "train.json", "dev": "dev.json"}),
        ),
        rows={"train": 87_599, "dev": 10_570},
        note="answerable questions only; compare answered_f1 (no-answer off)",
    ),
    "squad2": Entry(
        task="mrc",
        metric="f1",
        licence="CC BY-SA 4.0",
        citation="Rajpurkar et al. 2018, SQuAD 2.0, ACL",
        hub=Hub("rajpurkar/squad_v2", "squad_v2", TWO),
        files=(
            Files("squad", {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}),
            Files("squad", {"train": "train.json", "dev": "dev.json"}),
        ),
        rows={"train": 130_319, "dev": 11_873},
    ),
    "triviaqa": Entry(
        task="mrc",
        metric="f1",
        licence="unknown",
        citation=TRIVIA,
        hub=Hub("mandarjoshi/trivia_qa", "rc.wikipedia", TWO),
        files=(
            Files("items", {"train": "qa/wikipedia-train.json", "dev": "qa/wikipedia-dev.json"}),
            Files("items", {"train": "qa/web-train.json", "dev": "qa/web-dev.json"}),
        ),
        settings={"shape": "trivia_qa", "context_words": 800},
        dropped="documents without an alias of the answer in their first 800 words",
        note="distant supervision: the first occurrence of an alias; one row per document; evidence/ lies beside qa/",
    ),
    "triviaqa_mrqa": _mrqa("TriviaQA-web", 61_688, 7_785, TRIVIA),
    "natural_questions": Entry(
        task="mrc",
        metric="f1",
        licence="CC BY-SA 3.0",
        citation=NQ,
        hub=Hub("google-research-datasets/natural_questions", "default", TWO),
        files=(
            Files("jsonl", {"train": "simplified-nq-train.jsonl", "dev": "nq-dev-all.jsonl"}),
            Files("jsonl", {"train": "v1.0-simplified_simplified-nq-train.jsonl", "dev": "v1.0-simplified_nq-dev-all.jsonl"}),
        ),
        settings={"shape": "natural_questions"},
        dropped="questions without a short answer",
        note="the context is the paragraph (long answer) of the first short answer",
    ),
    "natural_questions_mrqa": _mrqa("NaturalQuestionsShort", 104_071, 12_836, NQ),
    "quac": Entry(
        task="mrc",
        metric="quac_f1",
        licence="CC BY-SA 4.0",
        citation="Choi et al. 2018, QuAC, EMNLP",
        files=(Files("items", {"train": "train_v0.2.json", "dev": "val_v0.2.json"}),),
        settings={"shape": "quac"},
        dropped="CANNOTANSWER at the contexts' ends",
        note="history_turns puts so many turns behind each question. The hub has it as a script only",
    ),
    "qa_srl": Entry(
        task="mrc",
        metric="f1",
        licence="not stated",
        citation="FitzGerald et al. 2018, Large-Scale QA-SRL Parsing, ACL",
        files=(
            Files("jsonl", {part: f"orig/{part}.jsonl" for part in ("train", "dev", "test")}),
            Files("jsonl", {part: f"{part}.jsonl" for part in ("train", "dev", "test")}),
        ),
        settings={"shape": "qa_srl_bank"},
        dropped="questions that no majority of judges holds valid",
        note="QA-SRL Bank 2.0: the folder qasrl-v2, or its orig, expanded or dense. The hub has it as a script only",
    ),
    "qa_srl_gs": Entry(
        task="mrc",
        metric="f1",
        licence="MIT",
        citation="Roit et al. 2020, QA-SRL Gold Standard, ACL",
        files=(
            Files(
                "qasrl_gs",
                {
                    "dev": "gold/wikinews.dev.gold.csv", "test": "gold/wikinews.test.gold.csv",
                    "dev_wikipedia": "gold/wikipedia.dev.gold.csv", "test_wikipedia": "gold/wikipedia.test.gold.csv",
                },
            ),
            Files("qasrl_gs", {"dev": "gold.csv"}),
        ),
        settings={"shape": "qa_srl_gs"},
        train="dev",
        dev="test",
        rows={"dev": 3_714},
        note="made for evaluation. sentences/ lies beside gold/, sentences.csv beside gold.csv. The hub has it as a script only",
    ),
    "qa_zre": Entry(
        task="mrc",
        metric="f1",
        licence="unknown",
        citation="Levy et al. 2017, Zero-Shot Relation Extraction, CoNLL",
        # the hub's splits are the ten folds one after the other
        hub=Hub("community-datasets/qa_zre", "default", {"train": "train[:840000]", "dev": "validation[:600]", "test": "test[:12000]"}),
        files=(
            Files("fields", {part: f"relation_splits/{part}.0" for part in ("train", "dev", "test")}),
            Files("fields", {part: f"{part}.0" for part in ("train", "dev", "test")}),
        ),
        settings={"shape": "qa_zre", "drop_duplicates": True, "sample": 1_000_000},
        dropped="duplicates, and answers that do not stand in their sentence; at most 1,000,000 rows are drawn",
        note="fold 0, whose 840,000 training rows are fewer than the paper's 1,000 K; negatives are kept as unanswerable",
    ),
    "newsqa": Entry(
        task="mrc",
        metric="f1",
        licence="its own terms (LICENSE.txt); the stories are CNN's",
        citation=NEWS,
        files=(
            Files(
                "items",
                dict.fromkeys(("train", "dev", "test"), "combined-newsqa-data-v1.json"),
                of_part={part: {"keep": {"type": part}} for part in ("train", "dev", "test")},
            ),
        ),
        settings={"shape": "newsqa"},
        dropped="questions that the consensus calls bad, and empty ones",
        note="original protocol: unanswerable questions are kept; newsqa_mrqa is the other one. The licence keeps it off the hub",
    ),
    "newsqa_mrqa": _mrqa("NewsQA", 74_160, 4_212, NEWS),
    # ------------------------------------------------------------------------------- natural language inference
    "mnli": Entry(
        task="nli",
        metric="accuracy",
        licence="OANC and others",
        citation="Williams et al. 2018, MultiNLI, NAACL; " + GLUE_CITATION,
        hub=_glue("mnli", dev="validation_matched", dev_mismatched="validation_mismatched", test="test_matched", test_mismatched="test_mismatched"),
        files=(
            _tsv(
                {"text_a": "sentence1", "text_b": "sentence2", "label": "gold_label", "id": "index"},
                dev="dev_matched.tsv", dev_mismatched="dev_mismatched.tsv",
                test="test_matched.tsv", test_mismatched="test_mismatched.tsv",
            ),
            Files(
                "jsonl",
                {"train": "multinli_1.0_train.jsonl", "dev": "multinli_1.0_dev_matched.jsonl", "dev_mismatched": "multinli_1.0_dev_mismatched.jsonl"},
                {"columns": {"id": "pairID", "text_a": "sentence1", "text_b": "sentence2", "label": "gold_label"}},
            ),
        ),
        settings={"drop_labels": ["-", "-1"]},
        rows={"train": 392_702, "dev": 9_815, "dev_mismatched": 9_832, "test": 9_796, "test_mismatched": 9_847},
        dropped="pairs without a gold label",
    ),
    "snli": Entry(
        task="nli",
        metric="accuracy",
        licence="CC BY-SA 4.0",
        citation="Bowman et al. 2015, SNLI, EMNLP",
        hub=Hub("stanfordnlp/snli", "plain_text", THREE),
        files=(
            Files(
                "jsonl",
                {"train": "snli_1.0_train.jsonl", "dev": "snli_1.0_dev.jsonl", "test": "snli_1.0_test.jsonl"},
                {"columns": {"id": "pairID", "text_a": "sentence1", "text_b": "sentence2", "label": "gold_label"}},
            ),
            Files("tsv", {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}, {"quoting": False}),
        ),
        settings={"drop_labels": ["-", "-1"]},
        rows={"train": 549_367, "dev": 9_842, "test": 9_824},
        dropped="pairs without a gold label (- in the files, -1 on the hub)",
    ),
    # ---------------------------------------------------------------------------------- sentiment and paraphrase
    "amazon": Entry(
        task="sentiment",
        metric="accuracy",
        licence="not stated",
        citation="Ni et al. 2019, Justifying Recommendations, EMNLP",
        files=tuple(
            Files("jsonl", {"train": name})
            for name in ("All_Amazon_Review_5.json", "All_Amazon_Review.json", "reviews.jsonl")
        ),
        settings={"shape": "amazon", "sample": 1_000_000},
        dev=0.02,
        dropped="empty reviews; 1,000,000 rows are drawn, with stratified true as many of each star",
        note="reviews.jsonl: one category of the 2018 or 2023 edition under that name. The hub has it as a script only",
    ),
    "qqp": Entry(
        task="paraphrase",
        metric="f1",
        licence=GLUE_LICENCE,
        citation="Iyer et al. 2017, Quora Question Pairs; " + GLUE_CITATION,
        hub=_glue("qqp"),
        files=(_tsv({"text_a": "question1", "text_b": "question2", "label": "is_duplicate", "id": "id"}),),
        settings={"label_map": {"0": "not_duplicate", "1": "duplicate"}, "skip_bad": 100},
        rows={"train": 363_846, "dev": 40_430, "test": 390_965},
        dropped="at most 100 rows with an empty question or a broken line, named in a warning",
    ),
    # ------------------------------------------------------------------------------------------------- GLUE
    "cola": Entry(
        task="cola",
        metric="mcc",
        licence=GLUE_LICENCE,
        citation="Warstadt et al. 2019, CoLA, TACL; " + GLUE_CITATION,
        hub=_glue("cola"),
        files=(
            Files(
                "tsv",
                {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
                {"header": False, "quoting": False, "columns": {"label": 1, "text_a": 3}},
                {"test": {"header": True, "columns": {"id": "index", "text_a": "sentence"}}},
            ),
        ),
        settings={"label_map": {"0": "unacceptable", "1": "acceptable"}},
        rows={"train": 8_551, "dev": 1_043, "test": 1_063},
    ),
    "sst2": Entry(
        task="sst2",
        metric="accuracy",
        licence=GLUE_LICENCE,
        citation="Socher et al. 2013, SST, EMNLP; " + GLUE_CITATION,
        hub=_glue("sst2"),
        files=(_tsv({"text_a": "sentence", "label": "label"}),),
        settings={"label_map": {"0": "negative", "1": "positive"}},
        rows={"train": 67_349, "dev": 872, "test": 1_821},
    ),
    "mrpc": Entry(
        task="mrpc",
        metric="f1",
        licence="Microsoft shared source, research use",
        citation="Dolan and Brockett 2005, MRPC, IWP; " + GLUE_CITATION,
        hub=_glue("mrpc"),
        files=(
            _tsv(
                {"text_a": "#1 String", "text_b": "#2 String", "label": "Quality"},
                {"id": "index", "text_a": "#1 String", "text_b": "#2 String"},
            ),
            Files(
                "tsv",
                {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"},
                {"quoting": False, "columns": {"text_a": "#1 String", "text_b": "#2 String", "label": "Quality"}},
            ),
        ),
        settings={"label_map": {"0": "not_equivalent", "1": "equivalent"}},
        rows={"train": 3_668, "dev": 408, "test": 1_725},
        note="both_orders trains each pair in both orders; the files have a byte-order mark and unbalanced literal quotes",
    ),
    "stsb": Entry(
        task="stsb",
        metric="pearson",
        licence=GLUE_LICENCE,
        citation="Cer et al. 2017, STS-B, SemEval; " + GLUE_CITATION,
        hub=_glue("stsb"),
        files=(_tsv({"text_a": "sentence1", "text_b": "sentence2", "label": "score", "id": "index"}),),
        rows={"train": 5_749, "dev": 1_500, "test": 1_379},
        note="a number from 0 to 5; both_orders trains each pair in both orders",
    ),
    "qnli": Entry(
        task="qnli",
        metric="accuracy",
        licence=GLUE_LICENCE,
        citation="made from SQuAD; " + GLUE_CITATION,
        hub=Hub("nyu-mll/glue", "qnli", THREE, {"columns": {"id": "idx", "text_a": "question", "text_b": "sentence"}}),
        files=(_tsv({"text_a": "question", "text_b": "sentence", "label": "label", "id": "index"}),),
        rows={"train": 104_743, "dev": 5_463, "test": 5_463},
    ),
    "rte": Entry(
        task="rte",
        metric="accuracy",
        licence=GLUE_LICENCE,
        citation="Dagan et al. 2005 and later RTE challenges; " + GLUE_CITATION,
        hub=_glue("rte"),
        files=(_tsv({"text_a": "sentence1", "text_b": "sentence2", "label": "label", "id": "index"}),),
        rows={"train": 2_490, "dev": 277, "test": 3_000},
    ),
    "wnli": Entry(
        task="wnli",
        metric="accuracy",
        licence=GLUE_LICENCE,
        citation="Levesque et al. 2012, Winograd schemas, KR; " + GLUE_CITATION,
        hub=_glue("wnli"),
        files=(_tsv({"text_a": "sentence1", "text_b": "sentence2", "label": "label", "id": "index"}),),
        settings={"label_map": {"0": "not_entailment", "1": "entailment"}},
        rows={"train": 635, "dev": 71, "test": 146},
        note="dev shares sentences with train under the opposite label: a model that learns scores below the majority "
        "(56.3 on dev, 65.1 on test), and most published systems leave the task out",
    ),
    "ax": Entry(
        task="nli",
        metric="mcc",
        licence=GLUE_LICENCE,
        citation=GLUE_CITATION,
        hub=Hub("nyu-mll/glue", "ax", {"test": "test"}, {"columns": {"id": "idx"}}),
        files=(Files("tsv", {"test": "AX.tsv"}, {"columns": {"id": "index", "text_a": "sentence1", "text_b": "sentence2"}, "quoting": False}),),
        train="test",
        rows={"test": 1_104},
        note="GLUE's diagnostic rows: no labels, for the leaderboard's zip only",
    ),
}  # fmt: skip

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def entry(name: str) -> Entry:
    """The catalog's entry. RoadError with the nearest name where there is none."""
    if name not in CATALOG:
        raise RoadError(
            f"the catalog has no data set {name!r}{nearest(name, CATALOG)}; it has {', '.join(CATALOG)}. "
            'A data set of your own is a block with "task" and "train"'
        )
    return CATALOG[name]


def expand(road: Settings) -> Settings:
    """The `"road"` block with every catalog name as a full block, and the tasks that these need.

    A block with "catalog" is of the catalog; so is one whose name is in it and that gives neither "train" nor "format".
    RoadError for a name that the catalog does not have.
    """
    datasets = road.get("datasets")
    if isinstance(datasets, list):
        if not all(isinstance(item, str | dict) for item in datasets):
            raise RoadError("datasets: expected names of the catalog, or blocks {name: {...}}")
        named: Settings = {}
        for item in datasets:
            for name, block in ({item: {"catalog": item}} if isinstance(item, str) else item).items():
                if name in named:
                    raise RoadError(f"datasets names {name!r} twice; give one of them another name and a catalog key")
                named[name] = block
        datasets = named
    if not isinstance(datasets, dict):
        return road
    tasks = road.get("tasks", {})
    expanded: Settings = {}
    for name, block in datasets.items():
        expanded[name] = block
        if not isinstance(block, dict):
            continue
        known = block.get("catalog", name if name in CATALOG and not {"train", "format"} & block.keys() else None)
        if not isinstance(known, str):
            if not {"task", "train", "format", "catalog"} & block.keys():
                raise RoadError(
                    f"datasets.{name}: no data set of the catalog has this name{nearest(name, CATALOG)} (one of your own "
                    'needs "task" and "train")'
                )
            continue
        found = entry(known)
        expanded[name] = {"catalog": known, "task": found.task, "train": found.train, "dev": found.dev, **block}
        task = expanded[name]["task"]
        if isinstance(tasks, dict) and isinstance(task, str) and task not in tasks and task in TASKS:
            tasks = {**tasks, task: TASKS[task]}
    return {**road, "tasks": tasks, "datasets": expanded}


def sources(name: str, part: str, path: str | None) -> tuple[str, Settings]:
    """Where a part's rows are, and the settings that read them: {"format", "path", ...}; the first is file or split.

    `path` is a save_to_disk folder or one with the publisher's files; without it rows come from the hub, or from
    data/NAME if the hub has none. RoadError that says what to bring where there is no such part or file.
    """
    found = entry(name)
    if path is None and found.hub is None:
        path = f"data/{name}"
        if not Path(path).is_dir():
            why = found.note.rpartition(". ")[2]
            raise RoadError(f'no hub has its rows as data files ({why}); bring {bring(found)} to {path}, or set "path"')
    if path is None:
        assert found.hub is not None
        if part not in found.hub.parts:
            raise RoadError(
                f"the hub has no part {part!r}{nearest(part, found.hub.parts)}; it has {', '.join(found.hub.parts)}"
            )
        place = {"format": "hub", "path": found.hub.path, "config": found.hub.config}
        return found.hub.parts[part], {**found.settings, **found.hub.settings, **place}
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RoadError(f"{path}: no such folder; expected one that save_to_disk wrote, or one with {bring(found)}")
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        hub = found.hub or Hub("", None, THREE)
        return hub.parts.get(part, part), {**found.settings, **hub.settings, "format": "disk", "path": path}
    for files in found.files:
        for suffix in ("", ".gz"):
            if part in files.parts and (folder / (files.parts[part] + suffix)).is_file():
                own = {**found.settings, **files.settings, **files.of_part.get(part, {})}
                return str(folder / (files.parts[part] + suffix)), {**own, "format": files.format, "path": path}
    known = [name for files in found.files for name in files.parts]
    if part not in known:
        raise RoadError(f"{path}: no part {part!r}{nearest(part, known)}; there are {', '.join(dict.fromkeys(known))}")
    raise RoadError(f"{path}: holds no file for the part {part!r}; bring {bring(found, part)}")


def bring(found: Entry, part: str | None = None) -> str:
    """The publisher's file names, in words; each may end in .gz."""
    kinds = [
        " and ".join(dict.fromkeys(name for key, name in files.parts.items() if part in (None, key)))
        for files in found.files
    ]
    return ", or ".join(kind for kind in kinds if kind)
