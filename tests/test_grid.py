"""Tables of the terminal: whole in 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from circuitlit.evaluate.ability import Ability
from circuitlit.report.ability import print_ability
from circuitlit.report.grid import grid


def printed(draw, width: int = 80) -> str:
    stream = io.StringIO()
    draw(Console(file=stream, width=width))
    return stream.getvalue()


def test_nothing_is_cut_off_however_narrow() -> None:
    table = grid("a title", ("method", "task"), ("accuracy", "faithfulness", "reachable"))
    table.add_row("clean_corrupted", "gender_pronoun", "0.123456", "-0.654321", "1,234,567")
    text = printed(lambda console: console.print(table), width=30)
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= 30
    for cell in ("clean_corrupted", "0.123456", "1,234,567"):
        assert set(cell) <= set(text)


def test_what_a_model_does_fits_80_columns() -> None:
    figure = {"value": -0.123, "low": -1.0, "high": 1.0, "low_sentences": None, "high_sentences": None}
    share = figure | {"value": 0.123}
    figures = {"accuracy": share, "corrupted_accuracy": share, "metric": figure, "corrupted_metric": figure}
    row = {"task": "gender_pronoun", "split": "new_words", "n_pairs": 1000, "min_accuracy": 0.5, "reason": None}
    content = {"model": "smollm2", "rows": [row | figures | {"corrupted_kl": share}]}
    result = Ability.from_dict({"schema": {"name": "ability", "version": 1}, **content})
    lines = printed(lambda console: print_ability(result, console)).splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = (line for line in lines if "gender_pronoun" in line)  # in one line, whole
    assert line.split() == [
        "gender_pronoun",
        "new_words",
        "1,000",
        "0.123",
        "0.123",
        "-0.123",
        "-0.123",
        "0.123",
        "0.5",
    ]
