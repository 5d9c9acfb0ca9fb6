"""Free, grouped and fixed padding are three ways to compute one thing: losses, gradients, and nothing of a neighbour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_export import TASKS, fresh
from test_launch import NoWordToTheHost
from torch.nn import functional as F

from road_ds.data.batch import Feature
from road_ds.data.batches import Padding
from road_ds.data.packing import Packing
from road_ds.distillation.objective import supervised
from road_ds.models import attention as packing
from road_ds.models.attention import ATTENTION
from road_ds.tasks.evaluation import MemorySet

PACKED = ["electra", "bert", "roberta", "albert", "modernbert"]
LONGEST = 64


def rows(task, seed: int = 0) -> MemorySet:
    """A row of every length from 1 to the longest, in no order, labelled at random."""
    generator = np.random.default_rng(seed)
    features = []
    for number, length in enumerate(generator.permutation(np.arange(1, LONGEST + 1))):
        labels = {
            "span_qa": generator.integers(0, length, 2),
            "classification": generator.integers(0, 3, 1),
            "regression": generator.normal(size=1),
        }[task.type]
        ids = generator.integers(5, 900, length)
        features.append(Feature(ids, (np.arange(length) > length // 2).astype(np.int64), labels, number))
    return MemorySet("rows", features)


def loss_and_gradients(model, head, source, mode, micro=16):
    """The mean loss over all rows in micro-batches, and the gradient of every parameter."""
    padding = Padding(mode, pad_id=0, limits={"rows": LONGEST})
    model.zero_grad()
    total = 0.0
    for first in range(0, len(source), micro):
        batch = padding.collate(source, np.arange(first, first + micro)).to(next(model.parameters()).device)
        outputs = model(batch, head)
        loss = supervised(outputs, batch.labels).total * micro / len(source)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def without_dropout(architecture):
    model, _ = fresh(architecture)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT has a number there
            module.attention_dropout = 0.0
    return model.train()


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("architecture", PACKED)
def test_the_three_paddings_give_one_loss_and_gradient(architecture, head):
    model, source = without_dropout(architecture), rows(TASKS[head])
    expected, gradients = loss_and_gradients(model, head, source, "fixed")  # through transformers' own attention
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.use_packing() == "" and model.training
    assert model.encoder.config._attn_implementation == ATTENTION
    for mode in ("free", "grouped", "fixed"):
        found, others = loss_and_gradients(model, head, source, mode)
        assert found == pytest.approx(expected, abs=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-5), f"{mode}: {name}"


@pytest.mark.parametrize("mode", ["free", "grouped"])
def test_a_micro_batch_asks_the_device_nothing(mode):
    """Forward and backward; transformers' own mask would look for padding."""
    model, source = fresh("electra")[0].train(), rows(TASKS["nli"])
    batch = Padding(mode, 0, {"rows": LONGEST}).collate(source, np.arange(4))
    if mode == "grouped":
        with pytest.raises(AssertionError, match="wait for the device"), NoWordToTheHost():
            model(batch, "nli")
    assert model.use_packing() == ""
    with NoWordToTheHost() as seen:
        model(batch, "nli").logits.sum().backward()
    assert "nan_to_num" in seen.names


def test_idle_heads_are_touched_at_once(monkeypatch):
    """However many values they have."""
    touched, plain = [], torch.Tensor.nan_to_num
    monkeypatch.setattr(torch.Tensor, "nan_to_num", lambda self, *to: touched.append(len(self)) or plain(self, *to))
    model, source = fresh("electra")[0].train(), rows(TASKS["nli"])
    batch = Padding("grouped", 0, {"rows": LONGEST}).collate(source, np.arange(4))
    outputs = model(batch, "nli")
    assert len(TASKS) > 2 and len(touched) == 1 and touched[0] > 1
    outputs.logits.sum().backward()
    heads = {name: parameter.grad for name, parameter in model.heads.named_parameters()}
    assert all(grad is not None for grad in heads.values())
    idle = [grad for name, grad in heads.items() if not name.startswith("nli.")]
    assert idle and not any(grad.any() for grad in idle)


def test_an_attention_of_its_own_cannot_run_packed():
    model = without_dropout("deberta-v2")
    before = model.encoder.config._attn_implementation
    assert model.use_packing() == "the attention of deberta-v2 is its own and knows no rows inside a sequence"
    assert model.encoder.config._attn_implementation == before and model.training


