"""Shares of the modes of reuse, beside those of one model on other pairs, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

from circuitlit.compare.mode_shares import ModeShare

HEAD = ("nodes", "tuning", "one model, other pairs", "difference", "verdict")


def mode_rows(modes: Mapping[str, ModeShare]) -> list[list[str]]:
    """A row a mode."""
    rows = []
    for name, mode in modes.items():
        verdict = "other pairs do the same"
        if mode.low > 0 or mode.high < 0:
            verdict = "more than other pairs do" if mode.difference > 0 else "less than other pairs do"
        interval = f"{mode.difference:+.3f} [{mode.low:+.3f}, {mode.high:+.3f}]"
        rows.append([name, f"{mode.tuning:.3f}", f"{mode.resampling:.3f}", interval, verdict])
    return rows
