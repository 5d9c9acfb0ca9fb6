"""Each publisher's layout from a small file in its exact schema, with its traps; every offset is checked."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from road_ds.common.errors import RoadError
from road_ds.config.road import DatasetSpec
from road_ds.data.publishers import SHAPES, slots_question
from road_ds.data.readers import Reading, read, stream
from road_ds.data.sources import read_part


def rows_of(name: str, path, part="train", **more) -> Reading:
    """The rows of a catalog entry's part; every answer stands at its offset."""
    reading = read_part(name, "train", DatasetSpec(task="t", catalog=name, train=part, path=str(path), **more))
    for example in reading.examples:
        for answer in example.answers or ():
            assert example.text_b[answer.start : answer.start + len(answer.text)] == answer.text
    return reading


def answers(example) -> list[str]:
    return [answer.text for answer in example.answers]


def save(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        file.write(text)


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ------------------------------------------------------------------------------------------------ MRQA, Trivia, NQ

CONTEXT = "[TLE] Ōsaka 😀 [PAR] The castle of Ōsaka was built in 1583 ."


def mrqa_file():
    start = CONTEXT.index("Ōsaka was")
    detected = [{"text": "osaka", "char_spans": [[0 + 6, 10], [start, start + 4]], "token_spans": [[1, 1], [8, 8]]}]
    qas = [
        {"qid": "a1", "question": "Which castle?", "answers": ["osaka"], "detected_answers": detected},
        {"qid": "a2", "question": "None?", "answers": ["x"], "detected_answers": []},
    ]
    header = {"header": {"dataset": "NewsQA", "split": "train"}}
    return lines(header, {"id": "", "context": CONTEXT, "context_tokens": [], "qas": qas})


def test_mrqa(tmp_path):
    save(tmp_path / "train" / "NewsQA.jsonl.gz", mrqa_file())
    reading = rows_of("newsqa_mrqa", tmp_path)
    (example,) = reading.examples
    assert (example.id, answers(example)) == ("a1", ["Ōsaka", "Ōsaka"])  # the context's text, ends inclusive
    assert example.where == "NewsQA.jsonl.gz:2.qas[0]"
    assert reading.dropped == {"no answer found": 1}


def test_a_cut_gzip_file_is_named(tmp_path):
    save(tmp_path / "train" / "NewsQA.jsonl.gz", mrqa_file())
    file = tmp_path / "train" / "NewsQA.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(RoadError, match=r"NewsQA.jsonl.gz: not a whole gzip file"):
        rows_of("newsqa_mrqa", tmp_path)


def trivia(**more):
    question = {
        "Question": "Who?", "QuestionId": "tc_1", "SearchResults": [],
        "Answer": {"Value": "İpek A. Sun", "Aliases": ["Sun", "İpek A. Sun"], "NormalizedAliases": ["sun"]},
        "EntityPages": [{"Filename": "One.txt", "Title": "One"}, {"Filename": "Two.txt", "Title": "Two"}],
    }  # fmt: skip
    return json.dumps({"Data": [question | more], "Domain": "wikipedia", "Version": 1.0})


def test_trivia_qa(tmp_path):
    save(tmp_path / "qa" / "wikipedia-train.json", trivia())
    save(tmp_path / "evidence" / "wikipedia" / "One.txt", "İİ sunny days. Then SUN spoke; Sun spoke again.")
    save(tmp_path / "evidence" / "wikipedia" / "Two.txt", "Nothing here.")
    reading = rows_of("triviaqa", tmp_path)
    (example,) = reading.examples
    assert (example.id, answers(example), example.answers[0].start) == ("tc_1--One.txt", ["SUN"], 20)
    assert reading.dropped == {"no alias in the document": 1}
    assert rows_of("triviaqa", tmp_path, context_words=5).examples[0].text_b == "İİ sunny days. Then SUN"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"EntityPages": [{"Filename": "../../../up.txt"}]},
            r"Data\[0\]: evidence file '../../../up.txt' lies outside",
        ),
        ({"EntityPages": [{"Filename": "gone.txt"}]}, r"Data\[0\]: evidence file .*gone.txt: .*unpack the evidence"),
        ({"Answer": {"Value": "", "Aliases": []}}, r"question 'tc_1' has no answer alias"),
        ({"Answer": None}, r"the row has not the layout trivia_qa \(AttributeError"),
    ],
)
def test_trivia_qa_faults(tmp_path, more, message):
    (tmp_path / "evidence" / "wikipedia").mkdir(parents=True)
    save(tmp_path / "qa" / "wikipedia-train.json", trivia(**more))
    with pytest.raises(RoadError, match=message):
        rows_of("triviaqa", tmp_path)


