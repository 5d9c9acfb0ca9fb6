"""Multi-task pretraining under DeepSpeed: config -> parts -> fit -> evaluate -> export.

deepspeed road_ds/train.py --deepspeed_config ds_configs/mtl.json [--set KEY=VALUE ...] [--resume | --overwrite]
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: `import datasets` must not look for files beside this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import contextlib
import shlex
import time
import traceback
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from road_ds import checkpoint, evaluation, export, heartbeat, optim, speed, surroundings
from road_ds.config import RoadConfig, fit_batch, fit_optimizer, fit_precision, load_config
from road_ds.data.batches import Padding
from road_ds.data.features import FeatureSet, load_features
from road_ds.data.passes import Passes, draw_weights
from road_ds.errors import Faults, RankError, RoadError, Terminated
from road_ds.hub import trained_heads
from road_ds.log import counted, is_main, plot_curves, quiet_libraries, say, spared_output, table, versions, warn
from road_ds.loop import fit
from road_ds.model import base_config, build_model, check_lengths, load_tokenizer, parameter_count
from road_ds.objectives import Taught, objective_from
from road_ds.preemption import Preemption, exit_code
from road_ds.ranks import Ranks
from road_ds.run_folder import RunFolder, full_disk_named
from road_ds.selection import Best
from road_ds.strict_json import flat_keys
from road_ds.tasks import Task, heads
from road_ds.teachers import OnlineTeachers, open_teachers

OWN = {"road.cache", "road.output"}  # what each host may have its own of

# What a resumed run may change: nothing here decides on rows, weights or rates.
CHANGEABLE = {
    *("road." + key for key in ("evaluate_every", "evaluate_batch_size", "log_every", "save_every", "keep")),
    *("road." + key for key in ("output", "cache", "max_skipped_steps", "step_timeout")),
    *("road." + key for key in ("padding", "compile", "activation_checkpointing")),
    *("road." + key for key in ("gradient_cosine_every", "distill.cache", "distill.on_mismatch")),
    *("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "tensorboard", "wandb", "csv_monitor", "comet"),
    *("steps_per_print", "timers", "wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger"),
    "log_level",
}


@spared_output()
def main(arguments: list[str] | None = None) -> int:
    """The exit code of a run: 0 finished, 2 a fault the user can mend, 143 or 130 preempted, 1 anything else."""
    options = parse(arguments)
    quiet_libraries()
    with Preemption() as preemption:
        return attempt(options, preemption)


def attempt(options: argparse.Namespace, preemption: Preemption) -> int:
    """The exit code of a run, whose end is told whatever it is."""
    folder: RunFolder | None = None
    alone = False
    try:
        config, ds = load_config(options.deepspeed_config, options.set)
        ranks = Ranks.start(config.step_timeout)
        folder = ranks.together(lambda: RunFolder.open(config, resume=options.resume, overwrite=options.overwrite))
        if ranks.heartbeat:
            ranks.heartbeat.tell = partial(tell, folder, "failed")
        folder.status("running", 0)
        with full_disk_named(folder.path):
            step, reason = run(config, ds, ranks, folder, preemption, resume=options.resume)
        folder.status("preempted" if reason else "finished", step, reason)
        ranks.leave()
        folder.release()
        return exit_code(reason) if reason else 0
    except RoadError as error:
        alone = isinstance(error, RankError)
        if alone or is_main():
            print(f"error: {error}", file=sys.stderr, flush=True)
        if options.debug:
            traceback.print_exc()
        status, why, code = "failed", str(error), 2
    except Terminated as stop:
        alone = True  # one process may have been asked
        say(str(stop))
        status, why, code = "preempted", str(stop), exit_code(str(stop))
    except Exception as error:
        status, why, code = "failed", f"{type(error).__name__}: {error}", 1
        if folder is None or not folder.has_ended():  # a process that ended takes the others along
            traceback.print_exc()
    if folder is not None:
        tell(folder, status, why, alone)
        folder.release()
    return code


def tell(folder: RunFolder, status: str, why: str, everywhere: bool = True) -> None:
    """Says in status.json how a run ended, where no process has said it."""
    if not folder.has_ended():
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
    existing.add_argument("--overwrite", action="store_true", help="removes the run folder and starts anew")
    parser.add_argument("--debug", action="store_true", help="shows tracebacks of configuration and data errors")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    return parser.parse_args(arguments)


def run(
    config: RoadConfig, ds: dict[str, Any], ranks: Ranks, folder: RunFolder, preemption: Preemption, *, resume: bool
) -> tuple[int, str]:
    """Steps done, and why the run stopped early ("" when it did not).

    Nothing but the folder's id, its lock and status.json is written, and nothing of an overwritten run removed, before
    all that can be wrong with settings, model and data has been looked at.
    """
    began = time.monotonic()
    faults = Faults()
    capability = torch.cuda.get_device_capability() if ranks.device.type == "cuda" else None
    settled = settle(config, ds, ranks.world_size, ranks.device.type, capability, faults)
    faults.end()
    tasks, objective, precision, filled = settled
    for note in surroundings.notes():
        warn(note)

    tokenizer = ranks.together(lambda: load_tokenizer(config.model))
    check_lengths(base_config(config.model, tokenizer, config.dropout), tasks)
    train, dev = ranks.together(lambda: load_data(config, tasks, tokenizer, verify=ranks.local_rank == 0))
    teachers = ranks.together(lambda: open_teachers(config, objective, tasks, train, tokenizer, ranks))
    passes, steps = plan(config, ds, train)
    block = "auto" if precision in ds else precision  # DeepSpeed's block says it already
    resolved = {**ds, "road": {**config.model_dump(), "steps": steps, "epochs": None, "precision": block}}
    saved = {**resolved, "data": fingerprints(train)}
    if teachers.identity:
        saved["teachers"] = teachers.identity
    ranks.agree({key: value for key, value in flat_keys(saved).items() if key not in OWN})
    found = ranks.together(lambda: resumable(folder, saved)) if resume else None
    for name, spec in config.datasets.items():
        if spec.dev is None:
            warn(f"{name}: no dev part: it will not be evaluated")
    for name, source in [*train.items(), *dev.items()]:
        if skipped := source.manifest["skipped"]:
            warn(f"{name}: {len(skipped)} bad rows were skipped, the first: {skipped[0]}")

    model = build_model(config.model, tasks, tokenizer, dropout=config.dropout, seed=config.seed)
    if isinstance(objective, Taught) and objective.hidden and isinstance(teachers, OnlineTeachers):
        model.project(*teachers.compare_hidden(objective.hidden, model.encoder.config.num_hidden_layers))
    mode, notes = speed.prepare(model, config, ds, ranks.device.type, capability, precision)
    limits = {name: tasks[config.head_of(name)].max_length for name in train}
    padding = Padding(mode, tokenizer.pad_token_id, limits)
    ranks.apart(lambda: folder.begin(resolved, anew=found is None))
    pieces, micro = ds["gradient_accumulation_steps"], ds["train_micro_batch_size_per_gpu"]
    say(
        f"{config.output}: {parameter_count(model) / 1e6:.1f} M parameters, {counted(len(tasks), 'head')}, "
        f"{counted(len(train), 'data set')}, {counted(steps, 'step')} of {counted(config.passes, 'pass', 'passes')} x "
        f"{ds['train_batch_size'] // config.passes} rows ({counted(pieces, 'micro-batch', 'micro-batches')} of {micro} on "
        f"{counted(ranks.world_size, 'process', 'processes')}), {precision}, {mode} padding, ZeRO {ds['zero_optimization']['stage']}",
        *(f"filled in: {note}" for note in filled),
        *notes,
    )
    torch.manual_seed(config.seed + 1 + ranks.rank)  # dropout differs between ranks
    schedule = optim.scheduler(steps, config.warmup, config.schedule)
    engine = speed.start_engine(model, ds, config.layer_lr_decay, schedule)
    start = 0
    if found is not None:
        checkpoint.restore(engine, ranks, found)
        start = found.step
        # an evaluation after the last step is made again
        ranks.apart(
            lambda: folder.forget(lambda line: line["step"] > start or (line["step"] == steps and "loss" not in line))
        )
        say(f"resumed from {found.folder.name}")

    of = {name: (config.head_of(name), tasks[config.head_of(name)]) for name in train}

    best = Best(folder.path / "best", folder.run)

    def evaluate(step: int) -> dict[str, evaluation.Evaluated]:
        scores = evaluation.evaluate(
            engine, dev, of, ranks, pad_id=tokenizer.pad_token_id, batch_size=config.evaluate_batch_size
        )
        if scores:
            folder.record({"step": step, **evaluation.flat(scores)})
        if config.select == "best":
            best.offer(engine, ranks, step, scores)
        return scores

    def save(step: int) -> bool:
        try:
            checkpoint.save(
                engine, ranks, folder.path / "checkpoints", run=folder.run, step=step, config=saved, keep=config.keep
            )
        except OSError as error:
            warn(f"step {step}: {error}; older checkpoints are kept")
            return False
        return True

    step, reason = fit(
        engine, passes, train, teachers, objective, ranks, config,
        steps=steps, start=start, padding=padding, folder=folder, preemption=preemption,
        evaluate=evaluate, save=save,
    )  # fmt: skip
    if reason:
        say(f"{reason} after step {step}; go on with --resume")
        return step, reason
    scores = evaluate(step)
    state = export.full_state(engine)

    @full_disk_named(folder.path)
    def finish(scores: dict[str, evaluation.Evaluated], state: dict[str, torch.Tensor]) -> None:
        chosen = step
        if config.select == "best":
            chosen, scores, state = best.load()
            say(f"exporting step {chosen} of {step}: its mean headline metric is the highest")
        card = evaluation.report(scores)
        exported = export.export(model, state, tokenizer, folder.path / "model", f"Dev scores:\n\n```\n{card}\n```")
        evaluation.write_results(folder.path, scores, {
            "step": step,
            "exported_step": chosen,
            "best": {name: highest(folder, f"{name}/{result.headline}") for name, result in scores.items()},
            "wall_seconds": round(time.monotonic() - began, 1),
            "world_size": ranks.world_size,
            "device": torch.cuda.get_device_name() if capability else "cpu",
            "precision": precision,
            "padding": mode,
            "seed": config.seed,
            "data": {"train": fingerprints(train), "dev": fingerprints(dev)},
            "teachers": teachers.identity,
            "versions": versions(),
        })  # fmt: skip
        headlines = [f"{name}/{result.headline}" for name, result in scores.items()]
        plot_curves(folder.records(), headlines, folder.path / "curves.png")
        say("", card, "", *closing(folder.path, exported, config, {**train, **dev}, time.monotonic() - began))

    ranks.apart(lambda: finish(scores, state) if is_main() else None)
    return step, ""


def highest(folder: RunFolder, metric: str) -> dict[str, Any]:
    """The highest value of a metric over a run's evaluations, and its step."""
    values = [(line[metric], line["step"]) for line in folder.records() if metric in line]
    value, step = max(values, key=lambda pair: pair[0])
    return {"metric": metric, "value": value, "step": step}


