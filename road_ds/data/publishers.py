"""Publishers' own layouts -> plain rows. SHAPES has one small function per layout.

A shape takes one row as a file or the hub holds it (a line, an article, a dialogue) and yields (place inside the row,
plain row): `{"id", "question", "context", "answers": [{"text", "answer_start"}]}` or texts and a label. What a data set's
authors or the paper leave out comes as Dropped, what should not be there as Bad. Nothing here opens the source itself.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from road_ds.common.strict_json import quote
from road_ds.config.road import DatasetSpec


class Bad(Exception):
    """Why one row cannot be used; the reader adds the place and applies skip_bad."""


class Dropped(str):
    """Why one row is left out although nothing is wrong with it; the reader counts them by reason."""


HISTORY = " | "  # between a dialogue's question and the turns before it

Row = Mapping[str | int, Any]
Rows = Iterator[tuple[str, Row | Bad | Dropped]]


def _qa(id: Any, question: str, context: str, spans: Sequence[tuple[int, int]]) -> dict[str | int, Any]:
    """A plain question; spans: (start, end) in the context's characters, end exclusive. Answers are the context's text."""
    answers = [{"text": context[start:end], "answer_start": start} for start, end in spans]
    return {"id": id, "question": question, "context": context, "answers": answers}


def _token_spans(tokens: Sequence[str], ranges: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Token ranges (end exclusive) as character spans of the tokens joined by single spaces."""
    starts = list(accumulate((len(token) + 1 for token in tokens), initial=0))
    for start, end in ranges:
        if not 0 <= start < end <= len(tokens):
            raise Bad(f"tokens {start}:{end} do not lie in the {len(tokens)} tokens of the text; end is exclusive")
    return [(starts[start], starts[end] - 1) for start, end in ranges]


def _lists(table: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """Records of {"a": [1, 2], "b": [3, 4]}, which is how the hub keeps lists of records."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _records(value: Any) -> list[dict[str, Any]]:
    return _lists(value) if isinstance(value, Mapping) else list(value)


def mrqa(row: Row, spec: DatasetSpec) -> Rows:
    """Questions of MRQA 2019: detected_answers' char_spans (end inclusive); their `text` is retokenised, so not used."""
    if "header" in row:
        return
    for number, qa in enumerate(row.get("qas", [row])):
        spans = []
        for detected in _records(qa["detected_answers"]):
            pairs = detected["char_spans"]
            pairs = list(zip(pairs["start"], pairs["end"], strict=True)) if isinstance(pairs, Mapping) else pairs
            spans += [(start, end + 1) for start, end in pairs]
        place = f".qas[{number}]" if "qas" in row else ""
        yield place, _qa(qa["qid"], qa["question"], row["context"], spans) if spans else Dropped("no answer found")


def trivia_qa(row: Row, spec: DatasetSpec) -> Rows:
    """One question per evidence document that holds an alias: its first occurrence, whole words, any case."""
    original = "Question" in row
    question, id = (row["Question"], row["QuestionId"]) if original else (row["question"], row["question_id"])
    answer = row["Answer"] if original else row["answer"]
    aliases = answer.get("Aliases" if original else "aliases") or []
    aliases = sorted({a for a in [answer.get("Value" if original else "value"), *aliases] if a}, key=len, reverse=True)
    if not aliases:
        raise Bad(f"question {quote(id)} has no answer alias; expected Answer.Value and Answer.Aliases")
    wanted = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, aliases))})(?!\w)", re.IGNORECASE)
    for name, text in _evidence(row, spec) if original else _hub_evidence(row):
        context = _first_words(text, spec.context_words)
        place = f" {quote(name)}"
        if found := wanted.search(context):
            yield place, _qa(f"{id}--{name}", question, context, [found.span()])
        else:
            yield place, Dropped("no alias in the document")


