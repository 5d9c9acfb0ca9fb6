"""The texts nearest to rows, by exact search: only the rows' vectors and one block of texts are in memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from road_ds.common.hub import model_folder
from road_ds.data.tokenizer import read_tokenizer
from road_ds.models.pretrained import load_weights

BLOCK = 2048  # texts at once
PART = 1024  # rows at once

Vectors = Callable[[Sequence[str]], Any]  # texts -> [texts, width] of length 1, an array or a sparse matrix


def tfidf(texts: Iterable[str]) -> Vectors:
    """TF-IDF vectors whose words and document frequencies are those of the given texts, as scikit-learn defines them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer().build_analyzer()
    frequency: Counter[str] = Counter()
    number = 0
    for number, text in enumerate(texts, 1):  # noqa: B007
        frequency.update(set(words(text)))
    vocabulary = sorted(frequency)
    vectorizer = TfidfVectorizer(vocabulary=vocabulary, dtype=np.float32)
    vectorizer.idf_ = np.log((1 + number) / (1 + np.array([frequency[word] for word in vocabulary]))) + 1
    return vectorizer.transform


def pooled(name: str, max_length: int, batch_size: int) -> Vectors:
    """An encoder's last hidden states, averaged over a text's tokens and scaled to length 1; on a GPU if there is one."""
    folder = model_folder(name)
    tokenizer = read_tokenizer(folder, name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_weights(AutoModel, folder, name, spared="pooler").eval().to(device)

    def vectors(texts: Sequence[str]) -> np.ndarray:
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
        found = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            batch = tokenizer.pad([{key: encoded[key][row] for key in encoded} for row in rows], return_tensors="pt")
            with torch.no_grad():
                states = model(**batch.to(device)).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            means = (states * mask).sum(1) / mask.sum(1)
            found[rows] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return found

    return vectors


def nearest(
    rows: Sequence[str], texts: Iterable[str], vectors: Vectors, k: int, done: Callable[[int], Any] = lambda texts: None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the k texts nearest to each row, the nearest first, and their cosines, both [rows, k].

    A row's own text is no neighbour; of equally near ones the first counts. Where there are too few texts, the last cosines
    are -inf. done: is told how many more texts were searched.
    """
    parts = [(first, vectors(rows[first : first + PART])) for first in range(0, len(rows), PART)]
    own: dict[str, list[int]] = {}
    for number, text in enumerate(rows):
        own.setdefault(text, []).append(number)
    numbers = np.full((len(rows), k), -1, dtype=np.int64)
    cosines = np.full((len(rows), k), -np.inf, dtype=np.float32)
    begin = 0
    for block in blocks(texts, BLOCK):
        found = vectors(block)
        same = [(row, column) for column, text in enumerate(block) for row in own.get(text, ())]
        for first, part in parts:
            scores = part @ found.T
            scores = scores.toarray() if hasattr(scores, "toarray") else scores
            for row, column in same:
                if first <= row < first + len(scores):
                    scores[row - first, column] = -np.inf
            taken = slice(first, first + len(scores))
            merge(numbers[taken], cosines[taken], scores, begin)
        begin += len(block)
        done(len(block))
    return numbers, cosines


def merge(numbers: np.ndarray, cosines: np.ndarray, scores: np.ndarray, begin: int) -> None:
    """Takes the texts `begin`, `begin + 1`, ... with these scores, [rows, texts], into the nearest so far, in place."""
    nearer = scores > cosines[:, -1:]
    for row in np.flatnonzero(nearer.any(axis=1)):
        columns = np.flatnonzero(nearer[row])
        values = np.concatenate([cosines[row], scores[row, columns]])
        order = np.argsort(-values, kind="stable")[: cosines.shape[1]]
        numbers[row] = np.concatenate([numbers[row], begin + columns])[order]
        cosines[row] = values[order]


def blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of so many."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block
