"""How many forward passes a step has, with road.join_micro_batches and without: counted from the plan, on any machine.

    python benchmarks/count_passes.py

electra-large's benchmark: 512 rows a step, of the lengths in length_mix.py. "full" is a step's tokens by those of the heaviest
micro-batch that can come, the fewest passes that could hold them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from length_mix import write_mix
from measure import table
from presets import LONGEST, PRESETS
from providers import Case, Rows

from road_ds.common.ranks import Ranks
from road_ds.data.batches import heaviest, readings, shares

COLUMNS = ["micro-batch", "micro-batches", "passes", "least", "most", "full"]


def counted(rows: Rows, micro: int, steps: int) -> dict[str, Any]:
    """A row of the table: over so many steps."""
    lengths = {name: source.lengths for name, source in rows.sources.items()}
    most, passes, full = max(heaviest(own, micro) for own in lengths.values()), [], []
    for step in range(steps):
        sizes = [
            size for taken in rows.passes.draw(step) for size in shares(lengths[taken.dataset][taken.rows], micro, 1)
        ]
        passes.append(len({*readings(sizes, most, micro)}))
        full.append(sum(tokens for tokens, _ in sizes) / most)
    return {
        "micro-batch": micro, "micro-batches": len(sizes), "passes": np.mean(passes), "least": min(passes), "most": max(passes),
        "full": np.mean(full),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--micro", type=int, action="append", help="rows per micro-batch; may be given more than once")
    options = parser.parse_args(arguments)
    preset = PRESETS["electra-large"]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_mix(scratch / "mix", 2048, LONGEST, preset.config["vocab_size"])
        rows = Rows.of(Case(preset, "fp32", "wall", ["free"], [0], 0, scratch), Ranks.start())
        print(table([counted(rows, micro, options.steps) for micro in options.micro or (16, 32, 64, 128)], COLUMNS))


if __name__ == "__main__":
    main()
