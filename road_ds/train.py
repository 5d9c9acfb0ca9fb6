"""Multi-task pretraining under DeepSpeed: config -> parts -> fit -> evaluate -> export.

deepspeed road_ds/train.py --deepspeed_config ds_configs/mtl.json [--set KEY=VALUE ...] [--resume | --extend | --overwrite]
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: `import datasets` must not look for files beside this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import contextlib
import gc
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from road_ds.common import heartbeat
from road_ds.common.errors import RankError, RoadError, Terminated, readable
from road_ds.common.log import counted, is_main, print_anywhere, quiet_libraries, say, spared_output, warn
from road_ds.common.ranks import Ranks
from road_ds.config.file import Settings, assignments, load_config
from road_ds.config.fit import MICRO, fit_stage
from road_ds.config.road import KEPT, RoadConfig
from road_ds.data.batches import Padding, ahead, assemble
from road_ds.distillation.adversarial import Vocabulary
from road_ds.distillation.average import AverageTeacher
from road_ds.distillation.freelb import FreeLB, once
from road_ds.distillation.objective import Taught
from road_ds.distillation.registry import adversarial_of
from road_ds.distillation.teachers import NoTeachers, OnlineTeachers
from road_ds.engine import speed, surroundings
from road_ds.engine.checkpoint import Checkpoint, Engines, prune, restore
from road_ds.engine.finished import Run
from road_ds.engine.forwards import Forwards
from road_ds.engine.generator import Generator, rows_of_generator, start_generator
from road_ds.engine.meter import Meter
from road_ds.engine.milestones import Milestones
from road_ds.engine.parts import Parts, facts_of, gather, sized
from road_ds.engine.preemption import Preemption, exit_code
from road_ds.engine.report import settings_given
from road_ds.engine.results import Outcome, closing, leave
from road_ds.engine.resume import resumable
from road_ds.engine.run_folder import RunFolder, full_disk_named
from road_ds.engine.selection import Best, Patience
from road_ds.engine.settled import Machine
from road_ds.engine.start import follow_schedule, start
from road_ds.engine.weights import full_state
from road_ds.loop import fit
from road_ds.models.build import build_model
from road_ds.models.card import Card
from road_ds.models.multi_task import MultiTaskModel, parameter_count
from road_ds.models.states import Shape


@spared_output()
def main(arguments: list[str] | None = None) -> int:
    """The exit code of a run: 0 finished, 2 a fault the user can mend, 143 or 130 preempted, 1 anything else."""
    options = parse(arguments)
    print_anywhere()
    quiet_libraries()
    with Preemption() as preemption:
        return attempt(options, preemption)


def attempt(options: argparse.Namespace, preemption: Preemption) -> int:
    """The exit code of a run, whose end is told whatever it is."""
    folder: RunFolder | None = None
    try:
        surroundings.working_folder()
        config, ds = load_config(options.deepspeed_config, options.set)
        how = {key: getattr(options, key) for key in ("resume", "extend", "overwrite")}
        ranks, folder = opened(config, **how)
        reason = carried_out(config, ds, ranks, folder, preemption, resume=options.resume, extend=options.extend)
        return exit_code(reason) if reason else 0
    except (Exception, Terminated) as error:
        with preemption.held():  # the launcher ends the others of a process that has ended
            return broken_off(error, folder, options.debug)


def opened(config: RoadConfig, **how: bool) -> tuple[Ranks, RunFolder]:
    """The processes of a run and its folder, locked. how: as `RunFolder.open` takes it."""
    ranks = Ranks.start(config.step_timeout)
    return ranks, ranks.together(lambda: RunFolder.open(config, **how))


def carried_out(
    config: RoadConfig, ds: dict[str, Any], ranks: Ranks, folder: RunFolder, preemption: Preemption, *, resume: bool, extend: bool
) -> str:  # fmt: skip
    """Why a run stopped early, "" when it did not; its end is in status.json, and the folder is left to others."""
    if ranks.heartbeat:
        ranks.heartbeat.tell = partial(tell, folder, "failed")
    reason = ""
    if resume and folder.is_complete:
        say(
            f"{folder.path} has finished: nothing is left to do (--extend: more steps; another road.output: other settings)"
        )
    else:
        folder.status("running", 0)
        with full_disk_named(folder.path):
            step, reason = run(config, ds, ranks, folder, preemption, resume=resume, extend=extend)
        folder.status("preempted" if reason else "finished", step, reason)
        if config.keep is None and not reason and is_main():
            for kept in ("checkpoints", "best"):  # what is worth keeping of them has been exported
                prune(folder.path / kept, 0)
    ranks.leave()
    folder.release()
    return reason


def broken_off(error: BaseException, folder: RunFolder | None, debug: bool) -> int:
    """The exit code of a run that an exception ended, told here and in status.json."""
    taken_along = folder is not None and folder.has_ended()  # by a process that ended before this one
    shared = isinstance(error, RoadError) and not isinstance(error, RankError)  # all processes have it
    status, why, code = ending(error)
    if isinstance(error, Terminated):
        say(why)
    elif code == 2 and (is_main() or not shared):
        print(f"error: {why}", file=sys.stderr, flush=True)
    if debug or (code == 1 and not taken_along):
        traceback.print_exception(error)
    if folder is not None:
        tell(folder, status, why, everywhere=not shared)
        folder.release()
    return code


def ending(error: BaseException) -> tuple[str, str, int]:
    """What an exception makes of a run: its status, why, and the exit code."""
    if isinstance(error, Terminated):
        return "preempted", str(error), exit_code(str(error))
    if why := readable(error):
        return "failed", why, 2
    return "failed", f"{type(error).__name__}: {error}", 1


def tell(folder: RunFolder, status: str, why: str, everywhere: bool = True) -> None:
    """Says in status.json how a run ended, where no process has said it."""
    if not folder.is_lost and not folder.has_ended():
        folder.status(status, folder.last_step(), why, everywhere=everywhere)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--deepspeed_config", required=True, metavar="FILE", help="the run: DeepSpeed's keys and a road block"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key, e.g. road.steps=20"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="goes on from the newest checkpoint that verifies")
    existing.add_argument("--extend", action="store_true", help="goes on like --resume, to more steps than the run had")
    existing.add_argument("--overwrite", action="store_true", help="removes the run folder and starts anew")
    parser.add_argument("--debug", action="store_true", help="shows tracebacks of configuration and data errors")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    return parser.parse_args(arguments)


def run(
    config: RoadConfig, ds: dict[str, Any], ranks: Ranks, folder: RunFolder, preemption: Preemption, *, resume: bool,
    extend: bool = False,
) -> tuple[int, str]:  # fmt: skip
    """Steps done, and why the run stopped early ("" when it did not): what it is made of, the fit, what it leaves.

    Nothing but the folder's lock and status.json is written, and nothing of an overwritten run removed, before
    all that can be wrong with settings, model and data has been looked at.
    """
    began, given = time.monotonic(), settings_given(config, ds)
    machine = Machine.of(ranks)
    parts = gather(config, ds, ranks, machine)
    found = ranks.together(lambda: resumable(folder, parts.saved, extend=extend)) if resume or extend else None
    for remark in parts.rows.remarks():
        warn(remark)
    model, padding, notes = shape(config, parts, machine)
    parts = sized(config, parts, ranks, model, padding, found)
    engine = begin(config, parts, ranks, folder, model, padding, notes, anew=found is None)
    first, keep = 0 if found is None else found.step, config.keep or KEPT
    generator = build_generator(config, parts, ranks, padding, engine, first)
    beside = {} if generator is None else {"generator": generator.engine}
    best = Best(folder.path / "best", folder.run) if config.select == "best" else None
    milestones = Milestones(
        engine, parts.rows.dev, parts.heads, ranks, folder, parts.tokenizer.pad_token_id, config.evaluate_batch_size,
        parts.saved, keep, best, Patience.after(config.patience, folder.records() if found else (), first), beside,
    )  # fmt: skip
    last = parts.steps
    if found is not None:
        go_on(engine, beside, ranks, folder, found, keep)
        last = milestones.gone_on(first, last, config.evaluate_every, extended=extend)
    lesson = parts.lesson(padding)
    more: dict[str, Any] = {}
    if generator is not None:
        lesson, more = replace(lesson, text=generator.text), {"prepare": generator.prepare}
    views = FreeLB(config.freelb, model.words.embedding_dim, config.seed) if config.freelb else once
    micro = engine.train_micro_batch_size_per_gpu()
    steps = range(first, last)
    joined = config.join_micro_batches and padding.mode == "free"
    draws = parts.heads.draws()
    batches = ahead(assemble(parts.passes, parts.rows.train, padding, ranks, micro, steps, draws, joined))
    seconds = generator.watch.seconds if generator else None
    meter = Meter(ranks, folder, parts.rows.train, micro, padding, Forwards(model, parts.teachers), seconds)
    step, reason = fit(
        engine, batches, lesson, meter, ranks, preemption, config,
        start=first, steps=last, evaluate=milestones.look, save=milestones.save, views=views, **more,
    )  # fmt: skip
    if reason:
        say(f"{reason} after step {step}; go on with --resume")
        return step, reason

    outcome = Outcome(step, milestones.evaluate(step), full_state(engine), best)

    def finish() -> None:
        facts = facts_of(config, parts, machine, padding)
        exported, table = leave(
            folder, outcome, model, parts.tokenizer, facts, began, Card.of_run(config), config.shared_encoder, given,
            parts.rows, parts.heads,
        )  # fmt: skip
        by_head = {
            parts.heads.of[name]: rows for name, rows in reversed({**parts.rows.train, **parts.rows.dev}.items())
        }
        say("", table, "", *closing(folder.path, exported, by_head, time.monotonic() - began))

    ranks.apart(lambda: finish() if is_main() else None)
    return step, ""


def shape(config: RoadConfig, parts: Parts, machine: Machine) -> tuple[MultiTaskModel, Padding, list[str]]:
    """The model, how its batches are padded, and what is to say of both."""
    settled, heads, teachers = parts.settled, parts.heads, parts.teachers
    ds, objective = settled.ds, settled.objective
    model = build_model(config.model, heads, parts.tokenizer, dropout=config.dropout, seed=config.seed)
    if isinstance(objective, Taught) and objective.compared and not isinstance(teachers, NoTeachers | AverageTeacher):
        model.compare(teachers.compare(objective.compared, Shape.of(model.encoder.config), config.seed))
    mode, notes = speed.prepare(model, config, ds, machine.device, machine.capability, settled.precision)
    if config.join_micro_batches and mode != "free":
        notes.append(f"road.join_micro_batches does nothing: rows are not packed ({mode} padding)")
    limits = {name: heads.task(name).max_length for name in parts.rows.train}
    limits |= {found.texts.name: limits[name] for name, found in parts.neighbours.items()}
    return model, Padding(mode, parts.tokenizer.pad_token_id, limits), notes


def begin(
    config: RoadConfig, parts: Parts, ranks: Ranks, folder: RunFolder, model: MultiTaskModel, padding: Padding,
    notes: list[str], *, anew: bool,
) -> Any:  # fmt: skip
    """The engine of a run; the run folder is the run's from here on."""
    settled, ds = parts.settled, parts.settled.ds
    ranks.apart(lambda: folder.begin(parts.resolved, anew=anew))
    pieces, micro = ds["gradient_accumulation_steps"], ds[MICRO]
    asked, stage = (one["zero_optimization"]["stage"] for one in (ds, fit_stage(ds, ranks.world_size)))
    say(
        f"{config.output}: {parameter_count(model) / 1e6:.1f} M parameters, {counted(len(parts.heads), 'head')}, "
        f"{counted(len(parts.rows.train), 'data set')}, {counted(parts.steps, 'step')} of "
        f"{counted(config.passes, 'pass', 'passes')} x {ds['train_batch_size'] // config.passes} rows "
        f"({counted(pieces, 'micro-batch', 'micro-batches')} of {micro} on "
        f"{counted(ranks.world_size, 'process', 'processes')}), {settled.precision}, {padding.mode} padding, "
        f"ZeRO {stage}",
        *([] if stage == asked else [f"ZeRO {stage}, not {asked}: one process has nobody to share weights with"]),
        *(f"filled in: {note}" for note in settled.filled),
        *notes,
    )
    seed = config.seed + 1 + ranks.rank  # dropout differs between ranks
    views = config.freelb.steps if config.freelb else 1
    engine = start(model, ds, config, steps=parts.steps, seed=seed, views=views)
    if isinstance(parts.teachers, AverageTeacher):
        parts.teachers.follow(engine)
    return engine


