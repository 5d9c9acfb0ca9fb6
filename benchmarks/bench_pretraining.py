"""ELECTRA's pretraining: ours beside the same two models under transformers' Trainer with its collator for masked language models.

    python benchmarks/bench_pretraining.py            # tiny and electra-small, on any CPU
    python benchmarks/bench_pretraining.py --quick

Sequences of up to 128 tokens, nine of ten full, the rest as a document's end leaves them; dropout 0.1, AdamW, clipping to 1, float32.

  Trainer   ElectraForMaskedLM and ElectraForPreTraining with shared embeddings, 15 % masked, 85 % of these shown as the mask;
            rows as they come, padded to a batch's longest; samples by Gumbel noise at the masked tokens, 50 RTD + MLM
  ours      the loop of a run: plan, masks and noise drawn in its thread, packed rows, DeepSpeed's engine without ZeRO

Each lives in a process of its own, on one thread, and is measured by that process's CPU time, threads that assemble its batches
included, so that neither the other nor what else runs on the machine is counted. They take turns on the same rows; the ratio is the
median of the ratios turn by turn. A head's logits are those that are in memory at once in a micro-batch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from apart import Apart
from measure import environment, folder, table
from presets import electra, tokenizer_of

from road_ds.common.errors import Faults
from road_ds.common.log import write_json
from road_ds.common.ranks import Ranks
from road_ds.config.road import RoadConfig
from road_ds.data.batch import Feature
from road_ds.data.batches import Padding, ahead, assemble
from road_ds.data.masking import masked_count
from road_ds.data.passes import Passes
from road_ds.distillation.guard import Guarded
from road_ds.distillation.lesson import Lesson
from road_ds.distillation.objective import Objective
from road_ds.distillation.teachers import NoTeachers
from road_ds.engine.settled import Machine, settle
from road_ds.engine.speed import prepare
from road_ds.engine.start import start
from road_ds.loop import standing_objects_spared, step_engine
from road_ds.models.build import build_model
from road_ds.models.generator import generator_config
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import heads

TOKENS, SHARE, DROPOUT = 128, 0.15, 0.1
LR, DECAY, CLIP = 5e-4, 0.01, 1.0
COLUMNS = ["preset", "provider", "tokens/s", "Trainer / ours", "head's logits MB", "process GB"]


class Preset(NamedTuple):
    """A discriminator, and rows by step and micro-batch."""

    config: dict[str, Any]
    rows: int
    micro: int
    steps: int


PRESETS = {
    "tiny": Preset(electra(128, 128, 2, 4, 1066), rows=64, micro=32, steps=4),
    "electra-small": Preset(electra(128, 256, 12, 4), rows=32, micro=16, steps=1),
}


def rows_of(preset: Preset, count: int) -> MemorySet:
    """Sequences of two segments, their words drawn at random."""
    generator = np.random.default_rng(0)
    features = []
    for number in range(count):
        length = TOKENS if generator.random() < 0.9 else int(generator.integers(16, TOKENS))
        ids = generator.integers(5, preset.config["vocab_size"], length).astype(np.int32)
        ids[0], ids[length // 2], ids[-1] = 2, 3, 3
        types = (np.arange(length) > length // 2).astype(np.int8)
        features.append(Feature(ids, types, np.empty(0, np.int32), number))
    return MemorySet("text", features)


class Provider:
    """A way to pretrain; each turn is some steps over the plan that both share."""

    def __init__(self, name: str):
        self.preset = PRESETS[name]
        self.rows = rows_of(self.preset, 4096)
        self.passes = Passes({"text": self.rows.lengths}, np.ones(1), passes=1, rows=self.preset.rows, seed=0, window=0)

    def steps_of(self, turn: int) -> range:
        return range(turn * self.preset.steps, (turn + 1) * self.preset.steps)

    def tokens(self, turn: int) -> int:
        """Real tokens of a turn."""
        return sum(
            int(self.rows.lengths[taken.rows].sum()) for step in self.steps_of(turn) for taken in self.passes.draw(step)
        )

    def turn(self, turn: int) -> float:
        """CPU seconds."""
        raise NotImplementedError

    def logits(self) -> float:
        """Megabytes of the generator's logits in a micro-batch of full rows."""
        raise NotImplementedError


class Ours(Provider):
    def __init__(self, name: str):
        super().__init__(name)
        preset = self.preset
        config = RoadConfig.model_validate({
            "model": {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": preset.config},
            "tasks": {"text": {"type": "replaced_tokens", "max_length": TOKENS}},
            "datasets": {"text": {"task": "text", "train": "unused"}},
            "steps": 10**6, "passes": 1, "dropout": DROPOUT,
        })  # fmt: skip
        ds: dict[str, Any] = {
            "train_batch_size": preset.rows, "train_micro_batch_size_per_gpu": preset.micro, "gradient_clipping": CLIP,
            "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": DECAY}}, "zero_optimization": {"stage": 0},
        }  # fmt: skip
        self.ranks, faults = Ranks.start(), Faults()
        settled = settle(config, ds, Machine.of(self.ranks), faults)
        faults.end()
        tokenizer = tokenizer_of(config)
        self.heads = heads(config).reading(tokenizer)
        model = build_model(config.model, self.heads, tokenizer, dropout=DROPOUT, seed=0)
        mode, _ = prepare(model, config, settled.ds, "cpu", None, "fp32")
        self.engine = start(model, settled.ds, config, steps=10**6, seed=1)
        self.padding = Padding(mode, tokenizer.pad_token_id, {"text": TOKENS})
        self.lesson = Lesson(Guarded(Objective()), NoTeachers(), self.heads.of, 10**6)
        standing_objects_spared().__enter__()

    def turn(self, turn: int) -> float:
        draws = {"text": self.heads["text"].draw}
        began = time.process_time()
        plan = assemble(
            self.passes, {"text": self.rows}, self.padding, self.ranks, self.preset.micro, self.steps_of(turn), draws
        )
        for _, batches in ahead(plan):
            for batch in batches:
                self.engine.backward(self.lesson(self.engine, batch, None, 0).total)
                step_engine(self.engine)
        return time.process_time() - began

    def logits(self) -> float:
        masked = int(masked_count(TOKENS, SHARE)) * self.preset.micro
        return 4e-6 * masked * self.preset.config["vocab_size"]


