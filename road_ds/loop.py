"""The training loop: ROaD's Algorithm 1 on a DeepSpeed engine."""

import faulthandler
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from road_ds.config import RoadConfig
from road_ds.cosines import gradient_cosines
from road_ds.data.batches import Padding, ahead, assemble
from road_ds.data.features import Batch, FeatureSet
from road_ds.data.passes import Passes
from road_ds.errors import RankError, RoadError
from road_ds.guard import Guarded
from road_ds.log import progress, say
from road_ds.meter import Meter
from road_ds.objectives import Objective, Teachers, gradient_share
from road_ds.preemption import Preemption
from road_ds.ranks import Ranks
from road_ds.run_folder import RunFolder


def fit(
    engine: Any,
    passes: Passes,
    sources: Mapping[str, FeatureSet],
    teachers: Teachers,
    objective: Objective,
    ranks: Ranks,
    config: RoadConfig,
    *,
    steps: int,
    start: int,
    padding: Padding,
    folder: RunFolder,
    preemption: Preemption,
    evaluate: Callable[[int], Any],
    save: Callable[[int], bool],
) -> tuple[int, str]:
    """The number of steps done, and why it stopped early ("" when it did not). The last step is saved, where any is.

    The loss of a micro-batch is the mean over its rows; DeepSpeed takes the mean over a step's micro-batches, which
    are equally large: the mean over rows, then over passes (ROaD, Algorithm 1).
    """
    micro = engine.train_micro_batch_size_per_gpu()
    meter = Meter(ranks, folder, sources, micro, padding)
    plan = ahead(assemble(passes, sources, padding, ranks, micro, range(start, steps)))
    guarded = Guarded(objective)

    def alone(batch: Batch) -> torch.Tensor:
        """The loss of a batch beside the engine."""
        batch = batch.to(ranks.device)
        outputs = engine.module(batch, config.head_of(batch.dataset))
        return guarded(outputs, teachers(batch), batch, step / steps).total

    bar = progress(steps, "training", "step", initial=start, leave=True)
    skipped = 0
    with preemption.held(), standing_objects_spared():
        for step in range(start, steps):
            record = meter.begin(step, max(group["lr"] for group in engine.optimizer.param_groups))
            done = step + 1
            logging = done == steps or due(done, config.log_every)
            with watchdog(config.step_timeout):
                record.drawn, batches = next(plan)
                if due(done, config.gradient_cosine_every):
                    record.cosines = gradient_cosines(engine, batches, config.passes, alone, ranks)
                for batch in batches:
                    batch = batch.to(ranks.device)
                    with out_of_memory_named(batch):
                        outputs = engine(batch, config.head_of(batch.dataset))
                        teaching = teachers(batch)
                        loss = guarded(outputs, teaching, batch, step / steps)
                        share = None
                        if logging and teaching is not None:
                            share = gradient_share(guarded.objective, outputs, teaching, batch, step / steps)
                        engine.backward(loss.total)
                        record.add(loss, share)
                        record.applied, record.gradient_norm = step_engine(engine)
            if logging:
                bar.set_postfix_str(meter.flush())
            bar.update()
            skipped = 0 if record.applied else skipped + 1
            if skipped >= config.max_skipped_steps:
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
            if done < steps and due(done, config.evaluate_every):
                meter.flush()
                evaluate(done)
            if due(done, config.save_every) or (done == steps and config.save_every):
                meter.flush()
                save(done)
        bar.close()
        return steps, ranks.first(preemption.reason)


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
def out_of_memory_named(batch: Batch) -> Iterator[None]:
    """Turns the device's out-of-memory error into one that says what was computed and what to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        rows, tokens = batch.input_ids.shape
        raise RankError(
            f"the GPU ran out of memory on {rows} rows x {tokens} tokens of {batch.dataset}: lower "
            "train_micro_batch_size_per_gpu (the rows of a step stay the same) or the task's max_length, "
            "or raise the ZeRO stage"
        ) from None


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due after this one."""
    return every > 0 and step % every == 0


def step_engine(engine: Any) -> tuple[bool, Any]:
    """Steps the engine; whether the update was applied, and the gradient's norm before clipping (None inside a step).

    DeepSpeed skips updates whose gradient is not finite, except without ZeRO in fp32, where the weights would silently
    become NaN: there the gradients are clipped here, or dropped before they reach the optimizer.
    """
    plain = engine.zero_optimization_stage() == 0 and not engine.fp16_enabled() and not engine.bfloat16_enabled()
    if not (plain and engine.is_gradient_accumulation_boundary()):
        try:
            engine.step()
        except Exception as error:
            if "loss scale" not in str(error):
                raise
            raise RoadError(
                "fp16 overflowed at the smallest loss scale: the training diverged; lower the learning rate, or use "
                "road.precision bf16 or fp32"
            ) from None
        return engine.was_step_applied(), engine.get_global_grad_norm()
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # one process reduces nothing; with more DeepSpeed fills these in, and weights decay
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
    finite, clipping = bool(norm.isfinite()), engine.gradient_clipping()
    if not finite:
        for parameter in engine.module.parameters():
            parameter.grad = None
    elif clipping:
        torch.nn.utils.clip_grads_with_norm_(trained, clipping, norm)
    engine.clip_fp32_gradients = lambda: None  # done, by the same rule; the engine's own fails where all are dropped
    engine.step()
    return finite, norm
