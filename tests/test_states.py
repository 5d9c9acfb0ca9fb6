"""The states of an encoder are transformers' own, on padded and on packed rows, of a teacher and of a student."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_export import ARCHITECTURES, SMALL, TASKS
from test_packing import rows

from road_ds.common.errors import RoadError
from road_ds.config.road import ModelSpec
from road_ds.data.batch import collate
from road_ds.data.packing import Packing
from road_ds.distillation.layers.registry import method_from
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer, uses_token_types
from road_ds.models.export import export
from road_ds.models.predictor import Predictor
from road_ds.models.states import Shape, States, Wanted

DEBERTA = {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
KINDS = {**ARCHITECTURES, "deberta": DEBERTA, "deberta-v2 plain": SMALL}
NAMED = ["bert", "roberta", "electra", "deberta", "deberta-v2", "deberta-v2 plain"]
HEADS = {"nli": TASKS["nli"]}
EVERYTHING = Wanted((0, 1, 2), scores=(1, 2))


def model_of(kind: str):
    spec = ModelSpec(architecture=kind.split()[0], tokenizer="sample:tokenizer", config=KINDS[kind])
    tokenizer = load_tokenizer(spec)
    model = build_model(spec, HEADS, tokenizer, dropout=0.0, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, tokenizer


def batch_of(number: int = 5):
    """Rows of several lengths."""
    source = rows(TASKS["nli"])
    return collate(source, np.arange(number), 0)


@pytest.mark.parametrize("kind", NAMED)
def test_a_teachers_states_are_those_of_transformers(kind, tmp_path):
    model, tokenizer = model_of(kind)
    export(model, model.state_dict(), tokenizer, tmp_path)
    teacher, batch = Predictor.load(str(tmp_path / "nli")), batch_of()
    teacher.model.set_attn_implementation("eager")
    plain = TASKS["nli"].model.from_pretrained(tmp_path / "nli", attn_implementation="eager").eval()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if uses_token_types(plain.config, tokenizer):
        inputs["token_type_ids"] = batch.token_type_ids
    with torch.no_grad():
        outputs, found = teacher.observed(batch, EVERYTHING)
        expected = plain(**inputs, output_hidden_states=True, output_attentions=True)
    assert torch.allclose(outputs.logits, expected.logits, atol=1e-5)
    real = batch.attention_mask.bool()
    pairs = (real[:, :, None] & real[:, None])[:, None].expand(-1, 4, -1, -1)
    for layer in EVERYTHING.hidden:
        assert torch.allclose(found.hidden[layer][real], expected.hidden_states[layer][real], atol=1e-5)
    for layer in EVERYTHING.scores:
        attention = expected.attentions[layer - 1]
        assert torch.allclose(found.scores[layer].softmax(-1)[pairs], attention[pairs], atol=1e-5)
        assert found.scores[layer][pairs].std() > 0.05 and (attention[pairs].sum() - real.sum() * 4).abs() < 1e-2


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_scores_are_products_of_queries_and_keys(kind):
    """Not only up to what the softmax takes away: a constant for each row of them."""
    model, _ = model_of(kind)
    model.eval().encoder.set_attn_implementation("eager")
    kept: dict[str, torch.Tensor] = {}
    attention = model.encoder.encoder.layer[1].attention.self
    for name in ("query", "key"):
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
    batch = batch_of()
    with torch.no_grad():
        _, found = model.encode(batch, EVERYTHING)
    query, key = (kept[name].unflatten(-1, (4, 8)) for name in ("query", "key"))
    for row, length in enumerate(batch.lengths.tolist()):
        for head in range(4):
            expected = query[row, :length, head] @ key[row, :length, head].T / 8**0.5
            assert torch.allclose(found.scores[2][row, head, :length, :length], expected, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "albert", "modernbert"])
def test_packed_rows_have_the_states_of_padded_ones(kind, first):
    model, _ = model_of(kind)
    assert model.use_packing() == ""
    wanted = Wanted((0, 1, 2), first)
    for number in (1, 4):
        batch = batch_of(number)
        lengths = batch.lengths.numpy()
        with torch.no_grad():
            _, padded = model.eval().encode(batch, wanted)
            _, packed = model.encode(replace(batch, packing=Packing.of(lengths, batch.input_ids.shape[1])), wanted)
        real = torch.ones(number, dtype=torch.bool) if first else batch.attention_mask.bool()
        for layer in wanted.hidden:
            shape = (number, 32) if first else (*batch.input_ids.shape, 32)
            assert packed.hidden[layer].shape == padded.hidden[layer].shape == shape
            assert torch.allclose(packed.hidden[layer][real], padded.hidden[layer][real], atol=1e-5)
            if first:
                with torch.no_grad():
                    whole = model.encode(batch, Wanted((layer,)))[1].hidden[layer]
                assert torch.equal(padded.hidden[layer], whole[:, 0])


def test_checkpointed_activations_give_the_same_gradients():
    """States and scores are of the graph, whether a layer is computed once or twice."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, _ = model_of("bert")
        shape = Shape.of(model.encoder.config)
        torch.manual_seed(1)
        model.compare(method_from({"method": "tinybert"}).compare(shape, shape, 0))
        if checkpointing:
            model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        batch = batch_of()
        teachers = States.stacked([model.encode(batch, model.comparison.theirs)[1]])
        teachers = States(
            {k: v.detach() + 1 for k, v in teachers.hidden.items()},
            {k: v.detach() + 1 for k, v in teachers.scores.items()},
        )
        outputs = model(batch, "nli", teachers, 0)
        (outputs.layers + outputs.logits.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())
    assert gradients[0]["encoder.encoder.layer.1.attention.self.query.weight"].abs().max() > 1e-4


def test_attention_scores_are_not_packed_and_not_fused():
    model, _ = model_of("electra")
    shape = Shape.of(model.encoder.config)
    model.compare(method_from({"method": "tinybert"}).compare(shape, shape, 0))
    assert model.use_packing() == "attention scores are compared with a teacher's, which packed rows have none of"
    assert model.encoder.config._attn_implementation == "eager"


def test_an_attention_without_scores_is_named():
    model, _ = model_of("electra")
    with torch.no_grad(), pytest.raises(RoadError, match="the attention of electra has no scores to compare"):
        model.eval().encode(batch_of(), EVERYTHING)
