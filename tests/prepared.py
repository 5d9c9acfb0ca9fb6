"""Imported last by the process that others are forked from."""

import atexit
import gc

from sketch import sketched

from road_ds.engine import curves

curves._write = sketched
gc.collect()
gc.freeze()  # what is there by now is shared, and out of their searches for cycles
atexit.register(gc.unfreeze)  # so that what libraries hold can be freed, as they expect
