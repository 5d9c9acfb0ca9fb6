"""Text that a generator writes for student and teachers to disagree on (MATE-KD), against loops that know nothing of the parts."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import TINY_ELECTRA, records, tiny_config
from safetensors.torch import load_file
from test_freelb import stage
from test_objectives import batch_of as rows
from test_objectives import ce, classes, distill, kl, rows_of, spans
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import train
from road_ds.common.ranks import Ranks
from road_ds.config.file import load_config
from road_ds.config.road import ModelSpec
from road_ds.data.batch import Batch
from road_ds.data.batches import Padding
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.adversarial import Adversarial, Gaps, Vocabulary
from road_ds.distillation.disagreement import disagreement
from road_ds.distillation.objective import Teaching
from road_ds.distillation.teachers import OnlineTeachers
from road_ds.engine.generator import Generator
from road_ds.models.build import build_model
from road_ds.models.configuration import base_config, load_tokenizer
from road_ds.models.export import export
from road_ds.models.predictor import Predictor
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.registry import heads

CPU = torch.device("cpu")


def generator_of(*key) -> torch.Generator:
    """The generator that a key names, by the rule that a run must follow."""
    name = "/".join(map(str, key))
    return torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))


# The draws and the choice.

VOCABULARY = Vocabulary(mask=4, special=torch.tensor([True] * 5 + [False] * 15))


def batch_of(rows=((7, 8, 0, 9, 3), (10, 11, 12), (13, 3)), numbers=(5, 6, 7), width: int = 8) -> Batch:
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    lengths = tuple(map(len, rows))
    return Batch(
        "d", np.array(numbers), ids, mask, ids * 0, torch.tensor(lengths), torch.zeros(len(rows)), tokens=lengths
    )


def test_gaps_and_noise_depend_on_key_and_row_alone():
    gaps = Gaps.drawn(batch_of(), VOCABULARY, 0.6, "text", 3, 11)
    at, noise = [], []
    for i, (row, length) in enumerate(zip((5, 6, 7), (5, 3, 2), strict=True)):
        chosen = torch.rand(length, generator=generator_of("mask", "text", 3, 11, "d", row)) < 0.6
        places = [i * 8 + place for place in range(length) if chosen[place]]
        draws = torch.empty(len(places), 20).exponential_(generator=generator_of("noise", "text", 3, 11, "d", row))
        at, noise = at + places, [*noise, -draws.log()]
    assert gaps.at.tolist() == at and torch.equal(gaps.noise, torch.cat(noise)) and len(at) > 3
    alone = Gaps.drawn(batch_of(((13, 3),), (7,), width=16), VOCABULARY, 0.6, "text", 3, 11)
    last = [place % 8 for place in at if place >= 16]
    assert alone.at.tolist() == last and torch.equal(alone.noise, gaps.noise[len(at) - len(last) :])
    other = Gaps.drawn(batch_of(), VOCABULARY, 0.6, "text", 3, 12)
    assert other.at.tolist() != at or not torch.equal(other.noise, gaps.noise)


def test_the_share_that_is_masked():
    row = tuple([7] * 2000)
    gaps = Gaps.drawn(batch_of((row,), (0,), width=2000), VOCABULARY, 0.3, "text", 0, 0)
    assert len(gaps.at) / 2000 == pytest.approx(0.3, abs=0.03)
    assert float(gaps.noise.mean()) == pytest.approx(0.5772, abs=0.03), "Gumbel's mean"


def test_special_tokens_are_neither_masked_nor_written():
    batch = batch_of()
    gaps = Gaps.drawn(batch, VOCABULARY, 1.0, "text", 0, 0)
    masked = gaps.filled(VOCABULARY.mask).input_ids
    assert masked[0].tolist() == [4, 4, 0, 4, 3, 0, 0, 0] and masked[2].tolist() == [4, 3, 0, 0, 0, 0, 0, 0]
    logits = torch.zeros(len(gaps.at), 24)
    logits[:, :5] = 100  # special tokens
    logits[:, 20:] = 100  # rows of the matrix without an entry
    ids, shares = gaps.chosen(logits, 1.0)
    assert ((ids >= 5) & (ids < 20)).all() and not shares[:, :5].any() and shares.shape == (len(ids), 20)
    written = gaps.filled(ids).input_ids
    assert written[0, 2] == 0 and written[0, 4] == 3 and written[2, 1] == 3, "what stood there stays"
    assert (written[batch.attention_mask == 0] == 0).all()


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_choice_is_gumbel_softmax(tau):
    gaps = Gaps.drawn(batch_of(), VOCABULARY, 1.0, "text", 0, 0)
    logits = torch.randn(len(gaps.at), 20, generator=torch.Generator().manual_seed(0))
    ids, shares = gaps.chosen(logits, tau)
    for row in range(len(ids)):
        scores = [float(logits[row, entry] + gaps.noise[row, entry]) for entry in range(5, 20)]
        assert int(ids[row]) == 5 + int(np.argmax(scores))
        weights = np.exp(np.array(scores) / tau)
        assert shares[row, 5:].tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=1e-6)


# The losses.


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize("kind", ["kl", "cross_entropy"])
def test_the_disagreement_and_the_gradients_of_both_sides(make, kind):
    outputs, teaching, labels = make()
    logits = teaching.logits.requires_grad_()
    found = disagreement(outputs, logits, kind, continuous=False)
    gradients = torch.autograd.grad(found, (outputs.logits, logits))
    rows = []
    for own, theirs, _ in rows_of(outputs, Teaching(logits), labels):
        shares = theirs.mean(0).softmax(0)
        rows.append(ce(shares, own) + ((shares * shares.log()).sum() if kind == "kl" else 0))
    expected = torch.stack(rows).mean()
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (outputs.logits, logits)), strict=True):
        assert torch.allclose(gradient, wanted.float(), atol=2e-6) and gradient.abs().max() > 1e-4


def test_the_disagreement_of_a_regression_is_the_squared_error():
    own, theirs = torch.tensor([[1.0], [2.0]]), torch.tensor([[[0.0], [0.0]], [[1.0], [4.0]]])
    assert disagreement(Outputs(own), theirs, "kl", continuous=True).item() == pytest.approx((0.25 + 0.0) / 2)


def soft_by_hand(name: str, own, theirs, progress: float):
    """A row's loss against the teachers alone, of each objective."""
    target = theirs.mean(0)
    if name in ("kd", "weighted_kd"):
        return 9 * kl(target, own, 3)
    if name == "teacher_annealing":
        return kl(target, own, 1)
    phi = {0.0: 0.25, 0.6: 0.75}[progress]
    return (own - phi * target).square().mean()


