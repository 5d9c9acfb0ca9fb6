"""Writes the embedded sample: six small data sets for four tasks, text for pretraining, and their tokenizer.

    python road_ds/data/sample_data/make.py [FOLDER]

The rows tell of small invented worlds: towns and people (span QA), their habits and goods (inference), evenings out
(reviews), bargains and losses (paraphrase). The same bytes come out on every run. Every sixth name of a person or a
town belongs to the dev rows alone, so that these speak of nobody whom the training rows know.
"""

import argparse
import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from road_ds.data.wordpiece import SPECIAL, assembled

SEED = 11
HELD_OUT = 6  # one name in six is a dev name
MAX_LENGTH = 128  # tokens; a few contexts are longer
CONTEXTS = {"train": 520, "dev": 40}  # per span QA data set, five questions each
ROWS = {"train": 3000, "dev": 200}  # per data set of the other tasks
DOCUMENTS = {"train": 1350, "dev": 80}  # of text


def words(text: str) -> list[str]:
    """The comma-separated words."""
    return [word.strip() for word in text.split(",")]


FIRST_NAMES = words(
    "Ada, Aino, Anaïs, Bela, Bruno, Carla, Cedric, Dora, Edda, Emil, Fenna, Gita, Goran, Hanna, Hugo, Ilse, Ivo, Jonas,"
    "José, Karin, Lena, Leo, Lucía, Marta, Milo, Nadia, Nils, Nora, Olga, Otto, Paula, Pavel, Rosa, Ruben, Sami, Selma,"
    "Søren, Tilda, Vera, Zoë"
)
LAST_NAMES = words(
    "Abel, Bakker, Berg, Brandt, Castro, Dahl, Duarte, Falk, Fischer, Garcia, Granger, Haas, Holm, Jansen, Keller,"
    "Kovač, Lindt, Marsh, Moreau, Müller, Novak, Olsen, Peña, Quist, Ritter, Rossi, Sato, Silva, Thorn, Vidal, Weiss"
)
TOWN_HEADS = words("Al, Bar, Bel, Cor, Dun, El, Fal, Gar, Hol, Ister, Kal, Lor, Mer, Nor, Pel, Quen, Ros, Sel, Tam, Ul")
TOWN_TAILS = words("bridge, burg, by, dale, field, ford, gate, ham, haven, holt, mouth, port, stead, ton, vale, wick")

COLOURS = words("black, blue, brown, green, grey, orange, pink, purple, red, silver, white, yellow")
MATERIALS = words("brick, clay, copper, glass, granite, iron, marble, oak, steel, stone, straw, timber")
NUMBERS = words("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, thirty, forty")
HOURS = words("five, six, seven, eight, nine, ten, eleven, noon, midnight")
GOODS = words("apples, baskets, candles, carpets, cheese, cherries, fish, flour, garlic, honey, lace, pots, rope, tea")
DISHES = words("bean soup, fish pie, fried rice, goat curry, lemon cake, onion tart, plum dumplings, roast duck")
JOBS = words("architect, baker, carpenter, dentist, farmer, gardener, lawyer, nurse, painter, pilot, plumber, tailor")
YEARS = [str(year) for year in range(1931, 1996, 4)]


class World:
    """The random choices of one data set's split, and the names that belong to that split."""

    def __init__(self, dataset: str, split: str):
        self.name = f"{dataset}-{split}"
        self.rng = random.Random(f"{SEED}/{self.name}")
        dev = split == "dev"
        self.first_names = [name for i, name in enumerate(FIRST_NAMES) if (i % HELD_OUT == 0) == dev]
        self.people = _joined(FIRST_NAMES, " ", LAST_NAMES, dev)
        self.towns = _joined(TOWN_HEADS, "", TOWN_TAILS, dev)

    def first_name(self) -> str:
        return self.rng.choice(self.first_names)

    def person(self) -> str:
        return self.rng.choice(self.people)

    def town(self) -> str:
        return self.rng.choice(self.towns)


def _joined(heads: list[str], glue: str, tails: list[str], dev: bool) -> list[str]:
    """The two-part names of a split: each part occurs in both splits, each whole name in one."""
    return [
        head + glue + tail
        for i, head in enumerate(heads)
        for j, tail in enumerate(tails)
        if ((i + j) % HELD_OUT == 0) == dev
    ]


# Span QA: `places` and `people` -----------------------------------------------------------------


