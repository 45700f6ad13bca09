"""What every verb writes and prints on tiny models (tests/golden/), recorded when every verb had become a function.

    uv run pytest -m golden -n 2                     # compare
    CIRCUITLIT_RECORD=1 uv run pytest -m golden -n 2 # write anew, after a change that is meant: see `git diff` then

Numbers agree to 1e-6, everything else exactly. Times, paths, versions and hashes are left out. How pytest is called and
where its temporary folder lies make no difference: no line is long enough to wrap.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_cases import CASES, Case
from golden_outputs import printed_lines, written_files
from rich.console import Console, ConsoleOptions
from rich.table import Table
from test_evolve import series  # noqa: F401
from test_intervene import tuned  # noqa: F401
from test_knowledge import reader  # noqa: F401

from circuitlit import progress

STORED = Path(__file__).parent / "golden"
TOLERANCE = 1e-6
WIDTH = 1000  # of the terminal
# Key paths that have another name now, by case or "*": old path -> new one, or None where the key is gone; "FILE:path"
# is of one file.
RENAMED: dict[str, dict[str, str | None]] = {}
# Printed lines that read otherwise now, by case: old line -> new one or several, or None.
REWORDED: dict[str, dict[str, str | None]] = {}

# Of these only the paths are stored: other files, or other cases, say the same.
TOLD = {"story": re.compile(r"^parts/|/evolve/|/intervene/"), "several": re.compile(r"^[01]/(result|report|history)")}


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_has_changed(
    case: Case,
    request: pytest.FixtureRequest,
    local: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress.CONSOLE, "_width", WIDTH)
    monkeypatch.setattr(Table, "__rich_console__", _wide(Table.__rich_console__))
    monkeypatch.setattr(sys, "argv", ["circuitlit"])  # pages name the command
    case(request, local, tmp_path)
    found = {
        "printed": printed_lines(capsys.readouterr().out, tmp_path),
        "files": written_files(tmp_path, TOLD.get(case.__name__)),
    }
    path = STORED / f"{case.__name__}.json"
    if os.environ.get("CIRCUITLIT_RECORD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    differing = list(differences(case.__name__, json.loads(path.read_text()), found))
    assert not differing, "\n".join(differing[:40])


def _wide(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Tables so wide that a path in a title is never broken."""

    def wide(table: Table, console: Console, options: ConsoleOptions) -> Any:
        table.min_width = WIDTH
        return draw(table, console, options)

    return wide


def differences(case: str, old: dict[str, Any], new: dict[str, Any], listed: bool = True) -> Iterator[str]:
    """What differs, with its place; keys that are new are no difference, those that were renamed are listed."""
    renamed, reworded = (own.get("*", {}) | own.get(case, {}) if listed else {} for own in (RENAMED, REWORDED))
    expected = [reworded.get(line, line) for line in old["printed"]]
    lines = [part for line in expected if line is not None for part in line.split("\n")]
    yield from _apart("printed", lines, new["printed"], {})
    for name, content in old["files"].items():
        if name not in new["files"]:
            yield f"{name} is not written"
        else:
            yield from _apart(name, content, new["files"][name], renamed)


def _apart(place: str, old: Any, new: Any, renamed: dict[str, str | None]) -> Iterator[str]:
    number = isinstance(old, int | float) and isinstance(new, int | float)
    if number and not isinstance(old, bool):
        if not math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{place}: {old} is now {new}"
    elif isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            whole = f"{place}.{key}" if ":" in place else f"{place}:{key}"
            moved = renamed.get(whole, renamed.get(whole.split(":", 1)[1], renamed.get(f"*.{key}", key)))
            if moved is None or (value is None and moved not in new):
                continue
            moved = key if moved == key else moved.rsplit(".", 1)[-1]
            if moved not in new:
                yield f"{place}: '{key}' is gone"
            else:
                yield from _apart(whole, value, new[moved], renamed)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{place}: {len(old)} entries are now {len(new)}: {_first_apart(old, new)}"
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from _apart(f"{place}[{number}]", one, other, renamed)
    elif old != new:
        yield f"{place}: {_first_apart(str(old), str(new))}"


def _first_apart(old: Any, new: Any) -> str:
    at = next((place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), 0)
    before = max(0, at - 40) if isinstance(old, str) else at
    return f"...{old[before : at + 60]!r} is now {new[before : at + 60]!r}"


@pytest.mark.parametrize("case", sorted(path.stem for path in STORED.glob("*.json")))
def test_a_planted_change_is_seen(case: str) -> None:
    """Each file with another number, without a key, not written; each printed line with a letter more: all named."""
    stored = json.loads((STORED / f"{case}.json").read_text())
    assert not list(differences(case, stored, copy.deepcopy(stored), listed=False))
    for name, content in stored["files"].items():
        for planted in [{}, *({name: changed} for changed in _spoilt(content))]:
            old, new = ({"printed": [], "files": one} for one in ({name: content}, planted))
            found = list(differences(case, old, new, listed=False))
            assert found and all(line.startswith(name) for line in found), (name, found)
    for place in range(len(stored["printed"])):
        changed = [line + "!" * (number == place) for number, line in enumerate(stored["printed"])]
        (found,) = differences(case, {**stored, "files": {}}, {"printed": changed, "files": {}}, listed=False)
        assert found.startswith(f"printed[{place}]")


def _spoilt(content: Any) -> list[Any]:
    """Copies: one with its last number a ten-thousandth off, one without its first entry that says something."""
    if isinstance(content, str):
        return [content[:-9] + "elsewhere"]
    named = [key for key, value in content.items() if value is not None] if isinstance(content, dict) else []
    shorter = {key: content[key] for key in content if key != named[0]} if named else content[1:] if content else None
    changed = copy.deepcopy(content)
    return [changed] * _spoil(changed) + [shorter] * bool(content)


def _spoil(content: Any) -> bool:
    """Change the last number that is found."""
    inner = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in reversed(inner):
        if isinstance(value, dict | list) and _spoil(value):
            return True
        if isinstance(value, int | float) and not isinstance(value, bool):
            content[key] = value * (1 + 1e-4) + 1e-5
            return True
    return False
