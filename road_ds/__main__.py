"""Everything that is not training: python -m road_ds check | teach | recipe | compare | evaluate | predict | ... (--help)."""

import argparse
import os
import sys
import traceback

from road_ds.commands import (
    check,
    compare,
    datasets,
    evaluate,
    export,
    launch,
    neighbours,
    predict,
    push,
    recipe,
    score,
    sweep,
    teach,
    tokenizer,
)
from road_ds.common.errors import RoadError, Terminated, readable
from road_ds.common.log import is_main, print_anywhere, quiet_libraries
from road_ds.common.strict_json import half_character, quote
from road_ds.engine.surroundings import working_folder

COMMANDS = (
    check, neighbours, teach, evaluate, predict, datasets, tokenizer, export, push, recipe, sweep, compare, score, launch,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m road_ds", description="Everything around training.", allow_abbrev=False
    )
    root.add_argument("--debug", action="store_true", help="shows tracebacks of errors")
    root.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return root


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 2 for a fault the user can mend, or that of a recipe's run that failed."""
    print_anywhere()
    options = parser().parse_args(arguments)
    quiet_libraries()
    try:
        working_folder()
        if (text := half_character(vars(options))) is not None:
            raise RoadError(f"{quote(text)} on the command line is not UTF-8: rename the file, or type the text again")
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except Terminated:
        return 143  # as a process that ended on SIGTERM
    except KeyboardInterrupt:
        return 130  # as a process that ended on SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a process that ended on SIGPIPE
    except (RoadError, OSError) as error:
        if not readable(error):
            raise
        if options.debug:
            traceback.print_exc()
        if is_main():
            print(f"error: {readable(error)}", file=sys.stderr)
        return getattr(error, "code", RoadError.code)


if __name__ == "__main__":
    code = main()
    # only `teach` has several processes, and only there torch is loaded for sure
    if "road_ds.common.heartbeat" in sys.modules:
        from road_ds.common.heartbeat import leave

        leave(code)
    sys.exit(code)
