"""The one exception that a user is meant to read."""


class RoadError(Exception):
    """A fault the user can mend: says what came, what was expected and what to change.

    Commands print it without a traceback and end with exit code 2.
    """


class RankError(RoadError):
    """A fault that only one process of a run knows of: that process speaks, whichever it is."""