def nq_row(short, id=7, long=(1, 9)):
    text = "Title <P> The Eiffel <B> Tower </B> is tall </P> End"
    note = {
        "yes_no_answer": "NONE", "annotation_id": 1, "short_answers": [{"start_token": s, "end_token": e} for s, e in short],
        "long_answer": {"start_token": long[0], "end_token": long[1], "candidate_index": 0},
    }  # fmt: skip
    return {"example_id": id, "question_text": "what is tall", "document_text": text, "annotations": [note],
            "long_answer_candidates": [], "document_url": ""}  # fmt: skip


def test_natural_questions_simplified(tmp_path):
    save(tmp_path / "simplified-nq-train.jsonl.gz", lines(nq_row([(3, 6)]), nq_row([], 8), nq_row([(9, 10)], 9)))
    reading = rows_of("natural_questions", tmp_path)
    (example,) = reading.examples
    assert (example.text_b, answers(example)) == ("The Eiffel Tower is tall", ["Eiffel Tower"])
    assert reading.dropped == {"no short answer": 1, "short answer outside the long answer": 1}


def test_natural_questions_original_and_hub_forms():
    simple = nq_row([(3, 6)])
    tokens = simple["document_text"].split(" ")
    original = {**simple, "document_tokens": [{"token": t, "html_token": t.startswith("<")} for t in tokens]}
    del original["document_text"]
    hub = {
        "id": "7",
        "question": {"text": "what is tall"},
        "document": {"tokens": {"token": tokens, "is_html": [t.startswith("<") for t in tokens]}},
        "annotations": {
            "long_answer": [simple["annotations"][0]["long_answer"]],
            "short_answers": [{"start_token": [3], "end_token": [6], "text": ["Eiffel Tower"]}],
        },
    }
    spec = DatasetSpec(task="t")
    first, *others = (list(SHAPES["natural_questions"](row, spec)) for row in (simple, original, hub))
    assert all(other == first for other in others)


# ------------------------------------------------------------------------------------------------------------ QuAC

SECTION = "Daffy 😀 was born in 1937. He sang. CANNOTANSWER"


def quac_qa(turn: int, question: str, *texts: str) -> dict:
    given = [{"text": text, "answer_start": SECTION.index(text)} for text in texts]
    return {"id": f"C_1_q#{turn}", "question": question, "answers": given, "orig_answer": given[0], "followup": "m",
            "yesno": "x"}  # fmt: skip


def quac_file(*more) -> str:
    qas = [
        quac_qa(0, "When?", "in 1937", "1937"),
        quac_qa(1, "Why?", "CANNOTANSWER", "CANNOTANSWER", "He sang."),
        quac_qa(2, "What then?", "He sang.", "CANNOTANSWER", "He sang."),
        quac_qa(3, "And?", "He sang.", "CANNOTANSWER"),  # a tie counts as no answer, as in the official scorer
        *more,
    ]
    paragraph = {"context": SECTION, "id": "C_1", "qas": qas}
    article = {"title": "Daffy", "section_title": "Life", "background": "", "paragraphs": [paragraph]}
    return json.dumps({"data": [article]})


def test_quac(tmp_path):
    save(tmp_path / "train_v0.2.json", quac_file())
    first, second, third, fourth = rows_of("quac", tmp_path).examples
    assert first.text_b == "Daffy 😀 was born in 1937. He sang."
    assert [answers(e) for e in (first, second, third, fourth)] == [["in 1937", "1937"], [], ["He sang."] * 2, []]
    assert third.text_a == "What then?"
    third = rows_of("quac", tmp_path, history_turns=2).examples[2]
    assert third.text_a == "What then? | Why? no answer | When? in 1937"