def build_generator(
    config: RoadConfig, parts: Parts, ranks: Ranks, padding: Padding, student: Any, first: int
) -> Generator | None:
    """The generator of a run from step `first` on, under its engine; None where there is none."""
    settings, train, ds = adversarial_of(parts.settled.objective), parts.rows.train, parts.settled.ds
    if settings is None or parts.generator is None:
        return None
    assert isinstance(parts.teachers, OnlineTeachers)
    micro = student.train_micro_batch_size_per_gpu()
    vocabulary = Vocabulary.of(parts.tokenizer, ranks.device)
    passes = rows_of_generator(config, ds["train_batch_size"], train, parts.teachers.teachers)
    steps = settings.steps(first, parts.steps)
    batches = ahead(assemble(passes, train, padding, ranks, micro, steps))
    engine = start_generator(parts.generator, ds, settings, config.seed + 1 + ranks.rank)
    say(
        f"generator: {parameter_count(parts.generator) / 1e6:.1f} M parameters, {counted(len(steps), 'step')} of its own"
    )
    return Generator(engine, settings, vocabulary, batches, student, parts.teachers, parts.heads.of, ranks, config.seed)


def go_on(engine: Any, beside: Engines, ranks: Ranks, folder: RunFolder, found: Checkpoint, keep: int) -> None:
    """Makes engines and folder of a resumed run what they were then; `keep` checkpoints stay."""
    restore(engine, ranks, found, beside)
    follow_schedule(engine)
    if is_main():  # a run killed after its last save has not got to it
        prune(found.folder.parent, keep)
    ranks.apart(lambda: folder.forget(lambda line: line["step"] > found.step))
    say(f"resumed from {found.folder.name}")


