"""Who takes over from ablated heads, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitlit.evaluate.testing import LEVEL
from circuitlit.report.table import Metric


def backup_text(found: Mapping[str, Any]) -> str:
    """One sentence or two on a `Backup` as plain types."""
    if found["status"] != "OK":
        return f"nobody's backup was looked for: {found['reason']}"
    direct, lost, repaired = (Metric.of(found[key]) for key in ("direct", "lost", "repaired"))
    made_good = ""
    if repaired.value is not None:
        share = f"{repaired} of it is made good"
        made_good = f", so {share}" if repaired.value >= 0 else f", so more than that is lost ({share})"
    loss = f"the metric would lose {direct} at the logits and loses {lost}{made_good}"
    text = f"without {' '.join(found['ablated'])} {loss}. "
    best = found["rises"][0]
    chance = (
        f"by chance {found['random_rise']:.3f} with random heads, {found['turned_rise']:.3f} with random directions"
    )
    p = found["p_holm"] if found["p_holm"] is not None else found["rank_p"]
    rise = f"the largest rise is {Metric.of(best['rise'])} of {best['head']} ({chance}; p = {p:.2g})"
    names = [
        f"{one['head']} ({Metric.of(one['rise'])})" for one in found["rises"] if one["head"] in found["taking_over"]
    ]
    if p > LEVEL or not names:
        return f"{text}Nobody takes over beyond chance: {rise}"
    return f"{text}{', '.join(names)} {'take' if len(names) > 1 else 'takes'} over: {rise}"
