"""A generator of text under an engine of its own, trained between the student's steps to raise what these lower (MATE-KD)."""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder
from road_ds.common.ranks import Ranks
from road_ds.config.road import ModelSpec, PlanSettings, RateSettings
from road_ds.data.batch import Batch
from road_ds.data.features import FeatureSet
from road_ds.data.passes import Pass, Passes, plan
from road_ds.distillation.adversarial import Adversarial, Gaps, Vocabulary
from road_ds.distillation.disagreement import disagreement
from road_ds.distillation.teachers import OnlineTeachers, weights_hash
from road_ds.engine.start import start
from road_ds.engine.update import step_engine
from road_ds.models.configuration import check_lengths
from road_ds.models.masked_lm import MaskedLM, load_masked_lm
from road_ds.tasks.base import Task

MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")  # the student's engine writes to them

WHERE = "road.distill.adversarial.generator"
APART = 2**32  # between the seeds of the student's draws and the generator's


class Stopwatch:
    """How long something took, on the device where it runs there; nothing waits for it before the time is asked for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> Any:
        """This moment."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self.marks.append(self.mark())

    def __exit__(self, *_: Any) -> None:
        self.marks.append(self.mark())

    def seconds(self) -> float:
        """The seconds inside since it was last asked."""
        marks, self.marks = self.marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in pairs)
        torch.cuda.synchronize(self.device)
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000


@dataclass
class Generator:
    """batches: the micro-batches of each of its steps, which are its own; student: the engine that it is trained against;
    heads: the head that each data set trains."""

    engine: Any
    settings: Adversarial
    vocabulary: Vocabulary
    batches: Iterator[tuple[list[Pass], list[Batch]]]
    student: Any
    teachers: OnlineTeachers
    heads: Mapping[str, str]
    ranks: Ranks
    seed: int
    watch: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.ranks.device)

    def text(self, batch: Batch, step: int) -> Batch:
        """A batch, and behind it what the generator makes of its rows in a step of the student; no gradient leads there.

        Of a data set without a teacher nothing is made.
        """
        if batch.dataset not in self.teachers.teachers:
            return batch
        with self.watch, torch.no_grad():
            self.engine.eval()
            gaps = Gaps.drawn(batch, self.vocabulary, self.settings.mask, "text", self.seed, step)
            logits = self.engine(gaps.filled(self.vocabulary.mask), gaps.at).logits
            return batch.joined(gaps.filled(gaps.chosen(logits, self.settings.tau)[0]))

    def prepare(self, step: int) -> dict[str, torch.Tensor]:
        """Trains the generator before each `student_steps` steps of the student; the mean disagreement that it met, else nothing."""
        if step % self.settings.student_steps:
            return {}
        module, found = self.student.module, []
        first = step // self.settings.student_steps * self.settings.generator_steps
        with self.watch:
            self.engine.train()
            module.eval()
            for number in range(first, first + self.settings.generator_steps):
                _, batches = next(self.batches)
                found += [self.learn(batch.to(self.ranks.device), number) for batch in batches]
            module.train()
        mean = torch.stack(found).mean()
        return {"disagreement": self.ranks.sum(mean) / self.ranks.world_size}

    def learn(self, batch: Batch, number: int) -> torch.Tensor:
        """The disagreement on what the generator writes for a micro-batch of its step `number`; it has learned from it then.

        The chain rule in two parts, at the one-hot rows of what was written: their gradient comes from student and teachers,
        whose weights get none; the generator's engine has it from there.
        """
        gaps = Gaps.drawn(batch, self.vocabulary, self.settings.mask, "generator", self.seed, number)
        logits = self.engine(gaps.filled(self.vocabulary.mask), gaps.at).logits
        ids, shares = gaps.chosen(logits, self.settings.tau)
        value, slope = self.slope(gaps.filled(ids), gaps.at)
        slope = slope * gaps.free[:, None]
        self.engine.backward(-(shares * slope).sum())  # it is to go up
        step_engine(self.engine)
        return value

    def slope(self, batch: Batch, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The disagreement on a batch, and its gradient at the one-hot rows of some places, [places, entries].

        A one-hot row times a reader's word embeddings is what stands at a place, so its gradient is the sum over readers of
        the gradient there times these embeddings.
        """
        import deepspeed

        module, teachers = self.student.module, self.teachers.teachers[batch.dataset]
        words = [module.words, *(teacher.words for teacher in teachers)]
        moves = [torch.zeros(*batch.input_ids.shape, w.embedding_dim, device=at.device).requires_grad_() for w in words]
        own, *reads = (replace(batch, added=move) for move in moves)
        answers = [
            self.teachers.ordered(teacher(read, "").logits, teacher, batch.dataset)
            for teacher, read in zip(teachers, reads, strict=True)
        ]
        student, continuous = module(own, self.heads[batch.dataset]), batch.labels.is_floating_point()
        value = disagreement(student, torch.stack(answers), self.settings.divergence, continuous)
        scale = getattr(self.student.optimizer, "loss_scale", 1.0)  # without it small gradients are lost in fp16
        gradients = torch.autograd.grad(value * scale, moves)
        total = torch.zeros(len(at), len(self.vocabulary.special), device=at.device)
        with deepspeed.zero.GatheredParameters([words[0].weight], enabled=self.student.zero_optimization_stage() == 3):
            for gradient, own_words in zip(gradients, words, strict=True):
                total += gradient.flatten(0, 1)[at] @ own_words.weight.detach()[: total.shape[1]].float().T
        return value.detach(), total / scale


def open_generator(
    settings: Adversarial, student: ModelSpec, tokenizer: Any, tasks: Mapping[str, Task], dropout: float | None
) -> tuple[MaskedLM, str]:
    """The masked language model of a run, and the hash of its weights. RoadError for what does not suit."""
    name = settings.generator or student.name
    if name is None:
        raise RoadError(
            f"{WHERE}: a student with fresh weights has no masked language model of its own: give one by name or folder"
        )
    Vocabulary.of(tokenizer, torch.device("cpu"))
    model = load_masked_lm(name, tokenizer, dropout, WHERE)
    check_lengths(model.encoder.config, tasks)
    return model, weights_hash(model_folder(name))


def start_generator(model: MaskedLM, ds: dict[str, Any], settings: Adversarial, seed: int) -> Any:
    """The engine of a generator: the student's stage, precision, batch sizes and kind of optimizer, its own rate and clip."""
    params = {**ds["optimizer"]["params"], "lr": settings.learning_rate}
    ds = {key: value for key, value in ds.items() if key not in MONITORS}
    ds |= {"optimizer": {**ds["optimizer"], "params": params}, "gradient_clipping": settings.clip}
    return start(model, ds, RateSettings(warmup=0.0, schedule="constant"), steps=1, seed=seed)


def rows_of_generator(
    config: PlanSettings, batch_size: int, train: Mapping[str, FeatureSet], taught: Collection[str]
) -> Passes:
    """Which rows a generator learns from: those of data sets with teachers, in draws of its own."""
    lengths = {name: source.lengths for name, source in train.items() if name in taught}
    return plan(config.model_copy(update={"seed": config.seed + APART}), batch_size, lengths)[0]
