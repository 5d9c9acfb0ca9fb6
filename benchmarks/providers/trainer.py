"""Hugging Face's Trainer, as its question-answering example sets it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from presets import DROPOUT, LONGEST

from providers.case import CLIP, DECAY, LAUNCHER, LR, Rows, Work, as_torch_comes, wait
from road_ds.common.ranks import Ranks


@contextmanager
def alone(ranks: Ranks) -> Iterator[None]:
    """Hides the launcher's variables of a run on one process: Trainer would wrap its model for several GPUs."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if ranks.world_size == 1}
    try:
        yield
    finally:
        os.environ.update(hidden)


class HuggingFace:
    """transformers.Trainer, set as its question-answering example sets it."""

    def __init__(self, rows: Rows, by_length: bool, scratch: Path):
        from transformers import (
            AutoConfig,
            AutoModelForQuestionAnswering,
            DataCollatorWithPadding,
            PrinterCallback,
            Trainer,
            TrainerCallback,
            TrainingArguments,
            default_data_collator,
        )
        from transformers.trainer_pt_utils import get_length_grouped_indices

        self.rows, self.by_length = rows, by_length
        preset = rows.preset
        torch.manual_seed(0)
        settings = {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT, **preset.config}
        with rows.ranks.device:
            model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("electra", **settings))
        arguments = TrainingArguments(
            output_dir=str(scratch / f"trainer-{by_length}"),
            per_device_train_batch_size=preset.micro,
            gradient_accumulation_steps=rows.pieces,
            learning_rate=LR,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=rows.precision == "bf16",
            fp16=rows.precision == "fp16",
            use_cpu=rows.ranks.device.type == "cpu",
            train_sampling_strategy="group_by_length" if by_length else "random",
        )

        if rows.ranks.world_size == 1:
            arguments._n_gpu = min(1, arguments.n_gpu)  # or it would take all of the host's, with larger batches

        class Clock(TrainerCallback):
            """From the first step's begin to the last step's end: without what Trainer prepares before."""

            began: float | None = None
            ended = 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.began = None

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if self.began is None:
                    wait(rows.ranks.device)
                    self.began = rows.clock()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                wait(rows.ranks.device)
                self.ended = rows.clock()

        class Grouped(Trainer):
            """Sorts all rows of a turn: on a whole data set the sampler sorts those of 50 steps."""

            train_dataset: Any

            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                if not by_length:
                    return super()._get_train_sampler(train_dataset)
                return get_length_grouped_indices(self.train_dataset["length"], preset.rows, mega_batch_mult=50)

        self.clock = Clock()
        collator: Any = DataCollatorWithPadding(rows.tokenizer) if by_length else default_data_collator
        self.trainer = Grouped(
            model=model,
            args=arguments,
            data_collator=collator,
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)
        self.computed = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, inputs: Any, settings: dict[str, Any]) -> None:
        self.computed += settings["input_ids"].numel()

    def turn(self, steps: range) -> Work:
        from datasets import Dataset

        columns: dict[str, list] = {}
        for name, number in self.rows.drawn(steps):
            row = self.rows.sources[name][number]
            ids, types = np.asarray(row.input_ids), np.asarray(row.token_type_ids)
            length = len(ids)
            padding = 0 if self.by_length else LONGEST - length
            for key, value in {
                "input_ids": [*ids.tolist(), *[self.rows.tokenizer.pad_token_id] * padding],
                "token_type_ids": [*types.tolist(), *[0] * padding],
                "attention_mask": [1] * length + [0] * padding,
                "start_positions": int(row.labels[0]),
                "end_positions": int(row.labels[-1]),
                "length": length,
            }.items():
                columns.setdefault(key, []).append(value)
        self.trainer.train_dataset = Dataset.from_dict(columns)
        self.computed = 0
        with as_torch_comes():
            self.trainer.train()
        assert self.clock.began is not None
        return Work(self.clock.ended - self.clock.began, self.computed * self.rows.ranks.world_size)

    def split(self, step: int) -> dict[str, float]:
        return {}