def _evidence(row: Row, spec: DatasetSpec) -> Iterator[tuple[str, str]]:
    for key, folder in (("EntityPages", "wikipedia"), ("SearchResults", "web")):
        for page in row.get(key) or []:
            file = Path(spec.path or ".") / "evidence" / folder / page["Filename"]
            root = Path(spec.path or ".").resolve()
            if not file.resolve().is_relative_to(root):
                raise Bad(f"evidence file {quote(page['Filename'])} lies outside {root}")
            try:
                yield page["Filename"], file.read_text(encoding="utf-8", errors="strict")
            except (OSError, UnicodeDecodeError) as error:
                raise Bad(f"evidence file {file}: {error}; unpack the evidence folder beside qa/") from None


def _hub_evidence(row: Row) -> Iterator[tuple[str, str]]:
    for key, column in (("entity_pages", "wiki_context"), ("search_results", "search_context")):
        for page in _records(row.get(key) or []):
            if page.get(column):
                yield page["filename"], page[column]


def _first_words(text: str, count: int | None) -> str:
    """The text up to its `count`-th word; offsets stay what they were."""
    if count is None:
        return text
    words = re.finditer(r"\S+", text)
    last = next(islice(words, count - 1, None), None)
    return text[: last.end()] if last else text


def natural_questions(row: Row, spec: DatasetSpec) -> Rows:
    """The question over the paragraph (long answer) of its first short answer; markup tokens are left out."""
    tokens, markup, question, id, annotations = _nq_fields(row)
    found = [
        (note["long_answer"], [(s["start_token"], s["end_token"]) for s in note["short_answers"]])
        for note in annotations
        if note["short_answers"]
    ]
    if not found:
        yield "", Dropped("no short answer")
        return
    first, last = found[0][0]["start_token"], found[0][0]["end_token"]
    if not 0 <= first < last <= len(tokens):
        raise Bad(f"long answer {first}:{last} does not lie in the {len(tokens)} tokens of the document")
    kept = [i for i in range(first, last) if not markup[i]]
    at = {token: position for position, token in enumerate(kept)}
    ranges = []
    for start, end in (span for _, spans in found for span in spans):
        inside = [at[i] for i in range(start, end) if i in at]
        if inside and first <= start and end <= last:
            ranges.append((inside[0], inside[-1] + 1))
    if not ranges:
        yield "", Dropped("short answer outside the long answer")
        return
    words = [tokens[i] for i in kept]
    yield "", _qa(id, question, " ".join(words), _token_spans(words, ranges))


def _nq_fields(row: Row) -> tuple[list[str], list[bool], str, str, list[dict[str, Any]]]:
    """Tokens, which of them are markup, question, id and annotations, of the simplified, original and hub forms."""
    if "document_text" in row:
        tokens = row["document_text"].split(" ")
        markup = [bool(re.fullmatch(r"</?[A-Za-z][^ ]*>", token)) for token in tokens]
    elif "document_tokens" in row:
        tokens, markup = [t["token"] for t in row["document_tokens"]], [t["html_token"] for t in row["document_tokens"]]
    else:
        records = _records(row["document"]["tokens"])
        tokens, markup = [t["token"] for t in records], [t["is_html"] for t in records]
        notes = [
            {"long_answer": note["long_answer"], "short_answers": _records(note["short_answers"])}
            for note in _records(row["annotations"])
        ]
        return tokens, markup, row["question"]["text"], str(row["id"]), notes
    return tokens, markup, row["question_text"], str(row["example_id"]), row["annotations"]


CANNOT = "CANNOTANSWER"


