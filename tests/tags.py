"""Sentences with tags, written as a public file is."""

from pathlib import Path

LABELS = ["O", "B-PER", "I-PER", "B-FOOD", "I-FOOD"]
PEOPLE = ["Nora Granger", "Nils Novak", "Tilda Berg", "Ada"]
FOODS = ["lemon cake", "pancakes"]
SENTENCES = [
    "The boss of PER is PER .",
    "Our friend PER !",
    "The best dinner of PER is FOOD .",
    "The graduation was in 1991 .",
    "PER and PER met unmistakeably in the town , and the best dinner there is FOOD .",
]


def sentences(count: int, first: int = 0) -> list[list[tuple[str, str]]]:
    """Words with their tags; every sentence another mixture."""
    found = []
    for number in range(first, first + count):
        words = []
        for at, word in enumerate(SENTENCES[number % len(SENTENCES)].split()):
            names = {"PER": PEOPLE, "FOOD": FOODS}.get(word)
            parts = names[(number + 3 * at) % len(names)].split() if names else [word]
            kinds = [f"{'I' if i else 'B'}-{word}" if names else "O" for i in range(len(parts))]
            words += zip(parts, kinds, strict=True)
        found.append(words)
    return found


def conll(rows: list[list[tuple[str, str]]]) -> str:
    """The four columns of CoNLL-2003."""
    blocks = ["-DOCSTART- -X- -X- O", *("\n".join(f"{word} NN I-NP {tag}" for word, tag in row) for row in rows)]
    return "\n\n".join(blocks) + "\n"


def write(folder: Path) -> tuple[Path, Path]:
    """eng.train and eng.testa."""
    (folder / "eng.train").write_text(conll(sentences(60)))
    (folder / "eng.testa").write_text(conll(sentences(20, first=60)))
    return folder / "eng.train", folder / "eng.testa"
