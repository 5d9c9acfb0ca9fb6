"""The embedded sample's rows and tokenizer, written anew by one seeded script.

    python road_ds/sample_data/make.py [FOLDER]

Five data sets for four tasks, about small invented worlds: towns and people (span QA), what a
person owns and does (inference), evenings out (reviews), and things that happened to things
(paraphrase). The same bytes come out on every run. Every sixth full name of a person and every sixth name of
a town is kept for the dev rows, so that these ask about nobody the training rows know.
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

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SEED = 11
SPLITS = ("train", "dev")
HELD_OUT = 6  # one name in six is a dev name
MAX_LENGTH = 128

# ---------------------------------------------------------------------------------------------
# Words


FIRST_NAMES = [
    "Ada",
    "Aino",
    "Anaïs",
    "Bela",
    "Bruno",
    "Carla",
    "Cedric",
    "Dora",
    "Edda",
    "Emil",
    "Fenna",
    "Gita",
    "Goran",
    "Hanna",
    "Hugo",
    "Ilse",
    "Ivo",
    "Jonas",
    "José",
    "Karin",
    "Lena",
    "Leo",
    "Lucía",
    "Marta",
    "Milo",
    "Nadia",
    "Nils",
    "Nora",
    "Olga",
    "Otto",
    "Paula",
    "Pavel",
    "Rosa",
    "Ruben",
    "Sami",
    "Selma",
    "Søren",
    "Tilda",
    "Vera",
    "Zoë",
]
LAST_NAMES = [
    "Abel",
    "Bakker",
    "Berg",
    "Brandt",
    "Castro",
    "Dahl",
    "Duarte",
    "Falk",
    "Fischer",
    "Garcia",
    "Granger",
    "Haas",
    "Holm",
    "Jansen",
    "Keller",
    "Kovač",
    "Lindt",
    "Marsh",
    "Moreau",
    "Müller",
    "Novak",
    "Olsen",
    "Peña",
    "Quist",
    "Ritter",
    "Rossi",
    "Sato",
    "Silva",
    "Thorn",
    "Vidal",
    "Weiss",
    "Young",
]
TOWN_HEADS = [
    "Al",
    "Bar",
    "Bel",
    "Cor",
    "Dun",
    "El",
    "Fal",
    "Gar",
    "Hol",
    "Ister",
    "Kal",
    "Lor",
    "Mer",
    "Nor",
    "Or",
    "Pel",
    "Quen",
    "Ros",
    "Sel",
    "Tam",
    "Ul",
    "Var",
    "Wen",
    "Yar",
]
TOWN_TAILS = [
    "bridge",
    "burg",
    "by",
    "dale",
    "field",
    "ford",
    "gate",
    "ham",
    "haven",
    "holt",
    "mere",
    "mouth",
    "port",
    "stead",
    "stow",
    "ton",
    "vale",
    "wick",
]

COLOURS = ["black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "silver", "white", "yellow"]
MATERIALS = [
    "brick",
    "clay",
    "copper",
    "glass",
    "granite",
    "iron",
    "marble",
    "oak",
    "steel",
    "stone",
    "straw",
    "timber",
]
NUMBERS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "twenty",
    "thirty",
    "forty",
]
HOURS = ["five", "six", "seven", "eight", "nine", "ten", "eleven", "noon", "midnight"]
GOODS = [
    "apples",
    "baskets",
    "candles",
    "carpets",
    "cheese",
    "cherries",
    "fish",
    "flour",
    "garlic",
    "honey",
    "lace",
    "pots",
    "rope",
    "salt",
    "silk",
    "soap",
    "tea",
    "wool",
]
DISHES = [
    "bean soup",
    "fish pie",
    "fried rice",
    "goat curry",
    "lentil stew",
    "lemon cake",
    "onion tart",
    "plum dumplings",
    "roast duck",
    "rye bread",
]
JOBS = [
    "architect",
    "baker",
    "carpenter",
    "dentist",
    "farmer",
    "gardener",
    "lawyer",
    "nurse",
    "painter",
    "pilot",
    "plumber",
    "tailor",
]
SEASONS = ["spring", "summer", "autumn", "winter"]
YEARS = [str(year) for year in range(1931, 1996, 4)]
INSTRUMENTS = ["cello", "drums", "flute", "guitar", "harp", "organ", "piano", "trumpet", "violin"]

# ---------------------------------------------------------------------------------------------
# Names


def held_out(split: str, first: int, second: int) -> bool:
    """Whether the name made of parts number `first` and `second` is not for this split."""
    return ((first + second) % HELD_OUT == 0) != (split == "dev")


class World:
    """The random choices of one data set's split; what it names belongs to that split alone."""

    def __init__(self, dataset: str, split: str):
        self.rng = random.Random(f"{SEED}/{dataset}/{split}")
        self.people = _names(split, FIRST_NAMES, LAST_NAMES, " ")
        self.towns = _names(split, TOWN_HEADS, TOWN_TAILS, "")

    def person(self) -> str:
        return self.rng.choice(self.people)

    def town(self) -> str:
        return self.rng.choice(self.towns)

    def two(self, words: list[str]) -> list[str]:
        """Two different words."""
        return self.rng.sample(words, 2)