@spared_output()
def trained(
    config: Settings, *, resume: bool = False, extend: bool = False, overwrite: bool = False, **overrides: Any
) -> Run:
    """The finished run of a file, or of what would stand in one, on this process alone: what the command does, for Python.

    overrides: settings by name; those of the "road" block without it (steps=20), inner ones as **{"optimizer.params.lr": 1e-4};
    resume, extend, overwrite: as on the command line. RoadError for what a user can mend. A request to stop (Ctrl-C, SIGTERM)
    takes effect when the run has saved.
    """
    print_anywhere()
    quiet_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RoadError("train() is for one process: start several with deepspeed road_ds/train.py")
    folder: RunFolder | None = None
    with warnings.catch_warnings(), environment_restored(), Preemption() as preemption:
        try:
            surroundings.working_folder()
            road, ds = load_config(config, assignments(overrides))
            ranks, folder = opened(road, resume=resume, extend=extend, overwrite=overwrite)
            reason = carried_out(road, ds, ranks, folder, preemption, resume=resume, extend=extend)
        except (Exception, Terminated) as error:
            with preemption.held():
                if folder is not None:
                    status, why, _ = ending(error)
                    tell(folder, status, why)
                    folder.release()
            if not isinstance(error, Terminated):
                raise
            reason = str(error)
    gc.collect()  # the engine, and what it holds of the GPU's memory
    if reason:
        signal.raise_signal(exit_code(reason) - 128)
        raise RoadError(f"{reason}; go on with resume=True")
    assert folder is not None
    return Run.of(folder.path)


@contextlib.contextmanager
def environment_restored() -> Iterator[None]:
    """Takes away the variables of a run's process that were not there: other libraries take them for a launcher's."""
    before = {*os.environ}
    try:
        yield
    finally:
        for name in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - before:
            os.environ.pop(name, None)


class Door(ModuleType):
    """This module, which may be called: `road_ds.train` is its name and the function's, whichever was imported first."""

    __call__ = staticmethod(trained)


train = sys.modules[__name__]
train.__class__ = Door


if __name__ == "__main__":
    code = main()
    heartbeat.leave(code)
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()
    sys.exit(code)
