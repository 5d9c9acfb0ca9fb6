"""A room's public names, each imported when it is asked for: a command that needs one file of a room loads that one."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def exports(room: str, **names: str) -> tuple[Callable[[str], Any], list[str]]:
    """A package's `__getattr__` (PEP 562) and `__all__`. names: by file, its public names with spaces between."""
    home = {name: file for file, line in names.items() for name in line.split()}

    def lookup(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(f"{room}.{home[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return lookup, sorted(home)
