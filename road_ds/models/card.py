"""The model card of an exported head: what it is and how it is used, and the metadata that a hub shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from road_ds.common.hub import HUB_NAME, TASK_FILE
from road_ds.config.road import RoadConfig
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import Evaluated, report


@dataclass(frozen=True)
class Card:
    """What a run's cards say beyond their heads. note: in a line, what the weights are; base: the model that it began with;
    languages: of the texts, as stated; of: the head of each data set; hub: the name on a hub of those that come from one."""

    note: str = ""
    base: str | None = None
    languages: Sequence[str] = ()
    of: Mapping[str, str] = field(default_factory=dict)
    hub: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Evaluated] = field(default_factory=dict)

    @classmethod
    def of_run(cls, config: RoadConfig, note: str = "") -> "Card":
        """The card of a run that has not been scored."""
        name = config.model.name or ""
        on_hub = "/" in name and HUB_NAME.fullmatch(name) and not Path(name).exists()
        hub = {key: spec.path for key, spec in config.datasets.items() if spec.format == "hub" and spec.path}
        of = {key: config.head_of(key) for key in config.datasets}
        return cls(note, name.partition("@")[0] if on_hub else None, config.languages, of, hub)

    def scored(self, scores: Mapping[str, Evaluated]) -> "Card":
        """The same with the dev scores of the exported model."""
        return replace(self, scores=scores)

    def text(self, head: str, task: Task, architecture: str, prefix: str) -> str:
        """The README.md of a head. prefix: how its weights that are the shared encoder's begin."""
        scores = {name: result for name, result in self.scores.items() if self.of.get(name) == head}
        settings = json.dumps(task.model_dump(), indent=2, ensure_ascii=False)
        parts = [
            f"# {head}",
            f"{architecture} for {task.type.replace('_', ' ')}, trained with road_ds. Its encoder (`{prefix}`) was trained on "
            f"{', '.join(self.of)}, this head on {', '.join(name for name, of in self.of.items() if of == head)}."
            if self.of
            else f"{architecture} for {task.type.replace('_', ' ')}, trained with road_ds.",
            self.note,
            "    from transformers import AutoTokenizer, " + task.model.__name__ + "\n"
            '    tokenizer = AutoTokenizer.from_pretrained(".")\n'
            f'    model = {task.model.__name__}.from_pretrained(".")',
            "With road_ds, which also cuts long texts into windows and turns logits into answers:",
            f'    from road_ds import load\n    ask = load(".")\n    {task.asked}',
            f"Dev scores:\n\n```\n{report(scores)}\n```" if scores else "",
            f"Task settings (`{TASK_FILE}`):\n\n```json\n{settings}\n```",
        ]
        return f"---\n{self.metadata(head, task, scores).to_yaml()}\n---\n" + "\n\n".join(filter(None, parts)) + "\n"

    def metadata(self, head: str, task: Task, scores: Mapping[str, Evaluated]) -> ModelCardData:
        """What a hub shows of a head beside its text."""
        results = [
            EvalResult(
                task_type=task.hub_task or task.type, dataset_type=self.hub.get(name, name), dataset_name=name,
                dataset_split="dev", metric_type=metric, metric_value=round(value, 4),
            )
            for name, result in scores.items()
            for metric, value in result.scores.items()
            if isfinite(value)
        ]  # fmt: skip
        headlines = list(dict.fromkeys(result.headline for result in scores.values()))
        return ModelCardData(
            language=list(self.languages) or None,
            library_name="transformers",
            pipeline_tag=task.hub_task,
            base_model=self.base,
            datasets=sorted({self.hub[name] for name, of in self.of.items() if of == head and name in self.hub})
            or None,
            metrics=headlines or None,
            tags=["road_ds"],
            model_name=head if results else None,
            eval_results=results or None,
        )
