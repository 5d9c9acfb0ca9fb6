"""pytest in Triton's interpreter, on CPU tensors: python tests/interpreted.py -n 0 tests/test_kd_loss.py

At each call of a device function the interpreter goes through the whole of triton.language again, to exchange what it has
exchanged already: a third of its time. Once for each module of device code and kernel started is enough.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported

from triton.runtime import interpreter


def exchanged_once() -> None:
    """Has a start of a kernel exchange the language's functions once for each module that its device functions stand in."""
    start, exchange = interpreter.GridExecutor.__call__, interpreter._patch_lang
    done: set[str] = set()

    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        done.clear()
        start(self, *args, **kwargs)

    def exchanged(function: Callable) -> Any:
        """What the kernel's own exchange is undone by; a device function's is never asked for."""
        if function.__module__ in done:
            return None
        done.add(function.__module__)
        return exchange(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = started, exchanged


if __name__ == "__main__":
    exchanged_once()
    sys.exit(pytest.main())