class Facts(NamedTuple):
    """A family of facts: for each noun a sentence and a question, and how to draw the answer."""

    nouns: list[str]
    sentence: str
    question: str
    answer: Callable[[World], str]


def one_of(choices: list[str]) -> Callable[[World], str]:
    return lambda world: world.rng.choice(choices)


def two_of(choices: list[str]) -> Callable[[World], str]:
    return lambda world: " and ".join(world.rng.sample(choices, 2))


# Each answer follows its noun at a fixed distance, and each question repeats the noun: what a small model can find.
# Families have several nouns, so that the kind of answer asked for does not give it away.
OFFICES, RELATIVES = words("mayor, judge, doctor"), words("sister, neighbour, boss")
PLACES = [
    Facts(OFFICES, "The {} is {}.", "Who is the {} of {}?", World.person),
    Facts(words("station, school, mill"), "The {} is painted {}.", "What colour is the {} painted?", one_of(COLOURS)),
    Facts(words("bridge, church, tower"), "The {} is made of {}.", "What is the {} made of?", two_of(MATERIALS)),
    Facts(words("museum, bank, castle"), "The {} opens at {}.", "When does the {} open?", one_of(HOURS)),
    Facts(words("harbour shop, monastery, fair"), "The {} sells {}.", "What does the {} sell?", two_of(GOODS)),
    Facts(words("wells, gardens, boats"), "The number of {} is {}.", "What is the number of {}?", one_of(NUMBERS)),
    Facts(words("railway, canal, old road"), "The {} leads to {}.", "Where does the {} lead to?", World.town),
]
PEOPLE = [
    Facts(RELATIVES, "The {} is {}.", "Who is the {} of {}?", World.person),
    Facts(words("car, bicycle, kitchen"), "The {} is painted {}.", "What colour is the {} painted?", one_of(COLOURS)),
    Facts(words("breakfast, dinner, picnic"), "The best {} is {}.", "What is the best {}?", one_of(DISHES)),
    Facts(words("first job, dream job"), "The {} was {}.", "What was the {}?", one_of(JOBS)),
    Facts(words("house, studio, office"), "The {} is in {}.", "Where is the {}?", World.town),
    Facts(words("wedding, graduation, journey"), "The {} was in {}.", "When was the {}?", one_of(YEARS)),
    Facts(words("cats, goats, hens"), "The number of {} is {}.", "What is the number of {}?", one_of(NUMBERS)),
]
TOWN_INTROS = ["{} is a town in the hills.", "{} lies by the sea.", "Welcome to {}, dear guests!"]
PERSON_INTROS = ["This is the life of {}.", "{} tells us a lot.", "Meet our friend {}!"]
ASIDES = ["What a day! 🎈", "Visitors like it 😀 very much.", "The café is full.", "It rains a lot ☔ in autumn."]
QUESTIONS = 5  # per context


def span_qa(world: World, facts: list[Facts], subject: Callable[[World], str], intros: list[str], count: int) -> dict:
    """A SQuAD 2.0 document of `count` contexts; about a third of the questions ask for a fact that is not told.

    A context tells four to seven facts. Every twentieth tells fourteen, with asides: more than one window of
    MAX_LENGTH tokens holds.
    """
    rng = world.rng
    known = [(family, noun) for family in facts for noun in family.nouns]
    data = []
    for number in range(count):
        long = number % 20 == 19
        name = subject(world)
        told = rng.sample(known, 14 if long else rng.randint(4, 7))
        untold = [fact for fact in known if fact not in told]
        context = rng.choice(intros).format(name)
        answers = {}
        for family, noun in told:
            if rng.random() < (0.8 if long else 0.06):
                context += " " + rng.choice(ASIDES)
            answer = family.answer(world)
            context += " " + family.sentence.format(noun, answer)
            answers[noun] = [{"text": answer, "answer_start": context.rindex(answer)}]
        absent = max(QUESTIONS - len(told), sum(rng.random() < 0.33 for _ in range(QUESTIONS)))
        asked = rng.sample(told, QUESTIONS - absent) + rng.sample(untold, absent)
        rng.shuffle(asked)
        questions = [
            {
                "id": f"{world.name}-{number}-{place}",
                "question": family.question.format(noun, name),
                "answers": answers.get(noun, []),
                "is_impossible": noun not in answers,
            }
            for place, (family, noun) in enumerate(asked)
        ]
        data.append({"title": name, "paragraphs": [{"context": context, "qas": questions}]})
    return {"version": "v2.0", "data": data}


