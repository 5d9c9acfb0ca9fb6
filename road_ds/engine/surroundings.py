"""What lies around a run and would change or stop it unseen: one sentence each, to be printed as a warning."""

import os
import time
from pathlib import Path

from road_ds.common.errors import RoadError

STALE = 600  # seconds; compiling an extension takes one or two minutes


def notes() -> list[str]:
    """All that was found around this process."""
    return [*exported_by_launcher([Path.cwd(), Path.home()]), *stale_locks(extensions_folder())]


def working_folder() -> None:
    """RoadError where the folder in which this process was started is no more."""
    try:
        Path.cwd()
    except OSError:
        raise RoadError("the working folder has been removed: change to one that is there") from None


def exported_by_launcher(folders: list[Path]) -> list[str]:
    """The variables that DeepSpeed's launcher sets on every host, where one of the folders has a file that says so."""
    found = []
    for folder in dict.fromkeys(folders):
        path = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            names = [line.partition("=")[0].strip() for line in lines if line.strip()]  # the values may be secrets
            found.append(f"{path} makes the launcher export to every host: {', '.join(names) or 'nothing'}")
    return found


def stale_locks(folder: Path) -> list[str]:
    """Locks that a killed process left where torch compiles its extensions: the next to need one waits for ever."""
    locks = [path for depth in ("*/lock", "*/*/lock") for path in sorted(folder.glob(depth))]
    ages = {path: _age(path) for path in locks}
    return [
        f"{path} is {age / 60:.0f} minutes old: if nothing is being compiled, remove it, or the run may wait for ever"
        for path, age in ages.items()
        if age > STALE
    ]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # released in the meantime
        return 0.0


def extensions_folder() -> Path:
    """Where torch compiles extensions to."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"
