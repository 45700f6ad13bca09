"""The errors that are not defects: a user's to mend, and the end that a run was told to make."""


class UserError(Exception):
    """A mistake the user can mend; its message is one sentence that says where and what to do."""


class Stopped(BaseException):
    """A run was told to end. No Exception, so that nothing that goes on after a failure goes on after this.

    Attributes:
        number: of the signal.
        step: after which training was saved; None outside training.
        during: name and text of the phase that was ended.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step
        self.during: tuple[str, str] | None = None


def sentence(error: Exception) -> str:
    """Any error as text, with its kind."""
    return f"{type(error).__name__}: {error}"