# Natural language inference: `inference` (people) and `inference_towns` ---------------------------


class Trait(NamedTuple):
    """Something to say of a subject: affirmed, denied, and the kinds of things to say it with."""

    affirmed: str
    denied: str
    kinds: dict[str, list[str]]  # each kind's name and members


HABITS = [
    Trait("keeps a {}", "does not keep a {}", {"dog": ["poodle", "terrier"], "bird": ["parrot", "canary"]}),
    Trait("plays the {}", "does not play the {}", {"horn": ["trumpet", "tuba"], "drum": ["bongo", "tabla"]}),
    Trait("drives a {}", "does not drive a {}", {"car": ["sedan", "limousine"], "boat": ["ferry", "canoe"]}),
    Trait("wears a {}", "does not wear a {}", {"hat": ["beret", "bonnet"], "coat": ["parka", "raincoat"]}),
]
TRADES = [
    Trait("exports {}", "does not export {}", {"metal": ["zinc", "tin"], "cloth": ["silk", "linen"]}),
    Trait(
        "celebrates in {}", "does not celebrate in {}", {"spring": ["April", "May"], "autumn": ["October", "November"]}
    ),
    Trait("grows {}", "does not grow {}", {"fruit": ["pears", "plums"], "grain": ["barley", "oats"]}),
    Trait("loves {}", "does not love {}", {"music": ["opera", "jazz"], "sport": ["rowing", "tennis"]}),
]
LABELS = ("entailment", "neutral", "contradiction")


def inference(world: World, subject: Callable[[World], str], traits: list[Trait]) -> dict:
    """One pair. The hypothesis is drawn before the label, so that alone it says nothing about it.

    The premise says two things of its subject. It bears out an affirmed hypothesis by a thing of the kind that this
    one names (or is of), speaks against it by a thing of the other kind, and leaves it open by saying nothing of the
    trait. A denied hypothesis swaps the first two.
    """
    rng = world.rng
    name, asked, label = subject(world), rng.choice(traits), rng.choice(LABELS)
    denied = rng.random() < 0.25
    kind, other_kind = rng.sample(list(asked.kinds), 2)
    member = rng.choice(asked.kinds[kind])
    hypothesis = (asked.denied if denied else asked.affirmed).format(rng.choice((kind, member)))
    told = [
        (trait, rng.choice(rng.choice(list(trait.kinds.values()))))
        for trait in rng.sample([trait for trait in traits if trait is not asked], 2)
    ]
    if label != "neutral":
        agrees = (label == "entailment") != denied
        told[rng.randrange(2)] = (asked, member if agrees else rng.choice(asked.kinds[other_kind]))
    first, second = (trait.affirmed.format(thing) for trait, thing in told)
    return {"premise": f"{name} {first} and {second}.", "hypothesis": f"{name} {hypothesis}.", "label": label}


# Ratings from 1 to 5: `reviews` -------------------------------------------------------------------

ASPECTS = words("soup, bread, music, service, room, view, waiter, garden, price, dessert, stage, singer, play, seat")
PRAISE = words("good, lovely, charming, wonderful, pleasant, superb")
BLAME = words("bad, dull, shabby, awful, poor, dreadful")
REMARKS = ("The {} was {}.", "We found the {} {}.", "I thought the {} was {}.")


def review(world: World) -> dict:
    """One review. Each remark counts one up or down, "not" turns it round, "very" doubles it; the sum gives the stars."""
    rng = world.rng
    leaning = rng.random()  # how likely this guest is to praise
    total = 0
    remarks = [f"We spent a day in {world.town()}."]
    for aspect in rng.sample(ASPECTS, rng.randint(2, 4)):
        praises = rng.random() < leaning
        verdict = rng.choice(PRAISE if praises else BLAME)
        worth = 1 if praises else -1
        turn = rng.random()
        if turn < 0.15:
            verdict, worth = f"not {verdict}", -worth
        elif turn < 0.4:
            verdict, worth = f"very {verdict}", 2 * worth
        total += worth
        remarks.append(rng.choice(REMARKS).format(aspect, verdict))
    stars = 1 if total < -2 else 2 if total < 0 else 3 if total == 0 else 4 if total < 3 else 5
    return {"text": " ".join(remarks), "stars": str(stars)}


# Paraphrase: `paraphrase` -------------------------------------------------------------------------

