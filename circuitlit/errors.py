"""The errors that are not defects: a user's to mend, and the end that a run was told to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAILED = 3  # exit status of a command with fail=true whose result has that status


class UserError(Exception):
    """A mistake the user can mend; its message is one sentence that says where and what to do."""


class Unchecked(UserError):
    """A model that is not taken before a check of it has passed.

    Attributes:
        reasons: why it needs one, a clause each.
        facts: how it was loaded.
    """

    def __init__(self, name: str, reasons: list[str], facts: dict[str, Any]) -> None:
        super().__init__(f"model {name} needs a check first, because {'; '.join(reasons)}; call check_model on it")
        self.reasons, self.facts = reasons, facts


class Stopped(BaseException):
    """A run was told to end. No Exception, so that nothing that goes on after a failure goes on after this.

    Attributes:
        number: of the signal.
        step: after which training was saved; None outside training.
        during: name and text of the phase that was ended.
        done: names of the phases that were finished.
        result: the file of a result that was saved before.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step
        self.during: tuple[str, str] | None = None
        self.done: tuple[str, ...] = ()
        self.result: Path | None = None


def sentence(error: Exception) -> str:
    """Any error as text, with its kind."""
    return f"{type(error).__name__}: {error}"
