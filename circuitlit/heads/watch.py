"""How long loops over heads let their progress be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Gives back the items one by one and may say how far it is; the text says what is being done.
Watch = Callable[[Sequence[Any], str], Iterable[Any]]


def unwatched(items: Sequence[Any], text: str) -> Iterable[Any]:
    """The items, without a word."""
    return items