def test_quac_offset_that_is_wrong(tmp_path):
    wrong = quac_qa(3, "Who?", "He sang.")
    wrong["answers"][0] = wrong["orig_answer"] = {"text": "He sang.", "answer_start": 3}
    save(tmp_path / "train_v0.2.json", quac_file(wrong))
    with pytest.raises(RoadError, match=r"data\[0\]: id 'C_1_q#3': answer 'He sang.' should stand at 3"):
        rows_of("quac", tmp_path)


# ---------------------------------------------------------------------------------------------------------- QA-SRL

FORMS = {"stem": "lead", "presentSingular3rd": "leads", "presentParticiple": "leading", "past": "led",
         "pastParticiple": "led"}  # fmt: skip


def bank_label(question, valid, spans, **slots):
    judged = [{"sourceId": f"w{i}", "isValid": ok, **({"spans": spans} if ok else {})} for i, ok in enumerate(valid)]
    whole = dict.fromkeys(("wh", "aux", "subj", "verb", "obj", "prep", "obj2"), "_") | slots
    return {"questionString": question, "questionSources": ["w0"], "answerJudgments": judged, "questionSlots": whole,
            "tense": "past", "isPerfect": False}  # fmt: skip


def test_qa_srl_bank(tmp_path):
    labels = {
        "Who led something?": bank_label("Who led something?", [True, True, False], [[0, 1], [0, 2]], wh="who", verb="past", obj="something"),
        "What was led?": bank_label("What was led?", [True, False], [[3, 5]], wh="what", aux="was", verb="pastParticiple"),
    }  # fmt: skip
    verbs = {"2": {"verbIndex": 2, "verbInflectedForms": FORMS, "questionLabels": labels}}
    row = {"sentenceId": "Wiki:1", "sentenceTokens": ["Søren", "😀", "led", "the", "army", "."], "verbEntries": verbs}
    save(tmp_path / "orig" / "train.jsonl.gz", lines(row))
    reading = rows_of("qa_srl", tmp_path)
    (example,) = reading.examples
    assert (example.text_a, answers(example)) == ("Who led something?", ["Søren", "Søren 😀"])
    assert reading.dropped == {"not valid to most judges": 1}
    row["verbEntries"]["2"]["questionLabels"]["Who led something?"]["answerJudgments"][0]["spans"] = [[4, 9]]
    save(tmp_path / "orig" / "train.jsonl.gz", lines(row))
    with pytest.raises(RoadError, match=r"train.jsonl.gz:1: tokens 4:9 do not lie in the 6 tokens"):
        rows_of("qa_srl", tmp_path)


def test_questions_from_slots():
    slots = {"wh": "who", "aux": "was", "subj": "someone", "verb": "be presentParticiple", "prep": "by", "obj2": "_"}
    assert slots_question(slots, FORMS) == "Who was someone be leading by?"


GOLD = 'qasrl_id,verb_idx,verb,question,is_redundant,answer_range,answer\nW:1,1,led,Who led?,False,0:1~!~2:4,"S?ren~!~the, army"\n'


def test_qa_srl_gs(tmp_path):
    gold = tmp_path / "gold" / "wikinews.dev.gold.csv"
    save(gold, GOLD)
    with pytest.raises(RoadError, match=r"sentences/wikinews.dev.full.csv does not exist; QA-SRL-GS keeps"):
        rows_of("qa_srl_gs", tmp_path, part="dev")
    save(tmp_path / "sentences" / "wikinews.dev.full.csv", 'qasrl_id,tokens,sentence\nW:1,"Søren led the, army .",x\n')
    (example,) = rows_of("qa_srl_gs", tmp_path, part="dev").examples
    assert answers(example) == ["Søren", "the, army"]
    save(gold, GOLD.replace("2:4", "1:4"))
    with pytest.raises(RoadError, match=r"gold.csv:2: tokens 1:4 are 'led the, army', but the answer is 'the, army'"):
        rows_of("qa_srl_gs", tmp_path, part="dev")
    save(gold, GOLD.replace("W:1", "W:2"))
    with pytest.raises(RoadError, match=r"gold.csv:2: qasrl_id 'W:2' is not in .*wikinews.dev.full.csv"):
        rows_of("qa_srl_gs", tmp_path, part="dev")


# ------------------------------------------------------------------------------------------ QA-ZRE, NewsQA, Amazon