def test_what_packed_rows_change_is_found_out_by_trying(monkeypatch):
    """An encoder that does without the positions it is given: it stays as it was."""
    model = without_dropout("electra")
    forward = type(model.encoder).forward
    monkeypatch.setattr(type(model.encoder), "forward", lambda self, *a, position_ids=None, **k: forward(self, *a, **k))
    assert model.use_packing() == "electra computes something else when rows are packed"
    assert model.encoder.config._attn_implementation == "sdpa" and model.training


def flash(
    query, key, value, bounds, other, longest, _, dropout, causal, debug, *, scale, window_size_left, window_size_right
):
    """What the GPU's kernel computes, by its signature: a row after the other."""
    assert torch.equal(bounds, other) and bounds.dtype == torch.int32 and not (dropout or causal or debug)
    assert query.shape[-1] % 8 == 0, "the kernel refuses other heads"
    assert longest == bounds.diff().max() and window_size_left == window_size_right
    found = []
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[first:end], key[first:end]) * scale
        if window_size_left is not None:
            at = torch.arange(end - first)
            scores = scores.masked_fill((at[:, None] - at).abs() > window_size_left, float("-inf"))
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[first:end]))
    return torch.cat(found), None, None, None, None


@pytest.mark.parametrize("masked", [False, True])
def test_dropout_falls_on_the_same_scores_as_torchs_own(masked, monkeypatch):
    """With torch's random numbers."""
    monkeypatch.setattr(packing, "drop", F.dropout)
    parts = [torch.randn(2, 4, 30, 8) for _ in range(3)]
    mask = (torch.arange(30) < torch.tensor([[30], [17]]))[:, None, None].expand(2, 1, 30, 30) if masked else None
    found = []
    for attend in (
        packing._attend,
        lambda *parts, reach, dropout, scaling: F.scaled_dot_product_attention(
            *parts[:3], attn_mask=parts[3], dropout_p=dropout, scale=scaling
        ),
    ):
        torch.manual_seed(0)
        found.append(attend(*parts, mask, reach=None, dropout=0.4, scaling=0.3))
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.allclose(found[0], packing._attend(*parts, mask, reach=None, dropout=0.0, scaling=0.3), atol=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_half_precision_is_as_exact_as_torchs_own(masked, monkeypatch):
    monkeypatch.setattr(packing, "drop", lambda weights, p: weights)
    torch.manual_seed(0)
    exact = [torch.randn(2, 4, 200, 64, dtype=torch.float64) for _ in range(3)]
    mask = (torch.arange(200) < torch.tensor([[200], [150]]))[:, None, None].expand(2, 1, 200, 200) if masked else None
    half = [part.bfloat16() for part in exact]
    expected = F.scaled_dot_product_attention(*(part.double() for part in half), attn_mask=mask)
    torchs = F.scaled_dot_product_attention(*half, attn_mask=mask)
    found = packing._attend(*half, mask, reach=None, dropout=0.1, scaling=None)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 1.5 * (torchs - expected).abs().mean()


def test_a_token_that_may_look_at_none_stays_finite():
    """ModernBERT's padding, farther from all real tokens than its window."""
    parts = [torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    mask[..., -1, :] = False
    found = packing._attend(*parts, mask, reach=None, dropout=0.1, scaling=None)
    found[:, :, :-1].sum().backward()
    assert found.isfinite().all() and all(part.grad.isfinite().all() for part in parts)


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
def test_the_gpus_kernel_is_given_what_it_needs(architecture, monkeypatch):
    """With a stand-in for the kernel: no GPU is needed."""
    model, source = without_dropout(architecture), rows(TASKS["qa"])
    model.use_packing()
    expected, gradients = loss_and_gradients(model, "qa", source, "free")
    monkeypatch.setattr(packing, "_by_runs", packing._by_kernel)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    found, others = loss_and_gradients(model, "qa", source, "free")
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(torch.allclose(others[name], value, rtol=1e-4, atol=1e-5) for name, value in gradients.items())


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_heads_of_any_size_fit_the_kernel(scaling, monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    parts = [torch.randn(40, 3, 26) for _ in range(3)]  # 312 / 12, a small BERT's
    packed = Packing.of(np.array([10, 30]), 32)
    found, expected = (
        inside(parts, packed, reach=None, dropout=0.0, scaling=scaling)
        for inside in (packing._by_kernel, packing._by_runs)
    )
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def test_torch_knows_the_kernel_and_its_gradient_by_this_call():
    """Shapes only: tensors without memory go through the operator and its derivative."""
    parts = [torch.empty(40, 4, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    packed = Packing.of(np.array([10, 30]), 32).map(lambda tensor: tensor.to("meta"))
    found = packing._by_kernel(parts, packed, reach=8, dropout=0.1, scaling=0.125)
    found.sum().backward()
    assert found.shape == (40, 4, 64) and all(part.grad.shape == part.shape for part in parts)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", PACKED)
def test_packed_rows_on_a_gpu_compute_what_padded_ones_do(architecture):
    """In bf16, against the same model in float32 on padded rows."""
    model, source = without_dropout(architecture), rows(TASKS["qa"])
    expected, gradients = loss_and_gradients(model, "qa", source, "fixed")
    assert model.use_packing() == ""
    found, others = loss_and_gradients(model.cuda().bfloat16(), "qa", source, "free")
    assert found == pytest.approx(expected, rel=0.02)
    for name, gradient in gradients.items():
        assert (others[name].float().cpu() - gradient).norm() <= 0.1 * gradient.norm() + 1e-3, name


def test_a_row_sees_nothing_of_its_neighbours():
    """Not even through the order of rows: a changed token changes the logits of its own row only."""
    model, source = without_dropout("modernbert").eval(), rows(TASKS["nli"])
    model.use_packing()
    padding = Padding("free", 0, {"rows": LONGEST})
    batch = padding.collate(source, np.arange(8))
    changed = batch.input_ids.clone()
    changed[3, 0] = 7 if changed[3, 0] != 7 else 8
    with torch.no_grad():
        before, after = (model(replace(batch, input_ids=ids), "nli").logits for ids in (batch.input_ids, changed))
    differs = (before != after).any(dim=1)
    assert differs[3] and differs.sum() == 1


def test_a_packing_knows_where_the_rows_lie():
    packed = Packing.of(np.array([2, 2, 3]), width=4)
    assert packed.index.tolist() == [0, 1, 4, 5, 8, 9, 10]
    assert packed.positions.tolist() == [[0, 1, 0, 1, 0, 1, 2]]
    assert packed.bounds.tolist() == [0, 2, 4, 7] and packed.bounds.dtype == torch.int32
    assert packed.runs == ((2, 2), (1, 3)) and packed.sizes == [4, 3] and packed.longest == 3
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 7, 0]])
    assert packed.pack(ids).tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert torch.equal(packed.unpack(packed.pack(ids)[..., None].float())[..., 0], ids.float())


def test_long_rows_of_one_length_are_attended_to_in_turns():
    assert Packing.of(np.array([384] * 3), 384).runs == ((1, 384), (1, 384), (1, 384))
    assert Packing.of(np.array([8] * 30), 8).runs == ((30, 8),)
    assert sum(rows for rows, _ in Packing.of(np.full(50, 100), 104).runs) == 50


def test_a_batch_and_what_was_made_of_it_lie_one_behind_the_other():
    source, padding = rows(TASKS["qa"]), Padding("free", pad_id=0, limits={"rows": LONGEST})
    first = padding.collate(source, np.array([4, 2, 9]))
    other = replace(first, input_ids=first.input_ids + 1)
    both = first.joined(other)
    lengths = np.array(first.tokens * 2)
    expected = Packing.of(lengths, first.input_ids.shape[1])
    assert both.packing is not None and both.original is first and both.tokens == tuple(lengths)
    for name in ("index", "positions", "bounds"):
        found, wanted = getattr(both.packing, name), getattr(expected, name)
        assert torch.equal(found, wanted) and found.dtype == wanted.dtype, name
    assert (both.packing.shape, both.packing.longest) == (expected.shape, expected.longest)
    assert [length for count, length in both.packing.runs for _ in range(count)] == lengths.tolist()
    assert torch.equal(both.input_ids, torch.cat([first.input_ids, first.input_ids + 1]))
    assert both.features.tolist() == [4, 2, 9] * 2 and len(both.labels) == 2 * len(first.labels)
