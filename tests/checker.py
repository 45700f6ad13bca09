"""Checks every annotation under pytest; an int passes for a float, as PEP 484 says.

A check is compiled when its function is first called: compiling all of them takes longer than most tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Self

from beartype import BeartypeConf, beartype

_compiled = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Any) -> Any:
    if isinstance(function, type):
        return _compiled(function)
    ready: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not ready:  # beartype knows `Self` only in a class that it sees whole
            hints = getattr(function, "__annotations__", {})
            function.__annotations__ = {name: hint for name, hint in hints.items() if hint not in (Self, "Self")}
            ready.append(_compiled(function))
        return ready[0](*args, **kwargs)

    return call
