"""Runs one after the other in the same processes: python several_runs.py FILE..., the first exit code that is not 0."""

import sys

from road_ds import train
from road_ds.common import heartbeat

for file in (argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")):
    if code := train.main(["--deepspeed_config", file]):
        heartbeat.leave(code)
        sys.exit(code)
heartbeat.leave(0)