def quac(row: Row, spec: DatasetSpec) -> Rows:
    """A dialogue's questions, each with `history_turns` turns before it; unanswerable where half of the annotators say so.

    The question comes first and the latest turn next, so that what a long history loses is its oldest part.
    """
    for number, paragraph in enumerate(row["paragraphs"] if "paragraphs" in row else [_quac_paragraph(row)]):
        context = paragraph["context"].removesuffix(CANNOT).rstrip()
        turns: list[str] = []
        for turn, qa in enumerate(paragraph["qas"]):
            first = qa.get("orig_answer") or qa["answers"][0]
            given = [(a["text"], a["answer_start"]) for a in qa["answers"]]
            given.sort(key=lambda answer: answer != (first["text"], first["answer_start"]))  # the teacher's comes first
            spans = []
            if 2 * sum(text == CANNOT for text, _ in given) < len(given):
                for text, start in given:
                    if text != CANNOT:
                        _same(context, start, text, qa["id"])
                        spans.append((start, start + len(text)))
            history = turns[::-1][: spec.history_turns]
            yield (
                f".paragraphs[{number}].qas[{turn}]" if "paragraphs" in row else f".questions[{turn}]",
                _qa(qa["id"], HISTORY.join([qa["question"], *history]), context, spans),
            )
            turns.append(f"{qa['question']} {'no answer' if first['text'] == CANNOT else first['text']}")


def _quac_paragraph(row: Row) -> dict[str, Any]:
    """The hub's row, a dialogue of parallel lists, as the publisher's paragraph."""
    qas = []
    originals = _lists({"text": row["orig_answers"]["texts"], "answer_start": row["orig_answers"]["answer_starts"]})
    pairs = zip(row["answers"]["texts"], row["answers"]["answer_starts"], strict=True)
    for id, question, (texts, starts), original in zip(
        row["turn_ids"], row["questions"], pairs, originals, strict=True
    ):
        answers = _lists({"text": texts, "answer_start": starts})
        qas.append({"id": id, "question": question, "answers": answers, "orig_answer": original})
    return {"context": row["context"], "qas": qas}


def _same(context: str, start: int, text: str, id: Any) -> None:
    if context[start : start + len(text)] != text:
        raise Bad(
            f"id {quote(id)}: answer {quote(text)} should stand at {start} of the context, which has "
            f"{quote(context[start : start + len(text)])} there; offsets count code points from 0"
        )


def qa_srl_bank(row: Row, spec: DatasetSpec) -> Rows:
    """The questions of QA-SRL Bank 2.0 that most judges hold valid, from their slots; the commonest span comes first."""
    if "context" in row:  # a plain row of a save_to_disk folder
        yield "", row
        return
    tokens = row["sentenceTokens"]
    for verb in row["verbEntries"].values():
        for label in verb["questionLabels"].values():
            judgments = label["answerJudgments"]
            valid = [judgment["spans"] for judgment in judgments if judgment["isValid"]]
            place = f" verb {verb['verbIndex']} {quote(label['questionString'])}"
            if 2 * len(valid) <= len(judgments):
                yield place, Dropped("not valid to most judges")
                continue
            ranges = [span for span, _ in Counter(tuple(span) for spans in valid for span in spans).most_common()]
            question = slots_question(label["questionSlots"], verb["verbInflectedForms"])
            id = f"{row['sentenceId']}:{verb['verbIndex']}:{label['questionString']}"
            yield place, _qa(id, question, " ".join(tokens), _token_spans(tokens, ranges))


SLOTS = ("wh", "aux", "subj", "verb", "obj", "prep", "obj2")


def slots_question(slots: Mapping[str, str], forms: Mapping[str, str]) -> str:
    """The question that slots spell: "_" is empty, and the verb's slot names an inflected form ("be pastParticiple")."""
    words = []
    for slot in SLOTS:
        value = slots.get(slot, "_")
        if value and value != "_":
            words.append(" ".join(forms.get(w, w) for w in value.split()) if slot == "verb" else value)
    question = " ".join(words)
    return f"{question[:1].upper()}{question[1:]}?"