class HuggingFace(Provider):
    def __init__(self, name: str):
        from transformers import (
            DataCollatorForLanguageModeling,
            ElectraConfig,
            PrinterCallback,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        super().__init__(name)
        preset = self.preset
        torch.manual_seed(0)
        config = ElectraConfig(**preset.config, hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT)
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=preset.micro,
            gradient_accumulation_steps=preset.rows // preset.micro, learning_rate=LR, weight_decay=DECAY,
            max_grad_norm=CLIP, num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        tokenizer = tokenizer_of(RoadConfig.model_validate({
            "model": {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": preset.config},
            "tasks": {"text": {}}, "datasets": {"text": {"task": "text"}}, "steps": 1,
        }))  # fmt: skip
        collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=SHARE, mask_replace_prob=0.85, random_replace_prob=0.0, seed=0
        )
        outer = self

        class Clock(TrainerCallback):
            """From the first step's begin to the last step's end: without what Trainer prepares before."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 0:
                    outer.began = time.process_time()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                outer.ended = time.process_time()

        self.began = self.ended = 0.0
        self.trainer = Trainer(model=Pair(config), args=arguments, data_collator=collator, callbacks=[Clock()])
        self.trainer.remove_callback(PrinterCallback)

    def turn(self, turn: int) -> float:
        from datasets import Dataset

        columns: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
        for row in (int(row) for step in self.steps_of(turn) for taken in self.passes.draw(step) for row in taken.rows):
            feature = self.rows[row]
            columns["input_ids"].append(np.asarray(feature.input_ids).tolist())
            columns["token_type_ids"].append(np.asarray(feature.token_type_ids).tolist())
            columns["attention_mask"].append([1] * len(feature.input_ids))
        self.trainer.train_dataset = Dataset.from_dict(columns)
        self.trainer.train()
        return self.ended - self.began

    def logits(self) -> float:
        return 4e-6 * TOKENS * self.preset.micro * self.preset.config["vocab_size"]


class Pair(torch.nn.Module):
    """Hugging Face's two models as one, as its own examples would join them."""

    def __init__(self, config: Any):
        from transformers import ElectraForMaskedLM, ElectraForPreTraining

        super().__init__()
        self.discriminator = ElectraForPreTraining(config)
        self.generator = ElectraForMaskedLM(generator_config(0.25, config))
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.discriminator.electra.embeddings.word_embeddings.weight

    def forward(self, input_ids: Any, labels: Any, attention_mask: Any, token_type_ids: Any) -> dict[str, Any]:
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        guess = self.generator(input_ids=input_ids, labels=labels, **inputs)
        masked = labels != -100
        with torch.no_grad():
            logits = guess.logits[masked]
            sampled = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
            original = torch.where(masked, labels, input_ids)
            corrupted = original.clone()
            corrupted[masked] = sampled
        found = self.discriminator(input_ids=corrupted, labels=(corrupted != original).long(), **inputs)
        return {"loss": guess.loss + 50 * found.loss}


PROVIDERS: dict[str, Callable[[str], Provider]] = {"Trainer": HuggingFace, "ours": Ours}


def measured(name: str, turns: int) -> list[dict[str, Any]]:
    """The table's rows of a preset."""
    made = {label: Apart(partial(kind, name), label) for label, kind in PROVIDERS.items()}
    taken: dict[str, list[float]] = {label: [] for label in made}
    for label in made:
        made[label].ready()
        made[label].ask("turn", 0)  # not counted: memory grows, optimizers make their moments
    for turn in range(1, turns + 1):
        for label in list(made)[:: 1 if turn % 2 else -1]:
            taken[label].append(made[label].ask("turn", turn))
    tokens = [made["ours"].ask("tokens", turn) for turn in range(1, turns + 1)]
    ratios = [theirs / own for theirs, own in zip(taken["Trainer"], taken["ours"], strict=True)]
    rows = [
        {
            "preset": name,
            "provider": label,
            "tokens/s": median(count / seconds for count, seconds in zip(tokens, taken[label], strict=True)),
            "Trainer / ours": f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            if label == "ours"
            else "",
            "head's logits MB": made[label].ask("logits"),
            "process GB": made[label].peak() / 1e9,
            "seconds": taken[label],
        }
        for label in made
    ]
    for one in made.values():
        one.close()
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("--preset", choices=PRESETS, action="append")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="2 turns")
    parser.add_argument("--json", type=Path, help="where to write, instead of results/cpu/bench_pretraining.json")
    options = parser.parse_args(arguments)
    os.environ["DS_ACCELERATOR"], os.environ["OMP_NUM_THREADS"] = "cpu", "1"
    turns = 2 if options.quick else options.turns
    rows = [row for name in options.preset or PRESETS for row in measured(name, turns)]
    device = torch.device("cpu")
    path = options.json or folder(device) / "bench_pretraining.json"
    busy = round(os.getloadavg()[0], 1)
    facts = environment(device) | {"deepspeed": version("deepspeed"), "threads": 1, "load": busy}
    print(table(rows, COLUMNS))
    print(f"goal: Trainer takes 1.5 times as long; load {busy}")
    write_json(path, {"environment": facts, "rows": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
