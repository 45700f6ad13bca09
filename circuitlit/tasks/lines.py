"""Files of a user's own with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuitlit.errors import UserError


def read_lines(path: str, key: str) -> list[str]:
    """The lines of a file of text.

    Args:
        path: the file.
        key: the setting that names it.

    Raises:
        UserError: it cannot be read, or is not UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file with one object a line: {key}=FILE") from None
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); name a file: {key}=FILE") from None
    if "\0" in text:  # UTF-16 of Latin letters without its mark is UTF-8, too, with a null in each
        raise UserError(f"{path} is not UTF-8 text; save it as such, unpacked")
    return text.split("\n")  # not splitlines(): that also breaks at characters that JSON strings may hold


def object_of(line: str) -> dict[str, Any]:
    """What a line holds.

    Raises:
        UserError: not one JSON object, or a field is there twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=_single)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise UserError(f"not JSON ({reason}); write one object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"a {type(row).__name__} where an object belongs; write one object a line")
    return row


def _single(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; json would keep the last of those with one name."""
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"field '{name}' is there twice; keep one")
    return dict(fields)
