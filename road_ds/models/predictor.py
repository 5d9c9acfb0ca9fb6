"""An exported folder at work: examples in, predictions or scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.common.hub import head_folder, model_folder, warn_of_changes
from road_ds.data.batch import Batch, Feature
from road_ds.data.readers import Example
from road_ds.data.tokenizer import check_vocabulary, read_tokenizer
from road_ds.models.attention import plan_no_shapes
from road_ds.models.configuration import uses_token_types
from road_ds.models.export import read_task
from road_ds.models.pretrained import load_weights, read_config
from road_ds.models.states import NOTHING, States, Wanted, observed
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import MemorySet, compute_logits
from road_ds.tasks.outputs import Outputs


@dataclass(frozen=True)
class Predictor:
    """A model folder or hub name, its tokenizer and its task, on one device."""

    name: str
    model: Any
    tokenizer: Any
    task: Task
    device: torch.device

    @classmethod
    def load(cls, name: str) -> "Predictor":
        """The predictor of an exported folder, or of any question-answering or classification model."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = model_folder(head_folder(name, ""))
        warn_of_changes(folder)
        task = read_task(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config, tokenizer = read_config(folder, name), read_tokenizer(folder, name)
        check_vocabulary(tokenizer, config, name)
        model = load_weights(task.model, folder, name)
        plan_no_shapes()
        return cls(name, model.eval().to(device), tokenizer, task.reading(tokenizer), device)

    def __call__(self, batch: Batch, head: str) -> Outputs:
        """The logits of a batch."""
        return self.observed(batch, NOTHING)[0]

    def observed(self, batch: Batch, wanted: Wanted) -> tuple[Outputs, States]:
        """The logits of a batch, and the wanted states of the encoder; for scores its attention must be eager."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if uses_token_types(self.model.config, self.tokenizer):
            inputs["token_type_ids"] = batch.token_type_ids
        if batch.added is not None:
            words = self.words(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = words + batch.added.to(words.dtype)
        answered, states = observed(self.model, self.task.inputs(inputs), wanted)
        return self.task.outputs(answered, batch), states

    @property
    def words(self) -> torch.nn.Embedding:
        """The encoder's word embeddings."""
        return self.model.get_input_embeddings()

    def predict(self, examples: Sequence[Example], batch_size: int = 64) -> list[Any]:
        """One prediction per example, in order."""
        return self.task.predict(examples, *self.logits(examples, batch_size))

    def logits(self, examples: Sequence[Example], batch_size: int = 64) -> tuple[list[Feature], list[np.ndarray]]:
        """The features of examples, and the logits of each, [rows, classes]."""
        source = MemorySet.encode(self.name, examples, self.task, self.tokenizer)
        logits = compute_logits(
            self, source, self.task, "", None,
            pad_id=self.tokenizer.pad_token_id or 0, batch_size=batch_size, device=self.device,
        )  # fmt: skip
        assert logits is not None
        return source.features, logits