def settle(
    config: RoadConfig,
    ds: dict[str, Any],
    world_size: int,
    device: str,
    capability: tuple[int, int] | None,
    faults: Faults,
) -> tuple[dict[str, Task], Any, str, list[str]]:
    """Heads, objective, precision, and a line for each setting filled into `ds`, whose sizes are fitted; what does not
    hold is collected and left out."""
    objective, precision, filled = None, "fp32", []
    tasks = heads(config, faults)
    with faults.caught():
        objective = objective_from(config)
    if "train_batch_size" in ds:
        with faults.caught():
            ds |= fit_batch(ds, config.passes, world_size)
    with faults.caught():
        precision = fit_precision(ds, config.precision, device, capability)
    with faults.caught():
        filled = fit_optimizer(ds, device)
    if config.gradient_cosine_every and ds["zero_optimization"]["stage"] == 3:
        faults.add(
            "road.gradient_cosine_every: not under ZeRO 3, whose weights are partitioned: use zero_optimization.stage 2 "
            "or less, or 0 here"
        )
    return tasks, objective, precision, filled


def load_data(
    config: RoadConfig, tasks: dict[str, Task], tokenizer: Any, faults: Faults | None = None, verify: bool = True
) -> tuple[dict[str, FeatureSet], dict[str, FeatureSet]]:
    """The features of every data set's train part, and of the dev parts that are given. All faults are raised together,
    or collected in `faults`."""
    own, train, dev = faults or Faults(), {}, {}
    for name, spec in config.datasets.items():
        task = tasks.get(config.head_of(name))
        if task is None:
            continue
        with own.caught():
            train[name] = load_features(name, "train", spec, task, tokenizer, config.cache, verify)
        if spec.dev is not None:
            with own.caught():
                dev[name] = load_features(name, "dev", spec, task, tokenizer, config.cache, verify)
    if faults is None:
        own.end()
    return train, dev