SETTINGS = {
    "kd": {"temperature": 3, "weight": 0.5}, "weighted_kd": {"temperature": 3, "weight": 0.5},
    "teacher_annealing": {}, "annealing_kd": {"max_temperature": 4},
}  # fmt: skip


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_generated_rows_are_learned_from_the_teachers_alone(make, name, progress):
    settings = SETTINGS[name] | {"source": "online", "adversarial": {"weight": 0.4}}
    objective = distill(objective=name, teachers={"places": ["a", "b", "c"]}, **settings)
    outputs, teaching, labels = make(seed=1)
    batch = rows(labels)
    *before, gold = make(seed=2)
    written = objective(*before, rows(gold), progress)
    found = objective.with_generated(written, outputs, teaching.logits, batch, progress)
    (gradient,) = torch.autograd.grad(found.total, outputs.logits)
    by_row = [soft_by_hand(name, own, theirs, progress) for own, theirs, _ in rows_of(outputs, teaching, labels)]
    expected = torch.stack(by_row).mean()
    (wanted,) = torch.autograd.grad(0.4 * expected, outputs.logits)
    assert found.generated.item() == pytest.approx(expected.item(), abs=4e-6)
    assert found.total.item() == pytest.approx(0.6 * written.total.item() + 0.4 * expected.item(), abs=4e-6)
    assert torch.allclose(gradient, wanted.float(), atol=2e-6) and gradient.abs().max() > 1e-4


