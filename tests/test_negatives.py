"""Negative questions, on the embedded sample and on hand-made ones."""

from dataclasses import replace

import pytest
from runs import ROOT, SHARED, tiny_config

from road_ds.config.road import DatasetSpec
from road_ds.data.negatives import entities, with_negatives
from road_ds.data.readers import Answer, Example, Reading, read


def example(question: str, context: str, answer: str | None = None) -> Example:
    answers = () if answer is None else (Answer(answer, context.index(answer)),)
    return Example(question[:20], question, context, None, answers, "here")


def texts(question: str) -> list[tuple[str, str]]:
    return [(kind, question[start:end]) for kind, start, end in entities(question)]


def test_entities_of_a_question():
    assert texts("When did Marie Curie move to Paris in 1891?") == [
        ("name", "Marie Curie"), ("name", "Paris"), ("year", "1891"),
    ]  # fmt: skip
    assert texts("How many of the 3,500 men reached the Isle of Wight?") == [
        ("number", "3,500"), ("name", "Isle of Wight"),
    ]  # fmt: skip
    assert texts("Was it Rome, Paris or the Hague of old?") == [("name", "Rome"), ("name", "Paris"), ("name", "Hague")]
    assert texts("Who wrote it?") == [] and texts("") == [] and texts("  ") == []
    assert texts("Where is Zoë Ångström's house?") == [("name", "Zoë Ångström's")]


def test_the_turns_before_a_dialogues_question_stay_as_they_were():
    asked = "Where was she born? | Who is Carl Berg in 1912? Her brother"
    assert texts(asked) == [] and texts(asked.replace("she", "Ada")) == [("name", "Ada")]
    rows = [replace(ROWS[0], text_a=f"{ROWS[0].text_a} | Who is Carl Berg?"), *ROWS[1:]]
    copy = next(e for e in with_negatives(lambda: iter(rows), 1.0, Reading()) if e.id.endswith("-negative"))
    assert copy.text_a.startswith("Where was Alan Turing born?") and copy.text_a.endswith(" | Who is Carl Berg?")


ROWS = [
    example("Where was Ada Lovelace born?", "Ada Lovelace was born in London.", "London"),
    example("Where was Alan Turing born?", "Alan Turing was born in Maida Vale in 1912.", "Maida Vale"),
    example("What is this?", "It is a house.", "a house"),
    example("When did Grace Hopper retire?", "Nobody knows.", None),
]


def test_a_copy_asks_for_something_that_its_context_does_not_name():
    found = list(with_negatives(lambda: iter(ROWS), 1.0, Reading()))
    copies = [e for e in found if e.id.endswith("-negative")]
    assert [e for e in found if e not in copies] == ROWS
    assert [e.id for e in copies] == [f"{ROWS[0].id}-negative", f"{ROWS[1].id}-negative"]
    for copy, original in zip(copies, ROWS, strict=False):
        assert copy.answers == () and copy.text_b == original.text_b and copy.text_a != original.text_a
        assert copy.text_a.startswith("Where was ") and copy.text_a.endswith(" born?")
        assert copy.text_a.removeprefix("Where was ").removesuffix(" born?") not in copy.text_b
    assert found[1] is copies[0], "a copy stands behind its original"


def test_the_same_rows_give_the_same_copies_and_a_share_of_them():
    rows = sample()
    one, two = (list(with_negatives(lambda: iter(rows), 0.3, Reading())) for _ in range(2))
    assert one == two
    added = len(one) - len(rows)
    whole = len(list(with_negatives(lambda: iter(rows), 1.0, Reading()))) - len(rows)
    assert 0.2 * whole < added < 0.4 * whole
    assert len({e.id for e in one}) == len(one)
    assert list(with_negatives(lambda: iter(rows), 0.0, Reading())) == rows


def sample() -> list[Example]:
    return read(str(ROOT / "road_ds" / "data" / "sample_data" / "people.train.json"), DatasetSpec(task="qa")).examples


@pytest.mark.skipif(not (SHARED / "squad2").exists(), reason="the real rows are not here")
def test_real_questions():
    rows = read(str(SHARED / "squad2" / "train.json"), DatasetSpec(task="qa")).examples
    found = list(with_negatives(lambda: iter(rows), 1.0, Reading()))
    copies = [e for e in found if e.id.endswith("-negative")]
    assert len(copies) > 0.5 * sum(bool(e.answers) for e in rows)
    by_id = {e.id: e for e in rows}
    for copy in copies:
        original = by_id[copy.id.removesuffix("-negative")]
        assert copy.text_a != original.text_a and original.answers and copy.answers == ()


def test_a_run_gets_them_in_its_train_part_only_and_check_counts_them(config_file):
    from road_ds.config.file import load_config
    from road_ds.data.rows import Rows
    from road_ds.engine.plan import report
    from road_ds.models.configuration import load_tokenizer
    from road_ds.tasks.registry import heads

    config = tiny_config()
    config["road"]["datasets"]["places"] |= {"negatives": 1.0, "max_rows": 300}
    config, ds = load_config(config_file(config))
    rows = Rows.load(config.datasets, heads(config).by_dataset(), load_tokenizer(config.model), config.cache)
    train, dev = rows.train, rows.dev
    made = train["places"].manifest.negatives
    ids = [e.id for e in train["places"].examples()]
    assert made > 0 and sum(name.endswith("-negative") for name in ids) == made and len(ids) == 300 + made
    assert dev["places"].manifest.negatives == 0
    assert f"places train: {made} of the rows are negative questions" in report(config, ds, 1)


def test_they_are_for_questions_only(config_file):
    from road_ds.common.errors import RoadError
    from road_ds.config.file import load_config
    from road_ds.data.rows import Rows
    from road_ds.models.configuration import load_tokenizer
    from road_ds.tasks.registry import heads

    config = tiny_config()
    config["road"]["datasets"]["inference"]["negatives"] = 0.5
    config, _ = load_config(config_file(config))
    with pytest.raises(RoadError, match="only questions over a context"):
        Rows.load(config.datasets, heads(config).by_dataset(), load_tokenizer(config.model), config.cache)
