"""Which tokens are masked, and that what is drawn in their place follows the generator's distribution."""

import numpy as np
import pytest
import torch
from runs import ROOT

from road_ds.common.errors import RoadError
from road_ds.data.batch import Feature, collate
from road_ds.data.masking import BEGINS, CONTINUES, SPECIAL, blocks_of, choose, draw, gumbel, masked_count
from road_ds.data.tokenizer import read_tokenizer
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import task_from

LENGTHS = [3, 5, 9, 40, 64, 128, 128, 100]


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(ROOT / "road_ds" / "data" / "sample_data" / "tokenizer", "sample")


def task(tokenizer, **settings):
    return task_from({"type": "replaced_tokens", **settings}, "task").reading(tokenizer)


def rows(tokenizer, lengths=LENGTHS) -> MemorySet:
    """Rows of random entries between [CLS] and [SEP], the mask's own and [UNK] among them."""
    generator = np.random.default_rng(0)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    texts = [generator.integers(1, len(tokenizer), length - 2).tolist() for length in lengths]
    labels = np.array([], dtype=np.int32)
    features = [Feature([cls, *ids, sep], [0] * (len(ids) + 2), labels, i) for i, ids in enumerate(texts)]
    return MemorySet("rows", features)


def drawn(task, source, numbers, key=(0, 2, 0, 7), width=None):
    batch = collate(source, numbers, 0, width=width)
    return task.draw(batch, key, source.lengths[list(numbers)])


def test_shares_of_masked_kept_and_replaced_over_many_tokens(tokenizer):
    """15 % of all tokens, never a special or padding one; 85 % of them become the mask. A million tokens."""
    pretraining, source = task(tokenizer), rows(tokenizer, [128] * 64)
    special = {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}
    masked = hidden = 0
    seen = np.zeros(128)
    for step in range(128):
        batch = drawn(pretraining, source, range(64), (0, 2, 0, step), width=lambda longest: 136)
        masking, ids = batch.masking, batch.input_ids.flatten()
        assert len(set(masking.places.tolist())) == len(masking.places) == 64 * 19
        assert not special & {*ids[masking.places].tolist()}
        assert (masking.places % 136 < 128).all(), "padding"
        same = masking.shown == ids[masking.places]
        assert (masking.shown[~same] == tokenizer.mask_token_id).all()
        masked, hidden = masked + len(same), hidden + int((~same).sum())
        seen += np.bincount(masking.places.numpy() % 136, minlength=136)[:128]
    tokens = 128 * 64 * 128
    assert tokens > 10**5 and masked / tokens == pytest.approx(19 / 128)
    assert hidden / masked == pytest.approx(0.85, abs=0.003)
    assert seen[0] == seen[127] == 0 and seen[1:127].std() / seen[1:127].mean() < 0.1, "each place as often"


def test_twenty_five_percent_by_setting(tokenizer):
    masking = drawn(task(tokenizer, masked=0.25), rows(tokenizer, [128] * 8), range(8)).masking
    assert len(masking.places) == 8 * 32


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_row_is_masked_by_seed_step_and_number_alone(tokenizer, whole_words):
    """Whatever stands beside it and however it is padded, and otherwise in another step."""
    pretraining, source = task(tokenizer, whole_words=whole_words), rows(tokenizer)

    def of(batch, i):
        inside = batch.masking.places // batch.input_ids.shape[1] == i
        return [
            batch.masking.places[inside] % batch.input_ids.shape[1],
            batch.masking.shown[inside],
            batch.masking.noise[inside],
        ]

    together = drawn(pretraining, source, range(8))
    for number in range(8):
        alone = drawn(pretraining, source, [number])
        assert all(torch.equal(a, b) for a, b in zip(of(together, number), of(alone, 0), strict=True))
    for key in ((1, 2, 0, 7), (0, 2, 1, 7), (0, 2, 0, 8)):
        assert not torch.equal(drawn(pretraining, source, range(8), key).masking.noise, together.masking.noise)