def _names(split: str, heads: list[str], tails: list[str], glue: str) -> list[str]:
    return [
        head + glue + tail for i, head in enumerate(heads) for j, tail in enumerate(tails) if not held_out(split, i, j)
    ]


# ---------------------------------------------------------------------------------------------
# Span QA: `places` and `people`


class Facts(NamedTuple):
    """A family of facts: one sentence and one question for each noun, and what may be the answer."""

    nouns: list[str]
    sentence: str
    question: str
    value: Callable[[World], str]


def one_of(words: list[str]) -> Callable[[World], str]:
    return lambda world: world.rng.choice(words)


def pair_of(words: list[str]) -> Callable[[World], str]:
    return lambda world: " and ".join(world.two(words))


PLACES = [
    Facts(["mayor", "judge", "doctor"], "The {noun} is {value}.", "Who is the {noun} of {subject}?", World.person),
    Facts(
        ["station", "school", "mill"],
        "The {noun} is painted {value}.",
        "What colour is the {noun} painted?",
        one_of(COLOURS),
    ),
    Facts(
        ["bridge", "church", "tower"],
        "The {noun} is made of {value}.",
        "What is the {noun} made of?",
        pair_of(MATERIALS),
    ),
    Facts(["museum", "bank", "castle"], "The {noun} opens at {value}.", "When does the {noun} open?", one_of(HOURS)),
    Facts(
        ["harbour shop", "monastery", "fair"], "The {noun} sells {value}.", "What does the {noun} sell?", pair_of(GOODS)
    ),
    Facts(
        ["wells", "gardens", "boats"],
        "The number of {noun} is {value}.",
        "What is the number of {noun}?",
        one_of(NUMBERS),
    ),
    Facts(
        ["railway", "canal", "old road"], "The {noun} leads to {value}.", "Where does the {noun} lead to?", World.town
    ),
]
PEOPLE = [
    Facts(["sister", "neighbour", "boss"], "The {noun} is {value}.", "Who is the {noun} of {subject}?", World.person),
    Facts(
        ["car", "bicycle", "kitchen"],
        "The {noun} is painted {value}.",
        "What colour is the {noun} painted?",
        one_of(COLOURS),
    ),
    Facts(
        ["breakfast", "dinner", "picnic"],
        "The favourite {noun} is {value}.",
        "What is the favourite {noun}?",
        one_of(DISHES),
    ),
    Facts(["first job", "dream job"], "The {noun} was {value}.", "What was the {noun}?", one_of(JOBS)),
    Facts(["house", "studio", "office"], "The {noun} is in {value}.", "Where is the {noun}?", World.town),
    Facts(["wedding", "graduation", "journey"], "The {noun} was in {value}.", "When was the {noun}?", one_of(YEARS)),
    Facts(
        ["cats", "goats", "hens"], "The number of {noun} is {value}.", "What is the number of {noun}?", one_of(NUMBERS)
    ),
]
TOWN_INTROS = ["{subject} is a town.", "{subject} lies by the sea.", "Welcome to {subject}!"]
PERSON_INTROS = ["This is {subject}.", "{subject} tells us a lot.", "Meet {subject}!"]
ASIDES = ["What a day! 🎈", "Visitors like it 😀 very much.", "The café is full.", "It rains a lot ☔ in autumn."]