@pytest.mark.parametrize(("name", "phi"), [("kd", 1.0), ("annealing_kd", 0.75)])
def test_generated_rows_of_a_regression(name, phi):
    settings = SETTINGS[name] | {"source": "online", "adversarial": {"weight": 0.4}}
    objective = distill(objective=name, teachers={"places": ["a", "b"]}, **settings)
    own, theirs = Outputs(torch.tensor([[1.0], [2.0]])), torch.tensor([[[0.0], [0.0]], [[1.0], [3.0]]])
    batch = rows(torch.tensor([9.0, 9.0]))  # gold values, which say nothing of generated text
    loss = objective(own, Teaching(theirs), batch, 0.6)
    expected = ((1 - phi * 0.5) ** 2 + (2 - phi * 1.5) ** 2) / 2
    assert objective.with_generated(loss, own, theirs, batch, 0.6).generated.item() == pytest.approx(expected)


# Whole runs.

TEMPERATURE, WEIGHT, RATE, CLIP, MASK, TAU = 2.0, 0.5, 2.0, 0.018, 0.4, 0.7
STEPS, STUDENT_STEPS, GENERATOR_STEPS = 4, 2, 2
KINDS = {
    "qa": AutoModelForQuestionAnswering,
    "inference": AutoModelForSequenceClassification,
    "paraphrase": AutoModelForSequenceClassification,
}


def run_config(folder: Path, **road) -> dict:
    """Three data sets, two of them with a teacher, and a generator."""
    adversarial = {
        "generator": str(folder / "generator"), "mask": MASK, "tau": TAU, "generator_steps": GENERATOR_STEPS,
        "student_steps": STUDENT_STEPS, "learning_rate": RATE, "clip": CLIP, "weight": 0.25,
    }  # fmt: skip
    distill = {
        "objective": "kd", "source": "online", "temperature": TEMPERATURE, "weight": WEIGHT,
        "teachers": {name: [str(folder / "teacher" / head)] for name, head in (("inference", "inference"), ("places", "qa"))},
        "adversarial": adversarial,
    }  # fmt: skip
    use = ["places", "inference", "paraphrase"]
    return tiny_config(**{"use": use, "steps": STEPS, "distill": distill} | road)


