"""A generator beside the encoder: its sizes, transformers' own losses, what is exported, and what a later run takes of it."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import ROOT, TINY_ELECTRA, error_of, pretraining, records
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.config.road import ModelSpec, models_of
from road_ds.data.batch import Feature, collate
from road_ds.data.masking import blocks_of
from road_ds.distillation.guard import Guarded
from road_ds.distillation.lesson import Lesson
from road_ds.distillation.objective import Objective
from road_ds.distillation.smoothing import LabelSmoothing
from road_ds.distillation.teachers import NoTeachers
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export, read_task
from road_ds.models.generator import generator_config, shown
from road_ds.tasks.evaluation import MemorySet, batch_logits
from road_ds.tasks.registry import task_from

SPEC = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=TINY_ELECTRA)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SPEC)


@pytest.fixture(scope="module")
def model(tokenizer):
    task = task_from({"type": "replaced_tokens", "max_length": 64, "generator": 0.5}, "task").reading(tokenizer)
    return build_model(SPEC, {"text": task}, tokenizer, dropout=0.0, seed=3)


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(model, model.state_dict(), tokenizer, folder)
    return folder / "text"


def rows(tokenizer, *lengths: int) -> MemorySet:
    generator = np.random.default_rng(1)
    features = []
    for number, length in enumerate(lengths):
        ids = [
            tokenizer.cls_token_id,
            *generator.integers(5, len(tokenizer), length - 2).tolist(),
            tokenizer.sep_token_id,
        ]
        types = [0] * (length // 2) + [1] * (length - length // 2)
        features.append(Feature(ids, types, np.array([], dtype=np.int32), number))
    return MemorySet("rows", features)


def drawn(model, source, packed=False):
    batch = collate(source, range(len(source)), 0, packed=packed)
    return model.tasks["text"].draw(batch, (0, 2, 0, 0), source.lengths)


def test_one_step_has_transformers_own_losses(model, exported, tokenizer):
    """Padded rows: the generator's loss over masked labels, the discriminator's over real tokens."""
    batch = drawn(model, rows(tokenizer, 12, 30, 21))
    outputs = model.train()(batch, "text")
    generator = ElectraForMaskedLM.from_pretrained(exported / "generator").eval()
    discriminator = ElectraForPreTraining.from_pretrained(exported).eval()
    inputs = {"attention_mask": batch.attention_mask, "token_type_ids": batch.token_type_ids}
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.masking.places] = batch.input_ids.flatten()[batch.masking.places]
    mlm = generator(input_ids=shown(batch), labels=labels, **inputs).loss
    ids = generated_ids(model, batch)
    wrong = (ids != batch.input_ids).long()
    assert 0 < wrong.sum() <= len(batch.masking.places)
    rtd = discriminator(input_ids=ids, labels=wrong, **inputs).loss
    assert outputs.terms["mlm"].item() == pytest.approx(mlm.item(), abs=1e-6)
    assert outputs.terms["rtd"].item() == pytest.approx(rtd.item(), abs=1e-6)
    assert outputs.loss.item() == pytest.approx(mlm.item() + 50 * rtd.item(), abs=1e-5)


def generated_ids(model, batch) -> torch.Tensor:
    """What the encoder read."""
    seen = []
    hook = model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    model(batch, "text")
    hook.remove()
    return seen[0]


def test_a_sample_equal_to_the_original_counts_as_original(model, tokenizer):
    """With noise that leaves only the original, nothing is replaced; with noise that leaves only one other entry, all is."""
    source = rows(tokenizer, 30, 30)
    batch = drawn(model, source)
    places = batch.masking.places
    own = batch.input_ids.flatten()[places]
    blocks, size = blocks_of(batch.masking.vocabulary)

    def towards(ids):
        noise = torch.zeros(len(ids), blocks + size)
        noise[torch.arange(len(ids)), ids // size] = noise[torch.arange(len(ids)), blocks + ids % size] = 1e6
        return replace(batch, masking=replace(batch.masking, noise=noise))

    model.eval()
    with torch.no_grad():
        same, other = towards(own), towards(torch.full_like(own, 7))
        assert model._generated(same, "text")[0].generated.replaced.sum() == 0
        found = model._generated(other, "text")[0]
    assert (found.input_ids.flatten()[places] == 7).all()
    assert torch.equal(found.generated.replaced.flatten()[places], own != 7)
    assert found.generated.replaced.sum() == (own != 7).sum(), "nothing else"


def test_no_gradient_passes_the_sample(model, tokenizer):
    """The discriminator's loss moves no weight of the generator, the generator's no layer of the encoder."""
    batch = drawn(model, rows(tokenizer, 20, 20))
    outputs = model.train()(batch, "text")
    layers = [*model.generators["text"].electra.encoder.parameters()]
    assert all(p.grad is None for p in layers)
    rtd_only = torch.autograd.grad(outputs.logits.square().sum(), layers, allow_unused=True, retain_graph=True)
    assert all(g is None for g in rtd_only)


def test_packed_rows_have_the_losses_of_padded_ones(tokenizer):
    task = task_from({"type": "replaced_tokens", "max_length": 64, "generator": 0.5}, "task").reading(tokenizer)
    model = build_model(SPEC, {"text": task}, tokenizer, dropout=0.0, seed=3)
    source = rows(tokenizer, 12, 30, 21)
    padded = model.train()(drawn(model, source), "text")
    assert model.use_packing() == ""
    packed = model(drawn(model, source, packed=True), "text")
    assert packed.loss.item() == pytest.approx(padded.loss.item(), rel=1e-6)


def test_half_precision_and_recomputed_layers_train_too(text, config_file, tmp_path):
    """bf16, layers computed again in the backward pass, and the same losses to the precision."""
    losses = []
    for more in ({}, {"precision": "bf16"}, {"activation_checkpointing": True}):
        name = "-".join(more) or "plain"
        config = pretraining(text, mixed=False, steps=2, **more) | {"zero_optimization": {"stage": 1}}
        assert train.main(["--deepspeed_config", str(config_file(config, name))]) == 0
        losses.append([line["loss"] for line in records(tmp_path / name) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_an_export_has_the_logits_of_the_trained_model(model, exported, tokenizer):
    source = rows(tokenizer, 30, 30)
    batch = drawn(model.eval(), source)
    inputs = {"attention_mask": batch.attention_mask, "token_type_ids": batch.token_type_ids}
    with torch.no_grad():
        found = ElectraForPreTraining.from_pretrained(exported)(input_ids=batch.input_ids, **inputs).logits
        own = batch_logits(model, source, [0, 1], model.tasks["text"], "text", 0, "cpu")
        encoded, _ = model.encode(batch)
        assert torch.equal(found, model._head("text", encoded, batch.attention_mask).logits)
        written = ElectraForMaskedLM.from_pretrained(exported / "generator")(input_ids=batch.input_ids, **inputs).logits
        generator = model.generators["text"]
        hidden = generator.electra(
            inputs_embeds=model.encoder.embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids),
            attention_mask=batch.attention_mask,
        ).last_hidden_state
        states = generator.generator_predictions(hidden)
        expected = torch.nn.functional.linear(
            states, generator.generator_lm_head.weight, generator.generator_lm_head.bias
        )
        assert torch.equal(written, expected)
    assert [rows.shape for rows in own] == [(4, 30)] * 2
    for folder in (exported, exported / "generator"):
        assert len(AutoTokenizer.from_pretrained(folder)) == len(tokenizer)
    assert read_task(exported).type == "replaced_tokens"


def test_published_generators():
    """Width, heads and inner width of google-research/electra's small, base and large."""
    for share, width, heads, size in ((0.25, 256, 4, 64), (0.33333, 768, 12, 256), (0.25, 1024, 16, 256)):
        config = ElectraConfig(
            hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_hidden_layers=12
        )
        found = generator_config(share, config)
        assert (found.hidden_size, found.intermediate_size) == (size, 4 * size) and found.num_hidden_layers == 12
        assert found.hidden_size // found.num_attention_heads == 64 and found.embedding_size == config.embedding_size