def plan(config: RoadConfig, ds: dict[str, Any], train: dict[str, FeatureSet]) -> tuple[Passes, int]:
    """The data plan, and the number of steps."""
    lengths = {name: np.asarray(source.lengths) for name, source in train.items()}
    sizes = {name: len(values) for name, values in lengths.items()}
    weights = draw_weights(config, sizes)
    rows = ds["train_batch_size"] // config.passes
    window = config.length_window
    passes = Passes(lengths, weights, passes=config.passes, rows=rows, seed=config.seed, window=window)
    steps = config.steps or max(1, round((config.epochs or 1) * sum(sizes.values()) / ds["train_batch_size"]))
    return passes, steps


def fingerprints(sources: dict[str, FeatureSet]) -> dict[str, str]:
    """The content hash of every data set: rows, reader settings, tokenizer, task settings."""
    return {name: source.manifest["key"] for name, source in sources.items()}


def resumable(folder: RunFolder, wanted: dict[str, Any]) -> checkpoint.Checkpoint:
    """The checkpoint to go on from. RoadError that shows the difference when the run's settings or rows have changed."""
    found = checkpoint.newest(folder.path / "checkpoints", folder.run)
    before, now = flat_keys(found.manifest.config), flat_keys(wanted)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    refused = [key for key in changed if not any(key == k or key.startswith(k + ".") for k in CHANGEABLE)]
    if refused:
        rows = [(key, before.get(key, "-"), now.get(key, "-")) for key in refused]
        raise RoadError(
            "a resumed run must keep its rows and the settings that decide on weights and rates; these differ:\n"
            + table(rows, ("key", "saved", "now"))
            + "\nset them back, or start another run with road.output"
            + (f" that goes on from this one's model: {lengthened(folder)}" if "road.steps" in refused else "")
        )
    return found


