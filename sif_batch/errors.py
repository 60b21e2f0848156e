"""Errors for a person to read: what happened, what to do about it, and the exit code."""

from typing import Any


class SifBatchError(ValueError):
    """A failure that names the value and what was expected; `remedy` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(message)
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:  # crosses the child's pipe with its remedy
        return type(self), (str(self), self.remedy)


class BusyError(SifBatchError):
    """Another process holds ROOT."""

    exit_code = 4