def test_a_labelled_data_sets_objective_leaves_pretraining_alone(model, tokenizer):
    batch = drawn(model.train(), rows(tokenizer, 20, 20))
    losses = [
        Lesson(Guarded(objective), NoTeachers(), {"rows": "text"}, 2)(model, batch, None, 1, measured=True)
        for objective in (Objective(), LabelSmoothing(objective="label_smoothing", smoothing=0.3))
    ]
    assert losses[0].total.item() == losses[1].total.item() and {*losses[0].parts()} == {"mlm", "rtd"}


@pytest.mark.parametrize(("change", "message"), [
    ({"generator": 1.5}, "wider than the encoder"),
    ({"generator": 0.53}, "does not divide into heads"),
    ({"generator": 0}, "greater than 0"),
    ({"masked": 1.0}, "less than 1"),
])  # fmt: skip
def test_generators_that_cannot_be_are_refused(change, message, text, config_file, command):
    error = error_of(command("check", config_file(pretraining(text, change))))
    assert (message in error and "generator" in error) or "masked" in error


def test_a_named_generator_must_share_the_embeddings_and_be_no_wider(model, exported, tokenizer, tmp_path):
    assert generator_config(str(exported / "generator"), model.encoder.config).hidden_size == 16
    narrow = ElectraConfig(**{**TINY_ELECTRA, "vocab_size": len(tokenizer), "hidden_size": 8, "num_attention_heads": 2})
    with pytest.raises(RoadError, match="width 16 is above the encoder's 8"):
        generator_config(str(exported / "generator"), narrow)
    other = ElectraConfig(**{**TINY_ELECTRA, "vocab_size": len(tokenizer), "embedding_size": 16})
    with pytest.raises(RoadError, match="embedding_size is 32, the encoder's 16"):
        generator_config(str(exported / "generator"), other)