def lengthened(folder: RunFolder) -> str:
    """What to set so that a run with more steps begins with a run's weights: its own schedule ends where it was told to."""
    setting = f"road.model={folder.path}"
    return setting if trained_heads(str(folder.path)) else f"python -m road_ds export {folder.path}, then {setting}"


def closing(
    folder: Path, exported: list[Path], config: RoadConfig, sources: dict[str, FeatureSet], seconds: float
) -> list[str]:
    """The last lines of a run: where things are, and a prediction to try next."""
    source = next(source for name, source in sources.items() if config.head_of(name) == exported[0].name)
    # one of the first rows, of about a line
    example = min(islice(source.examples(), 1000), key=lambda e: abs(80 - len(e.text_a + (e.text_b or ""))))
    texts = ["--text", example.text_a, *(["--pair", example.text_b] if example.text_b is not None else [])]
    return [
        f"{seconds:.0f} s. Results: {folder / 'results.json'}, {folder / 'metrics.jsonl'}, {folder / 'curves.png'}",
        "Models: " + ", ".join(map(str, exported)),
        f"Next: python -m road_ds predict {exported[0]} {shlex.join(texts)}",
    ]


if __name__ == "__main__":
    code = main()
    heartbeat.leave(code)
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()
    sys.exit(code)