def qa_srl_gs(row: Row, spec: DatasetSpec) -> Rows:
    """A gold question of QA-SRL-GS with its sentence joined; "0:2~!~4:5" are token ranges, end exclusive."""
    if "context" in row:  # a plain row of a save_to_disk folder
        yield "", row
        return
    tokens = row["tokens"].split(" ")
    try:
        ranges = [tuple(map(int, part.split(":"))) for part in row["answer_range"].split("~!~")]
    except ValueError:
        raise Bad(f"answer_range {quote(row['answer_range'])}; expected start:end, several joined by ~!~") from None
    for (start, end), text in zip(ranges, row["answer"].split("~!~"), strict=True):
        found = " ".join(tokens[start:end])
        if text not in (found, found.encode("ascii", "replace").decode()):  # the file has "?" for a few accents
            raise Bad(f"tokens {start}:{end} are {quote(found)}, but the answer is {quote(text)}")
    plain = _qa("", row["question"], " ".join(tokens), _token_spans(tokens, ranges))
    del plain["id"]
    yield "", plain


def qa_zre(row: Row, spec: DatasetSpec) -> Rows:
    """The question with the subject for XXX; answers are strings, so their first occurrence; none: unanswerable."""
    if "fields" in row:
        fields = row["fields"]
        if len(fields) < 4:
            raise Bad(f"found {len(fields)} fields; expected relation, question, subject, sentence and answers")
        question, subject, context, answers = fields[1], fields[2], fields[3], [f for f in fields[4:] if f]
    else:
        question, subject, context, answers = row["question"], row["subject"], row["context"], row["answers"]
    spans = []
    for answer in answers:
        found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", context)
        start = found.start() if found else context.find(answer)
        if start >= 0:
            spans.append((start, start + len(answer)))
    if answers and not spans:
        yield "", Dropped("answer not in the sentence")
        return
    plain = _qa("", question.replace("XXX", subject), context, spans)
    del plain["id"]
    yield "", plain


def newsqa(row: Row, spec: DatasetSpec) -> Rows:
    """A story's questions by consensus; unanswerable ones stay, bad ones go. Spans lose the white space at their ends."""
    for number, qa in enumerate(_records(row["questions"])):
        consensus, place = qa["consensus"], f".questions[{number}]"
        if consensus.get("badQuestion"):
            yield place, Dropped("bad question")
        elif not qa["q"].strip():
            yield place, Dropped("empty question")
        elif consensus.get("noAnswer"):
            yield place, _qa(f"{row['storyId']}#{number}", qa["q"], row["text"], [])
        else:
            start, end = consensus["s"], consensus["e"]
            text = row["text"][start:end]
            if not 0 <= start < end <= len(row["text"]) or not text.strip():
                raise Bad(f"consensus {start}:{end} is {quote(text)} in a story of {len(row['text'])} characters")
            start += len(text) - len(text.lstrip())
            yield place, _qa(f"{row['storyId']}#{number}", qa["q"], row["text"], [(start, start + len(text.strip()))])


def amazon(row: Row, spec: DatasetSpec) -> Rows:
    """A review and its stars "1" to "5" (`overall` and `reviewText`, in the 2023 edition `rating` and `text`)."""
    stars = row["overall"] if "overall" in row else row["rating"]
    text = row.get("reviewText" if "overall" in row else "text")
    if stars not in (1, 2, 3, 4, 5):
        raise Bad(f"overall is {quote(stars)}; expected 1.0 to 5.0")
    if not text or not text.strip():
        yield "", Dropped("empty review")
    else:
        yield "", {"text": text, "label": str(int(stars))}


def arc(row: Row, spec: DatasetSpec) -> Rows:
    """A question of ARC's kind, {"stem", "choices": [{"text", "label"}]}, and its answerKey; the hub's rows are plain."""
    question = row["question"]
    yield (
        "",
        row if isinstance(question, str) else {**row, "question": question["stem"], "choices": question["choices"]},
    )


SHAPES: dict[str, Callable[[Row, DatasetSpec], Rows]] = {
    "mrqa": mrqa,
    "trivia_qa": trivia_qa,
    "natural_questions": natural_questions,
    "quac": quac,
    "qa_srl_bank": qa_srl_bank,
    "qa_srl_gs": qa_srl_gs,
    "qa_zre": qa_zre,
    "newsqa": newsqa,
    "amazon": amazon,
    "arc": arc,
}