def test_qa_zre(tmp_path):
    rows = [
        "spouse\tWho is XXX married to ?\tAnn\tAnn wed Bo in 😀 Bonn .\tBo",
        "spouse\tWho is XXX married to ?\tAnn\tAnn wed Bo in 😀 Bonn .\tBo",  # a duplicate
        "birth\tWhere was XXX born ?\tAnn\tAnn was in Bonn and Rome .\tRome\tBonn",
        "birth\tWhere was XXX born ?\tAnn\tAnn sings .",  # a negative
        "birth\tWhere was XXX born ?\tBo\tBo sings .\tParis",  # not in the sentence
    ]
    save(tmp_path / "relation_splits" / "train.0", "\n".join(rows) + "\n")
    reading = rows_of("qa_zre", tmp_path)
    assert [e.text_a for e in reading.examples] == ["Who is Ann married to ?", *["Where was Ann born ?"] * 2]
    assert [answers(e) for e in reading.examples] == [["Bo"], ["Rome", "Bonn"], []]
    assert reading.examples[0].answers[0].start == 8
    assert reading.dropped == {"duplicate": 1, "answer not in the sentence": 1}
    save(tmp_path / "relation_splits" / "train.0", rows[0] + "\nbroken\tline\n")
    with pytest.raises(RoadError, match=r"train.0:2: found 2 fields; expected relation, question, subject"):
        rows_of("qa_zre", tmp_path)


def newsqa_file(**consensus):
    text = "NEW YORK 😀 (CNN) -- Bo\n\nleft. "
    questions = [
        {"q": "Who?", "consensus": {"s": 20, "e": 24}, "isAnswerAbsent": 0, "isQuestionBad": 0, "answers": []},
        {"q": "Why?", "consensus": {"noAnswer": True}, "isAnswerAbsent": 1, "isQuestionBad": 0, "answers": []},
        {"q": "Eh?", "consensus": {"badQuestion": True}, "isAnswerAbsent": 0, "isQuestionBad": 1, "answers": []},
        {"q": " ", "consensus": {"noAnswer": True}, "isAnswerAbsent": 1, "answers": []},
    ]
    if consensus:
        questions[0]["consensus"] = consensus
    story = {"storyId": "./cnn/1.story", "text": text, "type": "train", "questions": questions}
    return json.dumps({"data": [story, {**story, "type": "dev", "storyId": "./cnn/2.story"}], "version": "1"})


def test_newsqa(tmp_path):
    save(tmp_path / "combined-newsqa-data-v1.json", newsqa_file())
    reading = rows_of("newsqa", tmp_path)
    assert [(e.id, answers(e)) for e in reading.examples] == [("./cnn/1.story#0", ["Bo"]), ("./cnn/1.story#1", [])]
    assert reading.dropped == {"bad question": 1, "empty question": 1}
    assert [e.id for e in rows_of("newsqa", tmp_path, part="dev").examples] == ["./cnn/2.story#0", "./cnn/2.story#1"]
    save(tmp_path / "combined-newsqa-data-v1.json", newsqa_file(s=23, e=90))
    with pytest.raises(RoadError, match=r"data\[0\]: consensus 23:90 is .* in a story of 30 characters"):
        rows_of("newsqa", tmp_path)


def test_amazon(tmp_path):
    rows = [
        {"overall": 5.0, "reviewText": "Great\nstuff 😀", "asin": "1", "verified": True},
        {"overall": 1.0, "reviewText": "", "asin": "1"},
        {"overall": 2.0, "asin": "1"},
        {"overall": 3.0, "reviewText": "So-so"},
        {"rating": 4.0, "text": "Fine", "title": "t"},
    ]
    save(tmp_path / "reviews.jsonl.gz", lines(*rows))
    reading = rows_of("amazon", tmp_path)
    assert [e.label for e in reading.examples] == ["5", "3", "4"]
    assert reading.dropped == {"empty review": 2}
    save(tmp_path / "reviews.jsonl.gz", lines(rows[0], {"overall": 0.0, "reviewText": "x"}))
    with pytest.raises(RoadError, match=r"reviews.jsonl.gz:2: overall is 0.0; expected 1.0 to 5.0"):
        rows_of("amazon", tmp_path)


# ---------------------------------------------------------------------------------------------------- samples, offsets


def reviews(path, count: int, fives: int):
    rows = ({"text": f"review {i}", "label": "5" if i < fives else str(i % 4 + 1)} for i in range(count))
    save(path, lines(*rows))
    return str(path)


