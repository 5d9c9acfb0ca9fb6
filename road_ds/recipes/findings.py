"""What a sweep has found: its trials as a table and a picture, and the best configuration as a run's file."""

import json
from pathlib import Path
from typing import Any

from road_ds.common.log import table, write_json
from road_ds.common.plots import plain
from road_ds.recipes.recipe import Run
from road_ds.recipes.study import Study
from road_ds.recipes.sweep import Range, raw
from road_ds.recipes.trials import name_of, shown

ENDED = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "at work"}
COLUMNS = 4  # pictures in a row


def short(keys: list[str]) -> dict[str, str]:
    """Each dotted key by its last words, as few as tell the keys apart."""
    found = {}
    for key in keys:
        words = key.split(".")
        ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        found[key] = next(
            end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1 or end == key
        )
    return found


def report(study: Study) -> str:
    """The trials as a table."""
    names, best = short(list(study.space)), study.best()
    rows = []
    for trial in study.trials:
        values = study.values(trial)
        ended = "best" if best is not None and trial.number == best.number else ENDED[trial.state.name]
        score = f"{trial.value:.2f}" if trial.state.name == "COMPLETE" else "-"
        rows.append((name_of(trial), ended, score, *(shown(values[key]) for key in names)))
    return table(rows, ("trial", "ended", "score", *names.values()))


def write_best(run: Run, output: Path) -> Path:
    """Writes best.json, the configuration of a run with a folder of its own, and returns its path."""
    data = raw(run)
    data["road"]["output"] = str(output / "best")
    write_json(output / "best.json", data)
    return output / "best.json"


def plot(study: Study, path: Path) -> None:
    """Draws the scores by trial, and by the values of each key. A trial that was stopped early is hollow, at its last score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    scored = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED") and trial.value is not None]
    names = short(list(study.space))
    across = min(COLUMNS, len(names) + 1)
    down = -(-(len(names) + 1) // across)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(names) + 1 :]:
        axes.set_visible(False)
    draw(panels[0], [trial.number for trial in scored], scored)
    finished = [trial for trial in scored if trial.state.name == "COMPLETE"]
    tops = [max(trial.value for trial in finished[: count + 1]) for count in range(len(finished))]
    panels[0].step(
        [trial.number for trial in finished], tops, where="post", linewidth=1, color="C1", label="best so far"
    )
    panels[0].set(title="score by trial", xlabel="trial")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(fontsize="small")
    for axes, (key, name) in zip(panels[1:], names.items(), strict=False):
        among = study.sweep.search[key]
        if isinstance(among, Range):
            draw(axes, [trial.params[key] for trial in scored], scored)
            if among.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            choices = [json.dumps(choice) for choice in among]
            draw(axes, [choices.index(trial.params[key]) for trial in scored], scored)
            axes.set_xticks(range(len(among)), [plain(shown(choice)) for choice in among], rotation=30, ha="right")
            axes.set_xlim(-0.5, len(among) - 0.5)
        axes.set(title=plain(name))
    figure.savefig(path, dpi=110)


def draw(axes: Any, places: list[Any], trials: list[Any]) -> None:
    """Marks each trial's score at a place."""
    for place, trial in zip(places, trials, strict=True):
        axes.plot(
            [place], [trial.value], "o", color="C0", fillstyle="full" if trial.state.name == "COMPLETE" else "none"
        )
    axes.grid(alpha=0.3)
