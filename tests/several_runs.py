"""Several trainings, one after the other, in the processes of one launch: python several_runs.py CONFIG..."""

import sys

from road_ds import train
from road_ds.common import heartbeat

codes = [train.main(["--deepspeed_config", path]) for path in sys.argv[1:]]
heartbeat.leave(max(codes))
sys.exit(max(codes))