def test_the_mean_over_micro_batches_is_the_mean_over_the_pass(tokenizer):
    """Of masked tokens and of all tokens, though micro-batches differ in how many they have."""
    pretraining, source = task(tokenizer), rows(tokenizer)
    for micro in (1, 2, 4, 8):
        parts = [
            pretraining.draw(collate(source, range(at, at + micro), 0), (0,), source.lengths)
            for at in range(0, 8, micro)
        ]
        assert len({batch.masking.weight for batch in parts}) == 1, "every masked token counts the same"
        assert len({batch.masking.token_weight for batch in parts}) == 1
        masked = sum(len(batch.masking.places) * batch.masking.weight for batch in parts) / len(parts)
        tokens = sum(int(batch.lengths.sum()) * batch.masking.token_weight for batch in parts) / len(parts)
        assert masked == pytest.approx(1) and tokens == pytest.approx(1)


def test_short_rows_and_rows_without_text():
    generator = np.random.default_rng(0)
    assert masked_count(np.array([1, 3, 10, 512]), 0.15).tolist() == [1, 1, 2, 77]
    assert choose(np.array([SPECIAL, BEGINS, SPECIAL]), 1, False, generator).tolist() == [1]
    for whole_words in (False, True):
        assert choose(np.array([SPECIAL, SPECIAL]), 1, whole_words, generator).tolist() == []


def test_whole_words_are_masked_whole():
    kinds = np.array(
        [SPECIAL, BEGINS, CONTINUES, CONTINUES, BEGINS, BEGINS, CONTINUES, SPECIAL, CONTINUES, BEGINS, SPECIAL]
    )
    words = [{1, 2, 3}, {4}, {5, 6}, {8}, {9}]  # behind a special token a word begins, whatever its piece
    full = 0
    for seed in range(200):
        found = {*choose(kinds, 4, True, np.random.default_rng(seed)).tolist()}
        assert all(word <= found or not word & found for word in words)
        full += len(found) == 4
    assert full > 150, "filled up with shorter words where there are any"
    assert {*choose(np.array([SPECIAL, BEGINS, CONTINUES]), 1, True, np.random.default_rng(0)).tolist()} == {1, 2}


def test_whole_words_need_marked_pieces(tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "a": 2}, unk_token="[UNK]"))
    other = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", mask_token="[MASK]")
    assert task(other).draw is not None
    with pytest.raises(RoadError, match="WordPiece"):
        task(other, whole_words=True)


@pytest.mark.parametrize("vocabulary", [60, 64, 70])
def test_samples_follow_the_softmax(vocabulary):
    """Of 70 classes the first so many may be drawn; 400,000 samples against the shares, by chi-squared."""
    logits = torch.randn(70, generator=torch.Generator().manual_seed(1)) * 2
    count = 400_000
    noise = torch.from_numpy(gumbel((count, sum(blocks_of(vocabulary))), np.random.default_rng(2)))
    found = np.bincount(draw(logits.expand(count, 70), noise, vocabulary).numpy(), minlength=70)
    assert found[vocabulary:].sum() == 0
    expected = count * logits[:vocabulary].double().softmax(0).numpy()
    chi = float(((found[:vocabulary] - expected) ** 2 / expected).sum())
    assert chi < vocabulary + 5 * (2 * vocabulary) ** 0.5, chi


def test_noise_is_finite_and_gumbel():
    noise = gumbel((1000, 1000), np.random.default_rng(0))
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.01) and noise.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)


def test_rounding_of_logits_hardly_changes_a_sample():
    """What another micro-batch size does to logits may change a sample once in a hundred thousand or so, no oftener."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 1066, generator=generator)
    noise = torch.from_numpy(gumbel((20_000, sum(blocks_of(1066))), np.random.default_rng(0)))
    moved = logits + 1e-6 * torch.randn(20_000, 1066, generator=generator)
    assert (draw(logits, noise, 1066) != draw(moved, noise, 1066)).sum() <= 2