@pytest.mark.parametrize("part", ["train", "dev"])
def test_text_without_a_sequence_is_refused(part, text, config_file, tmp_path, command):
    (tmp_path / "short.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n')
    config = pretraining(text)
    config["road"]["datasets"]["text"][part] = str(tmp_path / "short.jsonl")
    assert (
        f"datasets.text.{part}: " in (said := error_of(command("check", config_file(config)))) and "long enough" in said
    )


def test_other_architectures_are_refused(text, config_file, command):
    config = pretraining(text)
    sizes = {key: value for key, value in TINY_ELECTRA.items() if key != "embedding_size"}
    config["road"]["model"] |= {"architecture": "bert", "config": sizes}
    assert "ELECTRA" in error_of(command("check", config_file(config)))


def test_teachers_of_text_are_refused(text, config_file, exported, capsys):
    distill = {"objective": "kd", "teachers": {"text": [str(exported)]}}
    code = train.main(["--deepspeed_config", str(config_file(pretraining(text, distill=distill)))])
    assert (
        code == 2
        and "road.distill.teachers.text: replaced_tokens learns from the text alone" in capsys.readouterr().err
    )


def test_a_killed_run_is_resumed_with_the_same_bits_and_is_the_model_of_another(text, config_file, tmp_path, command):
    settings = {"steps": 6, "save_every": 2, "dropout": 0.1, "log_every": 1, "seed": 5}
    config = pretraining(text, mixed=False, **settings)
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    assert train.main(["--deepspeed_config", str(config_file(config, "whole"))]) == 0
    config["road"].pop("output")
    broken, script = config_file(config, "broken"), ROOT / "tests" / "broken_run.py"
    killed = run_forked(script, "backward", 4, 0, "--deepspeed_config", broken)  # inside its fourth step
    assert killed.returncode == -signal.SIGKILL and records(tmp_path / "broken")[-1]["step"] == 3, killed.stderr[-2000:]
    assert train.main(["--deepspeed_config", str(broken), "--resume"]) == 0
    for part in ("text", "text/generator"):
        ends = [load_file(tmp_path / run / "model" / part / "model.safetensors") for run in ("whole", "broken")]
        assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    lines = [[line for line in records(tmp_path / run) if "loss" in line] for run in ("whole", "broken")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    for line in lines[0]:
        assert line["loss"] == pytest.approx(line["mlm/text"] + 50 * line["rtd/text"], rel=1e-5)
    scores = [
        json.loads((tmp_path / run / "results.json").read_text())["scores"]["text"] for run in ("whole", "broken")
    ]
    assert scores[0]["scores"] == scores[1]["scores"] and scores[0]["headline"] == "replaced_f1"
    assert {"mlm_loss", "mlm_accuracy", "rtd_loss", "replaced_precision", "replaced_recall"} <= scores[0][
        "scores"
    ].keys()

    # a later run begins with its encoder, its head and its generator
    trained = load_file(tmp_path / "whole" / "model" / "text" / "model.safetensors")
    again = build_model(
        ModelSpec(name=str(tmp_path / "whole")), {"text": read_task(tmp_path / "whole" / "model" / "text")},
        load_tokenizer(ModelSpec(name=str(tmp_path / "whole"))), dropout=0.0, seed=1,
    )  # fmt: skip
    state = again.head_model("text", again.state_dict()).state_dict()
    assert all(torch.equal(state[key], value) for key, value in trained.items())
    own = again.generator_model("text", again.state_dict()).state_dict()
    expected = load_file(tmp_path / "whole" / "model" / "text" / "generator" / "model.safetensors")
    assert all(torch.equal(own[key], value) for key, value in expected.items())
    assert AutoModel.from_pretrained(tmp_path / "whole" / "model" / "text").config.hidden_size == 32

    code, out, err = command(
        "export", tmp_path / "whole" / "checkpoints" / "step-00000006", "--output", tmp_path / "out"
    )
    assert code == 0, err
    for part in ("text", "text/generator"):
        found = load_file(tmp_path / "out" / part / "model.safetensors")
        assert all(
            torch.equal(value, found[key])
            for key, value in load_file(tmp_path / "whole" / "model" / part / "model.safetensors").items()
        )
    named = load_config(config_file(config, "named"), ["road.tasks.text.generator=elsewhere"])[0]
    assert models_of(named)[-1] == "elsewhere"
    code, out, _ = command(
        "predict", tmp_path / "whole" / "model" / "text", "--text", "The mayor of the town is Tilda Berg."
    )
    assert code == 0 and "looks_replaced" in out
