"""The two errors that are written for people: one line, what was found, what to type next."""


class UsageError(ValueError):
    """A bad argument, key or value. The `wm` command prints it and exits with 2."""


class StageError(RuntimeError):
    """A stage failed or an artefact is missing or damaged. The `wm` command prints it and exits with 1."""
