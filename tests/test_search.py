"""Exact search in blocks, against everything at once by numpy, scikit-learn and transformers."""

import numpy as np
import pytest
import torch
from runs import TINY_ELECTRA
from transformers import AutoModel, AutoTokenizer, ElectraConfig, ElectraModel

from road_ds.common.hub import model_folder
from road_ds.distillation import search

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "pu") for b in ("sta", "ret", "von", "dil", "gom")]


def some_texts(number: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    made = (" ".join(generator.choice(WORDS, generator.integers(2, 9))) for _ in range(2 * number))
    return list(dict.fromkeys(made))[:number]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 7)
    monkeypatch.setattr(search, "PART", 5)


def brute_force(rows, texts, own, others, k):
    """The k nearest of each row by a full table, loops and sorting."""
    numbers, cosines = [], []
    for row, vector in zip(rows, own, strict=True):
        all_of_them = [(-float(np.dot(vector, other)), i) for i, other in enumerate(others) if texts[i] != row]
        numbers.append([i for _, i in sorted(all_of_them)[:k]])
        cosines.append([-value for value, _ in sorted(all_of_them)[:k]])
    return numbers, cosines


def test_tfidf_neighbours_are_those_of_a_full_table(small_blocks):
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = some_texts(100, 0)
    rows = [*some_texts(16, 1), texts[3], texts[50], texts[50]]  # some stand among the texts, one twice
    judge = TfidfVectorizer().fit(texts)
    numbers, cosines = search.nearest(rows, texts, search.tfidf(texts), k=6)
    wanted, near = brute_force(rows, texts, judge.transform(rows).toarray(), judge.transform(texts).toarray(), 6)
    assert np.allclose(cosines, near, atol=1e-6)
    for row, (found, expected) in enumerate(zip(numbers, wanted, strict=True)):
        of = dict(zip(expected, near[row], strict=True))
        assert [*found] == expected or np.allclose([of.get(i, near[row][-1]) for i in found], near[row], atol=1e-6)
    assert sum([*found] == expected for found, expected in zip(numbers, wanted, strict=True)) >= 15
    assert all(texts[i] != row for row, found in zip(rows, numbers, strict=True) for i in found)


def test_random_vectors_too_and_equals_come_in_order(small_blocks):
    generator = np.random.default_rng(0)
    vectors = {str(i): generator.normal(size=8).astype(np.float32) for i in range(60)}
    vectors |= {f"{i} again": vectors[str(i)] for i in range(0, 60, 9)}
    texts, rows = sorted(vectors), [str(i) for i in range(23)]
    told = []
    numbers, cosines = search.nearest(
        rows, iter(texts), lambda block: np.stack([vectors[text] for text in block]), 4, told.append
    )
    table = np.stack([vectors[row] for row in rows]), np.stack([vectors[text] for text in texts])
    wanted, near = brute_force(rows, texts, *table, 4)
    assert numbers.tolist() == wanted and np.allclose(cosines, near, atol=1e-6)
    assert sum(told) == len(texts)

    alike = search.nearest(["x"], map(str, range(40)), lambda block: np.ones((len(block), 1), np.float32), 5)[0]
    assert alike.tolist() == [[0, 1, 2, 3, 4]]


def test_where_there_are_too_few_the_rest_is_none():
    numbers, cosines = search.nearest(["a", "b"], ["a", "b", "c"], lambda block: np.ones((len(block), 1)), 3)
    assert numbers.tolist() == [[1, 2, -1], [0, 2, -1]] and cosines[:, 2].tolist() == [-np.inf, -np.inf]


def test_an_encoder_s_vectors_are_the_mean_of_its_states(tmp_path):
    folder = model_folder("sample:tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer))
    ElectraModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    texts = ["We spent a day in Dunvale.", "The play was lovely. " * 9, "The view", "I thought the garden was superb."]
    found = search.pooled(str(tmp_path / "encoder"), max_length=16, batch_size=3)(texts)
    model = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(0)
        assert np.allclose(vector, mean / mean.norm(), atol=1e-6)