def test_a_sample_is_seeded_uniform_and_in_order(tmp_path):
    file = reviews(tmp_path / "r.jsonl", 1000, 600)

    def drawn(seed, size=100, **more):
        return [e.id for e in read(file, DatasetSpec(task="t", sample=size, sample_seed=seed, **more)).examples]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) == sorted(drawn(1), key=lambda id: int(id.split("-")[1]))
    assert len(set(drawn(1))) == 100 and len(drawn(1, 5000)) == 1000
    hits = [sum(int(id.split("-")[1]) < 500 for id in drawn(seed)) for seed in range(20)]
    assert 45 < sum(hits) / 20 < 55


def test_a_stratified_sample_has_as_many_of_each_label(tmp_path):
    file = reviews(tmp_path / "r.jsonl", 1000, 990)
    examples = read(file, DatasetSpec(task="t", sample=50, stratified=True)).examples
    counts = {label: sum(e.label == label for e in examples) for label in "12345"}
    assert sum(counts.values()) == 50
    assert counts["5"] > 20 and all(counts[label] in (2, 3) for label in "1234")  # there are 2 or 3 of each


def test_a_sample_holds_numbers_and_no_texts(tmp_path):
    """What drawing and reading a sample hold does not grow with the texts."""
    file = tmp_path / "r.jsonl"
    save(file, lines(*({"text": f"{i} {'long ' * 1000}", "label": "5"} for i in range(2000))))
    spec = DatasetSpec(task="t", sample=1500)
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream(str(file), spec, Reading())) == 1500
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, "1,500 texts of 5 KB are 7.5 MB"
    finally:
        tracemalloc.stop()


def test_a_held_out_part_of_a_sample_in_both_orders(tmp_path):
    """Train and dev share no pair, whatever is drawn and turned round."""
    save(tmp_path / "p.jsonl", lines(*({"text_a": f"x{i}", "text_b": "y", "label": str(i % 2)} for i in range(100))))
    spec = DatasetSpec(task="t", train=str(tmp_path / "p.jsonl"), dev=0.2, sample=50, both_orders=True)
    train, dev = (read_part("p", part, spec).examples for part in ("train", "dev"))
    assert (len(train), len(dev)) == (80, 10)
    assert not {frozenset((e.text_a, e.text_b)) for e in train} & {frozenset((e.text_a, e.text_b)) for e in dev}


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=2, max_size=12), st.data())
def test_offsets_over_any_text(tokens, data):
    """Token ranges, inclusive character spans and aliases all come back as the text that they name."""
    spec = DatasetSpec(task="t")
    start = data.draw(st.integers(0, len(tokens) - 1))
    end = data.draw(st.integers(start + 1, len(tokens)))
    text, answer = " ".join(tokens), " ".join(tokens[start:end])
    at = len(" ".join(tokens[:start])) + bool(start)
    gold = {"question": "Q", "tokens": text, "answer_range": f"{start}:{end}", "answer": answer}
    mrqa = {"context": text, "qid": "1", "question": "Q",
            "detected_answers": [{"text": "x", "char_spans": [[at, at + len(answer) - 1]]}]}  # fmt: skip
    zre = {"fields": ["r", "Q XXX", "S", text, answer]}
    for shape, row in (("qa_srl_gs", gold), ("mrqa", mrqa), ("qa_zre", zre)):
        if shape == "qa_srl_gs" and "~!~" in answer:
            continue
        ((_, plain),) = SHAPES[shape](row, spec)
        (found,) = plain["answers"]
        assert found["text"] == answer == text[found["answer_start"] :][: len(answer)]


def test_both_orders_train_a_pair_twice(tmp_path):
    save(tmp_path / "p.jsonl", lines({"text_a": "x", "text_b": "y", "label": "1"}))
    spec = DatasetSpec(task="t", train=str(tmp_path / "p.jsonl"), dev=str(tmp_path / "p.jsonl"), both_orders=True)
    assert [(e.text_a, e.text_b) for e in read_part("p", "train", spec).examples] == [("x", "y"), ("y", "x")]
    assert len(read_part("p", "dev", spec).examples) == 1
    assert len(list(stream(str(tmp_path / "p.jsonl"), spec, Reading()))) == 2
