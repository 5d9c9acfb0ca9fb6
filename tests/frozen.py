"""Imported last: leaves what is there already out of the searches for cycles of the processes that are forked from here."""

import atexit
import gc

gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)
