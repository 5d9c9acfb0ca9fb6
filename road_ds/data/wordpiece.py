"""A WordPiece tokenizer trained from texts, as BERT and ELECTRA have one."""

import json
import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from road_ds.common.errors import RoadError
from road_ds.common.log import progress

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = 1000  # so many of a text's get pieces of their own, and not more than a quarter of the vocabulary
COVERED = 0.99  # of the text by them, at least
TWICE = 2  # a piece stands for what occurs so often
POSITIONS = 512
AT_ONCE = 2**20  # characters


def train(texts: Callable[[], Iterable[str]], size: int, *, cased: bool = False) -> Tokenizer:
    """A tokenizer of at most `size` pieces, the same for the same texts; `texts` is read twice.

    Each frequent character has a piece as a word's beginning, and one as its rest if it can be that, so that every word of
    them can be spelled. RoadError where `size` has no room for the characters.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=not cased), pre_tokenizers.BertPreTokenizer()
    with progress(None, "counting characters", "text") as bar:
        characters = frequent(counted(texts(), bar.update), normalizer, size)
    # The library numbers the pieces "##x" in the order of a hash table and decides ties by number: given beforehand, as
    # "special" ones, they have the same numbers every time.
    inner = [f"##{character}" for character in characters if _joins(character, normalizer, splitter)]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=TWICE, special_tokens=[*SPECIAL, *inner], show_progress=False,
        initial_alphabet=characters, limit_alphabet=len(characters), continuing_subword_prefix="##",
    )  # fmt: skip
    with progress(None, "learning pieces", "text") as bar:
        learner.train_from_iterator(_told(texts(), bar.update), trainer)
    vocabulary = learner.get_vocab()
    learned = sorted(vocabulary.keys() - {*SPECIAL, *characters, *inner}, key=lambda piece: vocabulary[piece])
    return assembled([*SPECIAL, *characters, *inner, *learned], normalizer)


def counted(texts: Iterable[str], told: Callable[[], object]) -> np.ndarray:
    """How often each code point occurs, [code points]."""
    counts, held, size = np.zeros(0x110000, dtype=np.int64), [], 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= AT_ONCE:
            counts += _code_points(held)
            held, size = [], 0
        told()
    return counts + _code_points(held)


def _code_points(texts: list[str]) -> np.ndarray:
    return np.bincount(np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)


def frequent(counts: np.ndarray, normalizer: normalizers.Normalizer, size: int) -> list[str]:
    """The characters that a vocabulary of `size` pieces has, in their order. RoadError where they are too few of the text.

    counts: of each code point before the normalizer, which works on characters one by one.
    """
    found: dict[str, int] = {}
    for point in np.flatnonzero(counts):
        for character in normalizer.normalize_str(chr(point)):
            if not character.isspace():
                found[character] = found.get(character, 0) + int(counts[point])
    if not found:
        raise RoadError("the texts hold no characters: give texts with words")
    ranked = sorted(found, key=lambda character: (-found[character], character))
    covered = list(accumulate(found[character] for character in ranked))
    room = min(CHARACTERS, size // 4)
    if room < (needed := bisect_left(covered, COVERED * covered[-1]) + 1):
        share = covered[room - 1] / covered[-1] if room else 0
        enough = (
            f"give at least {4 * needed}"
            if needed <= CHARACTERS
            else "its writing has too many for pieces of their own"
        )
        raise RoadError(
            f"--vocab_size {size}: leaves room for {room} of {len(ranked)} characters, {share:.0%} of the text: {enough}"
        )
    return sorted(ranked[:room])


def _joins(character: str, normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer) -> bool:
    """Whether a character can be the rest of a word, as punctuation and Chinese characters cannot."""
    return len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1


def assembled(pieces: list[str], normalizer: normalizers.Normalizer) -> Tokenizer:
    """A tokenizer with a vocabulary, as ELECTRA's: [CLS] A [SEP] B [SEP]."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *, cased: bool) -> None:
    """Writes a folder that AutoTokenizer reads, in one move."""
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    settings = {
        "tokenizer_class": "ElectraTokenizer",
        "do_lower_case": not cased,
        "model_max_length": POSITIONS,
        **names,
    }
    vocabulary = tokenizer.get_vocab()
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "vocab.txt": "".join(f"{piece}\n" for piece in sorted(vocabulary, key=lambda piece: vocabulary[piece])),
    }
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        for name, text in files.items():
            (staged / name).write_text(text, encoding="utf-8", newline="\n")
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _told(texts: Iterable[str], told: Callable[[], object]) -> Iterator[str]:
    for text in texts:
        yield text
        told()