DEEDS = [["bought", "purchased"], ["sold", "traded"], ["repaired", "mended"], ["found", "discovered"]]
LOOKS = [["big", "large"], ["small", "little"], ["old", "ancient"], ["fine", "splendid"], ["costly", "expensive"]]
THINGS = [[thing] for thing in words("clock, kettle, lamp, ladder, mirror, piano, saddle, sofa, table, wagon")]
DAYS = [[day] for day in words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")]
EVENTS = {"deed": DEEDS, "look": LOOKS, "thing": THINGS, "day": DAYS}  # each a list of synonyms
TELLINGS = (
    "On {day} {who} {deed} the {look} {thing}.",
    "{who} {deed} the {look} {thing}, on {day}.",
    "The {look} {thing} was {deed} by {who} on {day}.",
)


def paraphrase(world: World) -> dict:
    """One pair: an event told in two ways, by other words; or told beside one that differs in two to all parts."""
    rng = world.rng
    parts = {"who": [[name] for name in world.first_names], **EVENTS}
    event = {part: rng.choice(choices) for part, choices in parts.items()}
    same = rng.random() < 0.45
    changed = [] if same else rng.sample(list(parts), rng.randint(2, len(parts)))
    other = event | {part: rng.choice([choice for choice in parts[part] if choice != event[part]]) for part in changed}
    first, second = (
        telling.format(**{part: rng.choice(synonyms) for part, synonyms in told.items()})
        for telling, told in zip(rng.sample(TELLINGS, 2), (event, other), strict=True)
    )
    return {"first": first, "second": second, "same": "yes" if same else "no"}


# Text for pretraining -----------------------------------------------------------------------------


def told_twice(world: World, name: str, traits: list[Trait]) -> list[str]:
    """Two habits or trades of a subject, then each by its kind, and what it thereby does not do."""
    rng, first, rest = world.rng, [], []
    for trait in rng.sample(traits, 2):
        kind, other = rng.sample(list(trait.kinds), 2)
        member = rng.choice(trait.kinds[kind])
        first.append(trait.affirmed.format(member))
        rest.append(f"{name} {trait.affirmed.format(kind)}.")
        rest.append(f"{name} {trait.denied.format(rng.choice([other, *trait.kinds[other]]))}.")
    return [f"{name} {first[0]} and {first[1]}.", *rng.sample(rest, rng.randint(2, len(rest)))]


def life(world: World, name: str, facts: list[Facts], intros: list[str]) -> list[str]:
    """A subject's facts, some of them told again with its name."""
    rng, lines = world.rng, [world.rng.choice(intros).format(name)]
    known = [(family, noun) for family in facts for noun in family.nouns]
    for fact, noun in rng.sample(known, rng.randint(3, 6)):
        answer = fact.answer(world)
        lines.append(fact.sentence.format(noun, answer))
        if rng.random() < 0.3:
            lines.append(fact.sentence.format(f"{noun} of {name}", answer))
        if rng.random() < 0.1:
            lines.append(rng.choice(ASIDES))
    return lines


def visit(world: World) -> list[str]:
    """A day out: each thing is judged twice alike, by other words."""
    rng, leaning = world.rng, world.rng.random()
    lines = [f"We spent a day in {world.town()}."]
    for aspect in rng.sample(ASPECTS, rng.randint(2, 4)):
        praises = rng.random() < leaning
        verdicts, opposite = (PRAISE, BLAME) if praises else (BLAME, PRAISE)
        for remark in rng.sample(REMARKS, 2):
            verdict, turn = rng.choice(verdicts), rng.random()
            if turn < 0.15:
                verdict = f"not {rng.choice(opposite)}"
            elif turn < 0.35:
                verdict = f"very {verdict}"
            lines.append(remark.format(aspect, verdict))
    return lines


def bargains(world: World) -> list[str]:
    """What somebody did on some days, each told in two ways, by other words."""
    rng, lines, name = world.rng, [], world.first_name()
    for _ in range(rng.randint(2, 3)):
        parts = {"who": [name], **{part: rng.choice(choices) for part, choices in EVENTS.items()}}
        for telling in rng.sample(TELLINGS, 2):
            lines.append(telling.format(**{part: rng.choice(words) for part, words in parts.items()}))
    return lines


def document(world: World) -> list[str]:
    """The lines of one document, of the worlds of the data sets; its names are those of training rows."""
    town, person, name = world.town(), world.person(), world.first_name()
    kinds: list[Callable[[], list[str]]] = [
        lambda: life(world, town, PLACES, TOWN_INTROS),
        lambda: life(world, person, PEOPLE, PERSON_INTROS),
        lambda: told_twice(world, name, HABITS),
        lambda: told_twice(world, town, TRADES),
        lambda: visit(world),
        lambda: bargains(world),
    ]
    return world.rng.choice(kinds)()


def text(split: str) -> str:
    """Documents of a sentence or two a line, with blank lines between them."""
    world = World(f"text-{split}", "train")
    return "\n\n".join("\n".join(document(world)) for _ in range(DOCUMENTS[split])) + "\n"


# Files --------------------------------------------------------------------------------------------


def distinct(make: Callable[..., dict], world: World, about: tuple, count: int) -> list[dict]:
    """`count` rows of `make(world, *about)`, no two of them with the same texts."""
    rows: dict[tuple, dict] = {}
    while len(rows) < count:
        row = make(world, *about)
        rows.setdefault(tuple(row.values())[:-1], row)
    return list(rows.values())


def as_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_table(rows: list[dict], delimiter: str) -> str:
    """The rows with a header line; cells that hold the delimiter are quoted."""
    page = io.StringIO()
    writer = csv.DictWriter(page, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return page.getvalue()


def data_files() -> Iterator[tuple[str, str]]:
    """The name and text of each data file."""
    for split, contexts in CONTEXTS.items():

        def rows(dataset: str, row: Callable[..., dict], *about, split=split) -> list[dict]:
            return distinct(row, World(dataset, split), about, ROWS[split])

        places = span_qa(World("places", split), PLACES, World.town, TOWN_INTROS, contexts)
        people = span_qa(World("people", split), PEOPLE, World.person, PERSON_INTROS, contexts)
        habits = rows("inference", inference, World.first_name, HABITS)
        trades = rows("inference_towns", inference, World.town, TRADES)
        yield f"places.{split}.json", as_jsonl([places])
        yield f"people.{split}.json", as_jsonl([people])
        yield f"inference.{split}.jsonl", as_jsonl(habits)
        yield f"inference_towns.{split}.jsonl", as_jsonl(trades)
        yield f"reviews.{split}.tsv", as_table(rows("reviews", review), "\t")
        yield f"paraphrase.{split}.csv", as_table(rows("paraphrase", paraphrase), ",")
        yield f"text.{split}.txt", text(split)


# Tokenizer ----------------------------------------------------------------------------------------


def build_tokenizer(texts: list[str]) -> Tokenizer:
    """A lower-casing WordPiece tokenizer: every character of the texts, the parts of the towns' names, frequent words."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    towns = {(head + tail).lower() for head in TOWN_HEADS for tail in TOWN_TAILS}
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789", *"".join(counts)})
    pieces = [
        *SPECIAL,
        *letters,
        *(f"##{letter}" for letter in letters),
        *(head.lower() for head in TOWN_HEADS),
        *(f"##{tail}" for tail in TOWN_TAILS),
        *sorted(word for word, count in counts.items() if count >= 10 and word not in towns),
    ]
    return assembled(list(dict.fromkeys(pieces)), normalizer)


def tokenizer_files(texts: list[str]) -> Iterator[tuple[str, str]]:
    """The name and text of each tokenizer file, as `AutoTokenizer.from_pretrained` reads them."""
    tokenizer = build_tokenizer(texts)
    vocabulary = tokenizer.get_vocab()
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    settings = {"tokenizer_class": "ElectraTokenizer", "do_lower_case": True, "model_max_length": MAX_LENGTH, **names}
    yield "tokenizer.json", tokenizer.to_str(pretty=True) + "\n"
    yield "tokenizer_config.json", json.dumps(settings, indent=2) + "\n"
    yield "vocab.txt", "".join(f"{piece}\n" for piece in sorted(vocabulary, key=lambda piece: vocabulary[piece]))


def main(folder: Path) -> None:
    """Writes the data files into `folder` and the tokenizer's into its subfolder `tokenizer`."""
    data = dict(data_files())
    tokenizer = tokenizer_files(
        [rows for name, rows in data.items() if ".train." in name and not name.startswith("text")]
    )
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, content in [*data.items(), *((f"tokenizer/{name}", content) for name, content in tokenizer)]:
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    main(parser.parse_args().folder)
