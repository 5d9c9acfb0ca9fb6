"""Documents -> sequences of two segments for pretraining, packed to a length (as google-research/electra does)."""

import hashlib
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from road_ds.common.errors import RoadError
from road_ds.data.batch import Feature
from road_ds.data.readers import Example
from road_ds.tasks.spans import PairTemplate

LONE = 0.1  # share of sequences with one segment
SHORTER = 0.05  # share with a random shorter length
LEAST = 5  # tokens of text in a sequence; what is left of a document below that is left out
AT_ONCE = 2**20  # characters that are tokenized together
KNOWN = 2**19  # words whose tokens are kept
NO_LABELS = np.empty(0, dtype=np.int32)


def sequences(examples: Sequence[Example], tokenizer: Any, max_length: int, first: int = 0) -> Iterator[Feature]:
    """[CLS] A [SEP] B [SEP] of at most `max_length` tokens, one after the other out of each document; without labels.

    A and B are neighbouring lines of a document, A about half of the length; where lines are long, cut. A share LONE has no
    B, a share SHORTER is shorter. What is left at a document's end is a shorter sequence. All of it is a function of the
    document's text: the draws are seeded by it. RoadError for a tokenizer without a mask token, or a pair of texts.
    """
    frame = Frame.of(tokenizer)
    words = Words(tokenizer)
    for begin, end in _turns([len(example.text_a) for example in examples]):
        documents = [lines_of(example) for example in examples[begin:end]]
        encoded = iter(words([line for lines in documents for line in lines]))
        for number, lines in enumerate(documents, begin):
            tokens = [next(encoded) for _ in lines]
            ids = np.frombuffer(b"".join(tokens), dtype=np.int32)
            ends = [size // ids.itemsize for size in accumulate(map(len, tokens))]
            draws = random.Random(hashlib.blake2b(examples[number].text_a.encode()).digest())
            for start, middle, stop in cuts(ends, max_length, frame, draws):
                yield frame.feature(ids[start:middle], ids[middle:stop], first + number)


def lines_of(example: Example) -> list[str]:
    """The lines of a document that are not blank. RoadError for a pair of texts."""
    if example.text_b is not None:
        raise RoadError(f"{example.where}: two texts, where a document is one: set columns.text_b to null")
    return [line for line in example.text_a.splitlines() if line.strip()]


def cuts(ends: Sequence[int], max_length: int, frame: "Frame", draws: random.Random) -> Iterator[tuple[int, int, int]]:
    """Where the sequences of a document begin, change to their second segment, and end; no second where it is the end.

    ends: the tokens up to the end of each line.
    """
    start, tokens = 0, ends[-1] if ends else 0
    while tokens - start >= LEAST:
        length = max_length
        if draws.random() < SHORTER:
            length = draws.randint(min(LEAST + frame.special(2), max_length), max_length)
        lone = draws.random() < LONE
        room = length - frame.special(1 if lone else 2)
        stop = min(start + room, tokens)
        middle = stop if lone else _middle(ends, start, start + room // 2, stop, draws)
        yield start, middle, stop
        start = stop


def _middle(ends: Sequence[int], start: int, half: int, stop: int, draws: random.Random) -> int:
    """The end of a line nearest before or behind `half`, either as likely; `half` itself where none lies inside."""
    if stop <= half:
        return stop
    behind = bisect_left(ends, half)
    inside = [end for end in (ends[behind - 1] if behind else 0, ends[behind]) if start < end < stop]
    return draws.choice(inside) if inside else half


def _turns(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of documents that have about AT_ONCE characters together."""
    totals = list(accumulate(sizes))
    begin = 0
    while begin < len(sizes):
        before = totals[begin - 1] if begin else 0
        end = max(begin + 1, bisect_right(totals, before + AT_ONCE))
        yield begin, end
        begin = end


@dataclass(frozen=True)
class Frame:
    """The special tokens around and between two segments, and behind a lone one."""

    types: tuple[int, int]  # of the first segment's tokens and the second's
    prefix: np.ndarray
    middle: np.ndarray
    suffix: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any) -> "Frame":
        """The frame of a tokenizer. RoadError where it has none, or no mask token."""
        if tokenizer.mask_token_id is None:
            raise RoadError(
                f"{tokenizer.name_or_path}: the tokenizer has no mask token, which pretraining puts in the place of words: "
                "expected that of an encoder such as ELECTRA or BERT, or one that `python -m road_ds tokenizer` made"
            )
        pair = PairTemplate.of(tokenizer)
        one = tokenizer("a")
        last = max(i for i, part in enumerate(one.sequence_ids(0)) if part == 0)
        parts = pair.prefix, pair.middle, pair.suffix, one["input_ids"][last + 1 :]
        return cls((pair.types[1], pair.types[3]), *(np.array(part, dtype=np.int32) for part in parts))

    def special(self, segments: int) -> int:
        """How many tokens of a sequence are no text."""
        return len(self.prefix) + (len(self.end) if segments == 1 else len(self.middle) + len(self.suffix))

    def feature(self, first: np.ndarray, second: np.ndarray, example: int) -> Feature:
        """The sequence of one segment or two; `second` is empty where there is one."""
        parts = [first, self.middle, second, self.suffix] if len(second) else [first, self.end]
        ids = np.concatenate([self.prefix, *parts])
        types = np.full(len(ids), self.types[0], dtype=np.int8)
        if len(second):
            types[len(self.prefix) + len(first) + len(self.middle) :] = self.types[1]
        return Feature(ids, types, NO_LABELS, example)


class Words:
    """The token ids of lines, without special tokens.

    Where a tokenizer reads what stands between spaces by itself, as BERT's and ELECTRA's do, each word is tokenized once:
    half of the time or less, since a text has few words many times.
    """

    def __init__(self, tokenizer: Any):
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # what the last call asked for
        self._backend.no_padding()
        added = tokenizer.added_tokens_decoder.values()
        self._alone = (
            isinstance(self._backend.normalizer, BertNormalizer)
            and isinstance(self._backend.pre_tokenizer, BertPreTokenizer)
            and isinstance(self._backend.model, WordPiece)
            and not any(" " in token.content or token.lstrip or token.rstrip for token in added)
        )
        self._known: dict[str, bytes] = {}

    def __call__(self, lines: Sequence[str]) -> list[bytes]:
        """The ids of each line as the bytes of int32."""
        if not self._alone:
            return self._tokenized(lines)
        if len(self._known) > KNOWN:
            self._known.clear()
        split = [line.split(" ") for line in lines]
        new = list(set(chain.from_iterable(split)).difference(self._known))
        self._known.update(zip(new, self._tokenized(new), strict=True))
        return [b"".join(map(self._known.__getitem__, words)) for words in split]

    def _tokenized(self, texts: Sequence[str]) -> list[bytes]:
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32).tobytes() for one in encoded]
