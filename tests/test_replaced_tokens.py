"""ELECTRA's pretraining against plain PyTorch and transformers' own losses, on any ranks, micro-batches and ZeRO stages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import pretraining, records
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import ElectraForMaskedLM, ElectraForPreTraining, ElectraForSequenceClassification

from road_ds import train
from road_ds.config.file import load_config
from road_ds.data.batch import collate
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.tasks.registry import heads


class Plain:
    """The plain loop: Hugging Face's two models with shared embeddings, row by row, no code of the package's model or loss."""

    def __init__(self, path: Path, folder: Path):
        config, ds = load_config(path)
        self.config, self.tokenizer = config, load_tokenizer(config.model)
        self.heads = heads(config).reading(self.tokenizer)
        self.rows = Rows.load(config.datasets, self.heads.by_dataset(), self.tokenizer, config.cache).train
        self.passes, self.steps = plan(config, ds["train_batch_size"], {n: s.lengths for n, s in self.rows.items()})
        initial = build_model(config.model, self.heads, self.tokenizer, dropout=0.0, seed=config.seed)
        export(initial, initial.state_dict(), self.tokenizer, folder)
        self.discriminator = ElectraForPreTraining.from_pretrained(folder / "text").train()
        self.generator = ElectraForMaskedLM.from_pretrained(folder / "text" / "generator").train()
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.discriminator.electra.embeddings.word_embeddings.weight
        self.classifier = ElectraForSequenceClassification.from_pretrained(folder / "inference").train()
        self.classifier.electra = self.discriminator.electra
        modules = torch.nn.ModuleList([self.discriminator, self.generator, self.classifier])
        self.parameters = list(modules.parameters())
        self.seen: list[str] = []

    def masked(self, row: int, step: int):
        """Places, what is shown there, and noise of one row alone, drawn with no other row beside it."""
        key = (self.config.seed, 2, list(self.rows).index("text"), step)
        alone = self.heads["text"].draw(collate(self.rows["text"], [row], 0), key, np.array([8]))
        return alone.masking.places, alone.masking.shown, alone.masking.noise

    def sums(self, row: int, step: int) -> tuple[torch.Tensor, int, torch.Tensor, int]:
        """MLM loss summed over masked tokens and RTD loss over all, each with their number."""
        feature = self.rows["text"][row]
        ids, types = torch.tensor([feature.input_ids.tolist()]), torch.tensor([feature.token_type_ids.tolist()])
        places, shown, noise = self.masked(row, step)
        read = ids.clone()
        read[0, places] = shown
        logits = self.generator(input_ids=read, token_type_ids=types).logits[0, places]
        guessed = torch.tensor([sampled(*pair) for pair in zip(logits.detach(), noise, strict=True)])
        corrupted = ids.clone()
        corrupted[0, places] = guessed
        said = self.discriminator(input_ids=corrupted, token_type_ids=types).logits
        wrong = (corrupted != ids).float()
        assert wrong.sum() <= len(places)
        mlm = F.cross_entropy(logits, ids[0, places], reduction="sum")
        return mlm, len(places), F.binary_cross_entropy_with_logits(said, wrong, reduction="sum"), ids.numel()

    def loss(self, taken, step: int) -> torch.Tensor:
        self.seen.append(taken.dataset)
        if taken.dataset == "text":
            mlm, masked, rtd, tokens = map(sum, zip(*(self.sums(row, step) for row in taken.rows), strict=True))
            return mlm / masked + 50 * rtd / tokens
        losses = []
        for feature in (self.rows[taken.dataset][row] for row in taken.rows):
            inputs = {k: torch.tensor([getattr(feature, k).tolist()]) for k in ("input_ids", "token_type_ids")}
            losses.append(F.cross_entropy(self.classifier(**inputs).logits, torch.tensor([int(feature.labels[0])])))
        return torch.stack(losses).mean()

    def run(self) -> list[float]:
        found = []
        for step in range(self.steps):
            total = sum(self.loss(taken, step) for taken in self.passes.draw(step)) / self.config.passes
            gradients = torch.autograd.grad(total, self.parameters, allow_unused=True, materialize_grads=True)
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter -= 0.1 * gradient / max(1.0, norm)
            found.append(total.item())
        return found


def sampled(logits: torch.Tensor, noise: torch.Tensor) -> int:
    """Gumbel-max over blocks of the vocabulary and then inside one, in float64 and one class after the other."""
    size = round(len(logits) ** 0.5)
    starts = range(0, len(logits), size)
    shares = logits.double().exp()
    blocks = [float(shares[start : start + size].sum().log() + noise[i]) for i, start in enumerate(starts)]
    start = starts[int(np.argmax(blocks))]
    own = logits[start : start + size].double() + noise[len(blocks) :][: len(logits[start : start + size])]
    return start + int(own.argmax())


@pytest.fixture(scope="module")
def plain(text, tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("plain")
    path = folder / "plain.json"
    path.write_text(json.dumps(pretraining(text, cache=str(cache), output=str(folder / "run"))))
    found = Plain(path, folder / "initial")
    return found, found.run()


def equal(run: Path, plain) -> None:
    loop, losses = plain
    assert [line["loss"] for line in records(run) if "loss" in line] == pytest.approx(losses, rel=2e-6)
    for folder, model in (
        ("text", loop.discriminator),
        ("text/generator", loop.generator),
        ("inference", loop.classifier),
    ):
        found = load_file(run / "model" / folder / "model.safetensors")
        expected = model.state_dict()
        for name, value in found.items():
            error = float((value - expected[name]).abs().max())
            assert error < 1e-6, f"{folder} {name}: off by {error:.2g}"
        assert {*expected} - {*found} <= {"generator_lm_head.weight"}


def staged(text: Path, config_file, stage: int, micro: int) -> Path:
    config = pretraining(text)
    config["zero_optimization"] = {"stage": stage}
    if stage == 3:  # by default parameters this small are never let go
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    config["train_micro_batch_size_per_gpu"] = micro
    return config_file(config)


def test_the_plain_loop_mixes_text_and_labels(plain):
    loop, losses = plain
    assert {*loop.seen} == {"text", "inference"} and max(losses) > 30 > 2 > min(losses), "alone and together"


@pytest.mark.parametrize("stage", range(4))
def test_one_process_equals_a_plain_loop_under_every_zero_stage(plain, text, config_file, tmp_path, stage):
    assert train.main(["--deepspeed_config", str(staged(text, config_file, stage, micro=8))]) == 0
    equal(tmp_path / "run", plain)


@pytest.mark.parametrize("stage", range(4))
def test_two_processes_equal_a_plain_loop_under_every_zero_stage(plain, text, config_file, tmp_path, stage):
    """Smaller micro-batches too."""
    result = run_forked("road_ds/train.py", "--deepspeed_config", staged(text, config_file, stage, micro=2), ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    equal(tmp_path / "run", plain)
