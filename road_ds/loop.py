"""The training loop: ROaD's Algorithm 1 on a DeepSpeed engine."""

import faulthandler
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch

from road_ds.common.errors import RankError, RoadError
from road_ds.common.log import progress, say
from road_ds.common.ranks import Ranks
from road_ds.config.road import LoopSettings
from road_ds.data.batch import Batch
from road_ds.data.batches import read_together
from road_ds.data.passes import Pass
from road_ds.distillation.freelb import once
from road_ds.distillation.lesson import Lesson
from road_ds.engine.cosines import gradient_cosines
from road_ds.engine.meter import Meter, StepRecord
from road_ds.engine.preemption import Preemption
from road_ds.engine.update import read_at_once, step_engine

Views = Callable[[Batch, int], Iterator[Batch]]
Prepare = Callable[[int], dict[str, torch.Tensor]]


def nothing(step: int) -> dict[str, torch.Tensor]:
    """What is done before a step where the student alone learns."""
    return {}


def fit(
    engine: Any,
    plan: Iterator[tuple[list[Pass], list[Batch]]],
    lesson: Lesson,
    meter: Meter,
    ranks: Ranks,
    preemption: Preemption,
    settings: LoopSettings,
    *,
    start: int,
    steps: int,
    evaluate: Callable[[int], bool],
    save: Callable[[int], bool],
    views: Views = once,
    prepare: Prepare = nothing,
) -> tuple[int, str]:
    """The number of steps done, and why it stopped early ("" when it did not). The last step is saved, where any is.

    plan: for each step from `start` on its passes, and this rank's micro-batches of them; evaluate: scores after a step, and
    whether to end there; views: what a micro-batch is read as, as often as the engine was told; prepare: what is done before a
    step (from 0), and has measured.
    """
    bar = progress(steps, "training", "step", initial=start, leave=True)
    done, skipped = start, 0
    with preemption.held(), standing_objects_spared():
        for done in range(start + 1, steps + 1):
            logging = done == steps or due(done, settings.log_every)
            with watchdog(settings.step_timeout):
                record = one_step(
                    engine, plan, lesson, views, prepare, meter, ranks,
                    step=done - 1, measured=logging, cosines=due(done, settings.gradient_cosine_every),
                )  # fmt: skip
            if logging:
                bar.set_postfix_str(meter.flush(), refresh=False)
            bar.update()
            skipped = 0 if record.applied else skipped + 1
            if skipped >= settings.max_skipped_steps:
                meter.flush()
                raise RoadError(
                    f"{skipped} steps in a row were skipped because the gradient was not finite (last: step {done}): "
                    "lower the learning rate, or use road.precision bf16 or fp32"
                )
            if reason := ranks.first(preemption.reason):
                meter.flush()
                bar.close()
                say(f"{reason}: saving step {done}; the run has ended when status.json says preempted")
                return done, reason if save(done) else f"{reason}; the last steps could not be saved"
            last = done == steps
            if not last and due(done, settings.evaluate_every):
                meter.flush()
                bar.clear()
                last = evaluate(done)
            if settings.save_every and (last or due(done, settings.save_every)):
                meter.flush()
                save(done)
            if last:
                break
        bar.close()
        return done, ranks.first(preemption.reason)


def one_step(
    engine: Any,
    plan: Iterator[tuple[list[Pass], list[Batch]]],
    lesson: Lesson,
    views: Views,
    prepare: Prepare,
    meter: Meter,
    ranks: Ranks,
    *,
    step: int,
    measured: bool,
    cosines: bool,
) -> StepRecord:
    """The record of one step of Algorithm 1: the gradient averaged over its passes, then one update.

    The loss of a micro-batch is the mean over its rows; DeepSpeed takes the mean over a step's micro-batches and their
    views, which are equally large: the mean over rows, then over passes.
    """
    record = meter.begin(step, max(group["lr"] for group in engine.optimizer.param_groups))
    record.beside = prepare(step)
    record.drawn, batches = next(plan)
    if cosines:

        def alone(batch: Batch) -> torch.Tensor:
            return lesson(engine.module, *lesson.read(batch.to(ranks.device), step), step).total

        record.cosines = gradient_cosines(engine, batches, len(record.drawn), alone, ranks)
    for places in read_together(batches):
        joined = [batches[place].to(ranks.device) for place in places]
        with out_of_memory_named(joined):
            read, teachings = zip(*(lesson.read(batch, step) for batch in joined), strict=True)
            for view in zip(*(views(batch, step) for batch in read), strict=True):
                losses = lesson.together(engine, view, teachings, step, measured)
                read_at_once(engine, len(losses))
                engine.backward(reduce(torch.add, [loss.total for loss in losses]))
                for loss, place in zip(losses, places, strict=True):
                    record.add(loss, place)
                record.applied, record.gradient_norm = step_engine(engine)
    record.end()
    return record


@contextmanager
def standing_objects_spared() -> Iterator[None]:
    """Leaves what is there already out of Python's search for cycles: libraries, model and engine are a million objects.

    Each search would stop the steps for tenths of a second, and free nothing of them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Ends the process with the stack of every thread when what is inside takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def out_of_memory_named(batches: Sequence[Batch]) -> Iterator[None]:
    """Turns the device's out-of-memory error into one that says what was computed and what to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        sizes = ((*batch.input_ids.shape, batch.dataset) for batch in batches)
        read = " and ".join(f"{rows} rows x {tokens} tokens of {dataset}" for rows, tokens, dataset in sizes)
        raise RankError(
            f"the GPU ran out of memory on {read}: lower "
            "train_micro_batch_size_per_gpu (the rows of a step stay the same) or the task's max_length, "
            "or raise the ZeRO stage"
        ) from None


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due after this one."""
    return every > 0 and step % every == 0