def save_generator(folder: Path, config) -> None:
    """A masked language model with fresh weights and the student's tokenizer."""
    tokenizer = load_tokenizer(config.model)
    spec = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config={**TINY_ELECTRA, "hidden_size": 16})
    torch.manual_seed(5)
    AutoModelForMaskedLM.from_config(base_config(spec, tokenizer, 0.0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cache):
    """A folder with teacher and generator; the weights of student and generator, and losses, of a plain loop: row by row, the
    graph of the generator whole, through the embeddings of its one-hot rows."""
    folder = tmp_path_factory.mktemp("plain")
    path = folder / "plain.json"
    path.write_text(json.dumps(run_config(folder, cache=str(cache), output=str(folder / "run"))))
    config, ds = load_config(path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    for name, seed in (("teacher", 9), ("initial", config.seed)):
        model = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=seed)
        export(model, model.state_dict(), tokenizer, folder / name)
    save_generator(folder / "generator", config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    lengths = {name: source.lengths for name, source in rows.items()}
    passes, steps = plan(config, ds["train_batch_size"], lengths)
    taught = {name: lengths[name] for name in ("places", "inference")}
    apart, _ = plan(config.model_copy(update={"seed": config.seed + 2**32}), ds["train_batch_size"], taught)
    students = {head: kind.from_pretrained(folder / "initial" / head).train() for head, kind in KINDS.items()}
    for model in students.values():
        model.electra = students["qa"].electra
    asked = {head: KINDS[head].from_pretrained(folder / "teacher" / head).eval() for head in ("qa", "inference")}
    writer = AutoModelForMaskedLM.from_pretrained(folder / "generator").eval()  # no dropout: as in training
    special, entries = set(tokenizer.all_special_ids), len(tokenizer)
    forbidden = torch.tensor([-torch.inf if entry in special else 0.0 for entry in range(entries)])

    def logits_of(model, rows_of_entries, types):
        embeddings = rows_of_entries @ model.electra.embeddings.word_embeddings.weight
        output = model(inputs_embeds=embeddings[None], token_type_ids=types)
        return (
            torch.stack([output.start_logits[0], output.end_logits[0]])
            if hasattr(output, "start_logits")
            else output.logits
        )

    def written(feature, *key) -> torch.Tensor:
        """[tokens, entries]: one-hot rows, with the generator's gradient straight through."""
        ids, types = torch.tensor(feature.input_ids.tolist()), torch.tensor([feature.token_type_ids.tolist()])
        drawn = torch.rand(len(ids), generator=generator_of("mask", *key)) < MASK
        places = [place for place in range(len(ids)) if drawn[place]]
        noise = -torch.empty(len(places), entries).exponential_(generator=generator_of("noise", *key)).log()
        open_ = [place for place in places if int(ids[place]) not in special]
        masked = ids.clone()
        masked[open_] = tokenizer.mask_token_id
        logits = writer(input_ids=masked[None], token_type_ids=types).logits[0]
        found = F.one_hot(ids, entries).float()
        for place in open_:
            scores = logits[place] + noise[places.index(place)] + forbidden
            soft = (scores / TAU).softmax(0)
            found = found.index_put(
                (torch.tensor([place]),), (F.one_hot(scores.argmax(), entries) + soft - soft.detach())[None]
            )
        return found

    def soft(own, theirs, temperature):
        return F.kl_div((own / temperature).log_softmax(1), (theirs / temperature).softmax(1), reduction="batchmean")

    def loss_of(name: str, row: int, step: int) -> torch.Tensor:
        feature, head = rows[name][row], config.head_of(name)
        types = torch.tensor([feature.token_type_ids.tolist()])
        as_it_is = F.one_hot(torch.tensor(feature.input_ids.tolist()), entries).float()
        labels = torch.tensor([int(label) for label in feature.labels])
        own = logits_of(students[head], as_it_is, types)
        hard = F.cross_entropy(own, labels)
        if name == "paraphrase":
            return hard
        with torch.no_grad():
            made = written(feature, "text", config.seed, step, name, row)
            theirs, of_made = (logits_of(asked[head], text, types) for text in (as_it_is, made))
        of_both = [soft(own, theirs, TEMPERATURE), soft(logits_of(students[head], made, types), of_made, TEMPERATURE)]
        base = (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * of_both[0]
        return 0.75 * base + 0.25 * TEMPERATURE**2 * of_both[1]

    def disagreement_of(name: str, row: int, number: int) -> torch.Tensor:
        feature, head = rows[name][row], config.head_of(name)
        types = torch.tensor([feature.token_type_ids.tolist()])
        made = written(feature, "generator", config.seed, number, name, row)
        return soft(logits_of(students[head], made, types), logits_of(asked[head], made, types), 1.0)

    def update(parameters, total, rate, clip):
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        norm = float(torch.stack([g.norm() for g in gradients]).norm())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient * min(1.0, clip / (norm + 1e-6))
        return norm

    own = list({id(p): p for model in students.values() for p in model.parameters()}.values())
    losses, met, norms = [], {}, []
    for step in range(steps):
        if step % STUDENT_STEPS == 0:
            values = []
            for number in range(step // STUDENT_STEPS * GENERATOR_STEPS, (step // STUDENT_STEPS + 1) * GENERATOR_STEPS):
                drawn = apart.draw(number)
                total = sum(
                    torch.stack([disagreement_of(t.dataset, r, number) for r in t.rows]).mean() / 3 for t in drawn
                )
                norms.append(update(list(writer.parameters()), -total, RATE, CLIP))
                values.append(total.item())
            met[step + 1] = float(np.mean(values))
        drawn = passes.draw(step)
        total = sum(torch.stack([loss_of(t.dataset, row, step) for row in t.rows]).mean() / 3 for t in drawn)
        update(own, total, 0.1, 1.0)
        losses.append(total.item())
    assert {t.dataset for step in range(steps) for t in passes.draw(step)} == {"places", "inference", "paraphrase"}
    assert min(norms) < CLIP < max(norms), norms
    weights = {head: {k: v.detach() for k, v in m.state_dict().items()} for head, m in students.items()}
    return folder, weights, {k: v.detach() for k, v in writer.state_dict().items()}, losses, met


def compare(run: Path, plain) -> None:
    _, weights, writer, losses, met = plain
    lines = [line for line in records(run) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert {line["step"]: line["disagreement"] for line in lines if "disagreement" in line} == pytest.approx(
        met, abs=1e-5
    )
    for head, expected in weights.items():
        found = load_file(run / "model" / head / "model.safetensors")
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < 1e-6, f"{head} {name}: off by {error:.2g}"
    files = list((run / "checkpoints" / "step-00000004" / "generator").glob("mp_rank_00_model_states.pt"))
    state = torch.load(files[0], weights_only=False)["module"] if files else {}
    for name, value in state.items():
        theirs = writer[
            name.replace("encoder.", "electra.", 1) if name.startswith("encoder.") else name.removeprefix("head.")
        ]
        error = float((value - theirs).abs().max())
        assert error < 1e-6, f"generator {name}: off by {error:.2g}"


def test_a_run_of_padded_rows_equals_a_plain_loop(plain, config_file, tmp_path):
    config = run_config(plain[0], padding="fixed", save_every=STEPS, log_every=1)
    config |= {"zero_optimization": stage(1), "train_micro_batch_size_per_gpu": 8}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    compare(tmp_path / "run", plain)


@pytest.mark.parametrize("zero", range(4))
def test_packed_rows_on_two_ranks_equal_a_plain_loop(plain, config_file, tmp_path, zero):
    config = run_config(plain[0], save_every=STEPS, log_every=1) | {"zero_optimization": stage(zero)}
    result = run_forked("road_ds/train.py", "--deepspeed_config", config_file(config), ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)


def test_a_resumed_run_ends_with_the_same_bits(plain, config_file, tmp_path):
    """Inside a round, before another; with dropout, and in bf16, whose ZeRO 1 has weights of its own."""
    config = run_config(plain[0], save_every=2, dropout=0.1, precision="bf16", output=str(tmp_path / "whole"))
    config["road"]["distill"]["adversarial"]["student_steps"] = 3
    path = config_file(config | {"zero_optimization": {"stage": 1}})
    assert train.main(["--deepspeed_config", str(path)]) == 0
    resumed = shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.rmtree(resumed / "model")
    assert train.main(["--deepspeed_config", str(path), "--set", f"road.output={resumed}", "--resume"]) == 0
    for head in KINDS:
        files = [load_file(tmp_path / run / "model" / head / "model.safetensors") for run in ("whole", "resumed")]
        assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    states = [
        torch.load(
            tmp_path / run / "checkpoints" / "step-00000004" / "generator" / "mp_rank_00_model_states.pt",
            weights_only=False,
        )
        for run in ("whole", "resumed")
    ]
    assert all(torch.equal(value, states[1]["module"][name]) for name, value in states[0]["module"].items())
    first = torch.load(
        resumed / "checkpoints" / "step-00000002" / "generator" / "mp_rank_00_model_states.pt", weights_only=False
    )
    assert any(not torch.equal(value, states[0]["module"][name]) for name, value in first["module"].items())


def test_each_learns_in_its_own_phase_alone(plain, config_file, tmp_path, monkeypatch):
    """Weights and gradients around each phase of the generator, and what is logged of it."""
    prepare, seen = Generator.prepare, []

    def copied(module):
        return [p.detach().clone() for p in module.parameters()]

    def watched(self, step):
        before = copied(self.student.module), copied(self.engine.module)
        found = prepare(self, step)
        seen.append((before, (copied(self.student.module), copied(self.engine.module)), bool(found)))
        assert all(p.grad is None or not p.grad.any() for p in self.student.module.parameters())
        return found

    def dropping(name):
        """Which of the two are in training, and so drop, in each call of a method."""
        method, found = getattr(Generator, name), set()

        def noted(self, *arguments):
            result = method(self, *arguments)
            found.add((self.student.module.training, self.engine.module.training))
            return result

        monkeypatch.setattr(Generator, name, noted)
        return found

    learning, writing = dropping("learn"), dropping("text")
    monkeypatch.setattr(Generator, "prepare", watched)
    config = run_config(plain[0], log_every=1) | {"zero_optimization": {"stage": 0}}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert [due for _, _, due in seen] == [True, False, True, False]
    assert learning == {(False, True)} and (True, True) not in writing and (True, False) in writing
    for before, after, due in seen:
        assert same(before[0], after[0]), "the student rests in the generator's phase"
        assert same(before[1], after[1]) != due
    for (_, after, _), (before, _, _) in itertools.pairwise(seen):
        assert same(after[1], before[1]), "the generator rests in the student's"
        assert not same(after[0], before[0])
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert all(0 < line["generator_share"] < 1 for line in lines)
    for line in lines:
        parts = {name: line["loss/" + name] for name in line["datasets"]}
        for name, loss in parts.items():
            if name == "paraphrase":
                assert f"generated/{name}" not in line
            else:
                base = (1 - WEIGHT) * line[f"hard/{name}"] + WEIGHT * TEMPERATURE**2 * line[f"soft/{name}"]
                assert loss == pytest.approx(0.75 * base + 0.25 * line[f"generated/{name}"], rel=1e-5)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["generator"]) == 64


def test_combined_with_annealing_and_layers(plain, config_file, tmp_path):
    """Combined KD: phase 1 on both texts, phase 2 on labels from what it exports."""
    first = run_config(plain[0], output=str(tmp_path / "first"), steps=2, select="best", evaluate_every=1)
    first["road"]["freelb"] = {"steps": 2}  # both texts are moved
    first["road"]["distill"] |= {
        "objective": "annealing_kd",
        "max_temperature": 2,
        "layers": {"method": "alp", "weight": 0.5},
    }
    for key in ("temperature", "weight"):
        del first["road"]["distill"][key]
    first["road"]["distill"]["teachers"] = {"inference": [str(plain[0] / "teacher" / "inference")]}
    assert train.main(["--deepspeed_config", str(config_file(first, "first"))]) == 0
    lines = [line for line in records(tmp_path / "first") if "generated/inference" in line]
    assert lines and all(line["hard/inference"] > 0 and line["layers/inference"] > 0 for line in lines)
    for line in lines:
        base = line["soft/inference"] + 0.5 * line["layers/inference"]
        assert line["loss/inference"] == pytest.approx(0.75 * base + 0.25 * line["generated/inference"], rel=1e-5)
    second = run_config(plain[0], output=str(tmp_path / "second"), steps=1, distill=None, model=str(tmp_path / "first"))
    assert train.main(["--deepspeed_config", str(config_file(second, "second"))]) == 0


@pytest.mark.parametrize(("mode", "loss_scale"), [("free", 1.0), ("grouped", 1024.0)])
def test_the_slope_is_that_of_the_one_hot_rows(plain, mode, loss_scale):
    """Two teachers and a student that read one-hot rows times their own embeddings, with autograd all the way."""
    config, _ = load_config(plain[0] / "plain.json")
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    student = build_model(config.model, tasks, tokenizer, dropout=0.1, seed=3).eval()
    assert student.use_packing() == ""
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train["places"]
    batch = Padding(mode, tokenizer.pad_token_id, {"places": 128}).collate(rows, np.array([3, 8, 5]))
    asked = [Predictor.load(str(plain[0] / name / "qa")) for name in ("teacher", "initial")]
    teachers = OnlineTeachers({"places": asked}, {"places": tasks["qa"]})
    engine = SimpleNamespace(
        module=student, optimizer=SimpleNamespace(loss_scale=loss_scale), zero_optimization_stage=lambda: 0
    )
    alone = Ranks(rank=0, world_size=1, local_rank=0, device=CPU, control=None)
    vocabulary = Vocabulary.of(tokenizer, CPU)
    own = Generator(None, Adversarial(), vocabulary, iter(()), engine, teachers, {"places": "qa"}, alone, 0)
    at = torch.tensor([1, 4, batch.input_ids.shape[1] + 2])
    value, slope = own.slope(batch, at)
    assert all(p.grad is None for p in (*student.parameters(), *asked[0].model.parameters()))

    written = F.one_hot(batch.input_ids, len(tokenizer)).float().requires_grad_()
    models = [student.head_model("qa", student.state_dict()).eval(), *(one.model for one in asked)]
    more = {"attention_mask": batch.attention_mask, "token_type_ids": batch.token_type_ids}
    read = [m(inputs_embeds=written @ m.get_input_embeddings().weight, **more) for m in models]
    shares, expected = [torch.stack([r.start_logits, r.end_logits], 1) for r in read], []
    for row, length in enumerate(batch.tokens):
        theirs, mine = (shares[1] + shares[2])[row, :, :length] / 2, shares[0][row, :, :length]
        expected.append(F.kl_div(mine.log_softmax(1), theirs.softmax(1), reduction="sum") / 2)
    total = torch.stack(expected).mean()
    (wanted,) = torch.autograd.grad(total, written)
    assert value.item() == pytest.approx(total.item(), abs=1e-6)
    assert torch.allclose(slope, wanted.flatten(0, 1)[at], atol=1e-7) and slope.abs().max() > 1e-4


# Settings that do not suit.


@pytest.fixture
def refused(plain, config_file, capsys):
    """What a run says of its settings, after a change of the adversarial block or others."""

    def refused(adversarial=(), **distill) -> str:
        config = run_config(plain[0])
        config["road"]["distill"] |= distill
        block = config["road"]["distill"]
        block["adversarial"] = adversarial if isinstance(adversarial, int) else block["adversarial"] | dict(adversarial)
        capsys.readouterr()
        assert train.main(["--deepspeed_config", str(config_file(config)), "--overwrite"]) == 2
        said = capsys.readouterr().err
        assert said.count("error:") == 1 and "Traceback" not in said
        return said

    return refused


def test_check_counts_the_passes(plain, config_file, command):
    code, out, _ = command("check", config_file(run_config(plain[0])))
    assert code == 0
    assert "adversarial: student and teachers read each row of a data set with teachers twice" in out
    assert "; what teaches beside the student is not counted, nor are the generator and its optimizer)" in out
    assert "and has 4 steps of its own" in out


def test_cached_teachers_cannot_read_generated_text(refused):
    assert 'adversarial has the teachers read generated text, which is not cached: set source to "online"' in refused(
        source="cached"
    )


def test_a_block_is_asked_for(refused):
    assert "road.distill.adversarial: got 3; expected a block { }" in refused(3)


def test_a_generator_with_another_vocabulary_is_refused(refused, plain, tmp_path):
    other = shutil.copytree(plain[0] / "generator", tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(text))
    said = refused({"generator": str(other)})
    assert f"road.distill.adversarial.generator: {other} has another vocabulary than the student" in said


def test_what_is_no_masked_language_model_is_refused(refused, plain):
    folder = plain[0] / "teacher" / "inference"
    said = refused({"generator": str(folder)})
    assert f"road.distill.adversarial.generator: no masked language model: {folder}: " in said and "are missing" in said


def test_a_student_with_fresh_weights_has_no_generator_of_its_own(refused):
    assert "fresh weights has no masked language model of its own: give one" in refused({"generator": None})


@pytest.mark.parametrize(("key", "value", "said"), [
    ("mask", 0.0, "greater than 0"), ("tau", 0, "greater than 0"), ("divergence", "js", "'kl' or 'cross_entropy'"),
    ("student_steps", 0, "greater than or equal to 1"), ("weight", 1.5, "less than or equal to 1"), ("clipping", 1, "unknown key"),
])  # fmt: skip
def test_a_bad_setting_is_named(refused, key, value, said):
    found = refused({key: value})
    assert f"road.distill.adversarial.{key}: " in found and said in found
