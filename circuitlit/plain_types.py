"""Between dataclasses and plain types."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_Kind = TypeVar("_Kind")


def converter_of(kind: type[_Kind]) -> TypeAdapter[_Kind]:
    """Makes a type plain, and of plain types again.

    Older versions of pydantic (2.7) look for the names in a dataclass's annotations in the module that asks ahead of
    the dataclass's own, so that a class of the same name there takes the place of the one that is meant. Here is none.
    """
    return _converter(kind)


@cache
def _converter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