def span_qa(
    world: World, facts: list[Facts], intros: list[str], subject: Callable[[World], str], contexts: int
) -> dict:
    """A SQuAD 2.0 document: one paragraph per context, five questions each, about a third without an answer."""
    rng = world.rng
    nouns = [(family, noun) for family in facts for noun in family.nouns]
    data = []
    for number in range(contexts):
        name = subject(world)
        chosen = rng.sample(nouns, 16 if number % 25 == 24 else rng.randint(4, 7))
        told = {}
        sentences = []
        for family, noun in chosen:
            value = family.value(world)
            told[noun] = value
            sentences.append((family.sentence.format(noun=noun, subject=name, value=value), noun))
        if rng.random() < 0.3:
            sentences.insert(rng.randrange(len(sentences)), (rng.choice(ASIDES), None))
        context, starts = rng.choice(intros).format(subject=name), {}
        for sentence, noun in sentences:
            context += " "
            if noun:
                starts[noun] = len(context) + sentence.rindex(told[noun])
            context += sentence
        missing = [pair for pair in nouns if pair not in chosen]
        absent = sum(rng.random() < 0.33 for _ in range(5))
        asked = rng.sample(chosen, min(5 - absent, len(chosen))) + rng.sample(missing, absent)
        rng.shuffle(asked)
        qas = [
            {
                "id": f"{number:04d}-{position}",
                "question": family.question.format(noun=noun, subject=name),
                "answers": [{"text": told[noun], "answer_start": starts[noun]}] if noun in told else [],
                "is_impossible": noun not in told,
            }
            for position, (family, noun) in enumerate(asked)
        ]
        data.append({"title": name, "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0", "data": data}


# ---------------------------------------------------------------------------------------------
# Natural language inference: `inference`


class Trait(NamedTuple):
    """Something to say of a person: the sentence, its denial and the kinds of things that fit in."""

    affirm: str
    deny: str
    kinds: dict[str, str]  # kind: its members


TRAITS = [
    Trait("keeps a {}", "does not keep a {}", {"dog": "poodle terrier", "bird": "parrot canary"}),
    Trait("plays the {}", "does not play the {}", {"horn": "trumpet tuba", "drum": "bongo tabla"}),
    Trait("drives a {}", "does not drive a {}", {"car": "sedan limousine", "boat": "ferry canoe"}),
    Trait("wears a {}", "does not wear a {}", {"hat": "beret bonnet", "coat": "parka raincoat"}),
    Trait("grows a {}", "does not grow a {}", {"flower": "rose tulip", "tree": "larch willow"}),
    Trait("paints in {}", "does not paint in {}", {"red": "crimson scarlet", "blue": "azure navy"}),
]
LABELS = ("entailment", "neutral", "contradiction")


def inference(world: World) -> dict:
    """One pair. The hypothesis is drawn before the label, so that alone it says nothing about it.

    The premise says two things of a person. An affirmed hypothesis holds when the premise has the same
    word, or a member of the kind it names; fails when it has a word of another kind; and stays open when the
    premise does not touch the trait. A denied one turns the first two round.
    """
    rng = world.rng
    name = rng.choice(FIRST_NAMES)
    asked = rng.choice(TRAITS)
    kind = rng.choice(list(asked.kinds))
    member = rng.choice(asked.kinds[kind].split())
    denied = rng.random() < 0.25
    hypothesis = f"{name} {(asked.deny if denied else asked.affirm).format(rng.choice((kind, member)))}."
    label = rng.choice(LABELS)
    others = [trait for trait in TRAITS if trait is not asked]
    told = [(trait, rng.choice(rng.choice(list(trait.kinds.values())).split())) for trait in rng.sample(others, 2)]
    if label != "neutral":
        if (label == "entailment") == denied:
            other = rng.choice([key for key in asked.kinds if key != kind])
            member = rng.choice(asked.kinds[other].split())
        told[rng.randrange(2)] = (asked, member)
    first, second = (trait.affirm.format(value) for trait, value in told)
    return {"premise": f"{name} {first} and {second}.", "hypothesis": hypothesis, "label": label}


# ---------------------------------------------------------------------------------------------
# Ratings from 1 to 5: `reviews`

ASPECTS = [
    "soup",
    "bread",
    "music",
    "service",
    "room",
    "view",
    "waiter",
    "garden",
    "price",
    "dessert",
    "stage",
    "singer",
    "play",
    "seat",
]
PRAISE = ["good", "lovely", "charming", "tasty", "pleasant", "kind"]
BLAME = ["bad", "dull", "shabby", "bland", "noisy", "rude"]
LINKS = ("The {} was {}.", "We found the {} {}.", "I thought the {} was {}.")
STARS = ("1", "2", "3", "4", "5")


def review(world: World) -> dict:
    """One review. Each remark counts one up or down ("not" turns it round, "very" doubles it); the sum gives the stars."""
    rng = world.rng
    total = 0
    leaning = rng.random()  # how likely this guest is to praise
    sentences = []
    for aspect in rng.sample(ASPECTS, rng.randint(2, 4)):
        good = rng.random() < leaning
        worth = 1 if good else -1
        word = rng.choice(PRAISE if good else BLAME)
        turn = rng.random()
        if turn < 0.2:
            word, worth = f"not {word}", -worth
        elif turn < 0.45:
            word, worth = f"very {word}", 2 * worth
        total += worth
        sentences.append(rng.choice(LINKS).format(aspect, word))
    if rng.random() < 0.3:
        sentences.insert(0, f"We spent a day in {world.town()}.")
    stars = 1 if total < -2 else 2 if total < 0 else 3 if total == 0 else 4 if total < 3 else 5
    return {"text": " ".join(sentences), "stars": str(stars)}


# ---------------------------------------------------------------------------------------------
# Paraphrase: `paraphrase`

VERBS = [
    ("bought", "purchased"),
    ("sold", "traded"),
    ("repaired", "mended"),
    ("found", "discovered"),
    ("lost", "misplaced"),
]
SIZES = [("big", "large"), ("small", "little"), ("old", "ancient"), ("fine", "splendid"), ("costly", "expensive")]
THINGS = ["clock", "kettle", "lamp", "ladder", "mirror", "piano", "saddle", "sofa", "table", "wagon"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FRAMES = (
    "On {day} {who} {verb} the {size} {thing}.",
    "{who} {verb} the {size} {thing} on {day}.",
    "The {size} {thing} was {verb} by {who} on {day}.",
)


def paraphrase(world: World) -> dict:
    """One pair: the same event told twice, by other frames and synonyms, or two events that share some parts."""
    rng = world.rng
    choices = {"who": FIRST_NAMES, "verb": VERBS, "size": SIZES, "thing": THINGS, "day": DAYS}
    event = {slot: rng.choice(values) for slot, values in choices.items()}
    same = rng.random() < 0.45
    changed = [] if same else rng.sample(list(choices), rng.randint(1, len(choices)))
    retold = dict(event)
    for slot in changed:
        retold[slot] = rng.choice([value for value in choices[slot] if value != event[slot]])

    def tell(frame: str, facts: dict) -> str:
        return frame.format(
            **{slot: value if isinstance(value, str) else rng.choice(value) for slot, value in facts.items()}
        )

    one, other = rng.sample(FRAMES, 2)
    return {"first": tell(one, event), "second": tell(other, retold), "same": "yes" if same else "no"}


# ---------------------------------------------------------------------------------------------
# Files


def distinct(make: Callable[[World], dict], world: World, count: int) -> list[dict]:
    """`count` rows, no two of them with the same texts."""
    rows: dict[tuple, dict] = {}
    while len(rows) < count:
        row = make(world)
        rows.setdefault(tuple(row.values())[:-1], row)
    return list(rows.values())


def as_json(document: dict) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def as_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_table(rows: list[dict], delimiter: str) -> str:
    page = io.StringIO()
    writer = csv.DictWriter(page, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return page.getvalue()


def files() -> Iterator[tuple[str, str]]:
    """Each data file's name and text."""
    for split, contexts, count in (("train", 500, 3000), ("dev", 40, 200)):
        places, people = World("places", split), World("people", split)
        yield f"places.{split}.json", as_json(span_qa(places, PLACES, TOWN_INTROS, World.town, contexts))
        yield f"people.{split}.json", as_json(span_qa(people, PEOPLE, PERSON_INTROS, World.person, contexts))
        yield f"inference.{split}.jsonl", as_jsonl(distinct(inference, World("inference", split), count))
        yield f"reviews.{split}.tsv", as_table(distinct(review, World("reviews", split), count), "\t")
        yield f"paraphrase.{split}.csv", as_table(distinct(paraphrase, World("paraphrase", split), count), ",")


# ---------------------------------------------------------------------------------------------
# Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_tokenizer(texts: list[str]) -> Tokenizer:
    """A lower-casing WordPiece tokenizer: every character, the parts of the towns' names, and words seen often."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    towns = {(head + tail).lower() for head in TOWN_HEADS for tail in TOWN_TAILS}
    letters = sorted({letter for word in words for letter in word})
    pieces = [
        *SPECIAL,
        *letters,
        *(f"##{letter}" for letter in letters),
        *(head.lower() for head in TOWN_HEADS),
        *(f"##{tail}" for tail in TOWN_TAILS),
        *sorted(word for word, count in words.items() if count >= 3 and word not in towns),
    ]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def main(folder: Path) -> None:
    """Writes the data files and the tokenizer into `folder`."""
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for name, text in files():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        texts.append(text)
    tokenizer = build_tokenizer(texts)
    tokenizer.save(str(tokenizer_folder / "tokenizer.json"))
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tokenizer_folder / "vocab.txt").write_text(
        "".join(f"{piece}\n" for piece, _ in ranked), encoding="utf-8", newline="\n"
    )
    settings = {
        "tokenizer_class": "ElectraTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (tokenizer_folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    main(parser.parse_args().folder)
