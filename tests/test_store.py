"""Parts that are made once: read with the same settings, made anew with others, tried again after an error."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from circuitlit.store import Failure, Store


@dataclass(frozen=True)
class Figures:
    values: list[float | None]
    names: dict[str, int]


@dataclass(frozen=True)
class Share:
    """Has the name of a class that circuitlit.store has, too."""

    value: float


@dataclass(frozen=True)
class Shares:
    first: Share
    rest: list[Share]


def test_names_in_annotations_are_those_of_their_own_module(tmp_path: Path) -> None:
    kept = Shares(Share(0.25), [Share(0.75)])
    assert Store(tmp_path).made("one", {}, Shares, lambda: kept) == kept == Store(tmp_path).known("one", {}, Shares)


def test_a_part_is_made_once_with_each_settings(tmp_path: Path) -> None:
    calls: list[float] = []

    def made(seed: float, settings: object) -> Figures:
        def work() -> Figures:
            calls.append(seed)
            return Figures([seed, float("nan")], {"one": 1})

        return Store(tmp_path / "parts").made("first", settings, Figures, work)

    first = made(1.0, {"seed": 1, "layers": (1, 2)})
    assert first == Figures([1.0, None], {"one": 1})  # as it is read again: NaN is null in a file
    assert made(2.0, {"layers": [1, 2], "seed": 1}) == first and calls == [1.0]
    assert made(2.0, {"seed": 2, "layers": [1, 2]}).values[0] == 2.0
    assert made(3.0, {"seed": 1, "layers": [1, 2]}).values[0] == 3.0  # one file a name: the last settings'
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["first.json"]


def test_what_was_there_is_forgotten_once_another_is_begun(tmp_path: Path) -> None:
    def stopped() -> Figures:
        raise KeyboardInterrupt  # after it has written over the files that the first one speaks of, say

    store = Store(tmp_path)
    store.made("first", {"seed": 1}, Figures, lambda: Figures([], {}))
    with pytest.raises(KeyboardInterrupt):
        store.made("first", {"seed": 2}, Figures, stopped)
    assert store.known("first", {"seed": 1}, Figures) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": "ok"}'])
def test_a_damaged_or_older_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.made("part", 1, Figures, lambda: Figures([], {}))
    path = tmp_path / "part.json"
    path.write_text(damage or path.read_text().replace("names", "labels"))
    assert store.known("part", 1, Figures) is None
    assert store.made("part", 1, Figures, lambda: Figures([2.0], {})).values == [2.0]


def test_an_error_is_written_down_and_tried_again(tmp_path: Path) -> None:
    store = Store(tmp_path, explain=lambda error: f"explained: {error}")

    def wrong() -> Figures:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.made("part", 1, Figures, wrong)
    assert not list(tmp_path.glob("*.json"))
    assert store.tried("part", 1, Figures, wrong) == Failure("explained: no")
    assert json.loads((tmp_path / "part.json").read_text())["error"] == "explained: no"
    assert store.tried("part", 1, Figures, lambda: Figures([], {})) == Figures([], {})


def test_a_second_maker_waits_for_the_first(tmp_path: Path) -> None:
    calls = []

    def work() -> list[int]:
        calls.append(1)
        time.sleep(0.3)
        return calls

    threads = [threading.Thread(target=lambda: Store(tmp_path).made("part", 1, list[int], work)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
