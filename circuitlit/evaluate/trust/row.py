"""A row of the trust card: a figure, its interval, the bar that it is held against, and what that says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from circuitlit.evaluate.statistics import Estimate

Side = Literal["at least", "at most", "within"]
PASS, FAIL, UNDECIDED, NOT_MEASURED, SHOWN = "pass", "fail", "undecided", "not measured", "shown"


@dataclass(frozen=True, kw_only=True)
class TrustRow:
    """One claim.

    Attributes:
        name: `group.claim`, as in files.
        figure: what the number is, in words.
        value, low, high: the figure and the 95 % interval that the state goes by: for new sentences where there are
            several, else for other pairs of these; None where it was not measured.
        bar: what it is held against; None where it is only shown.
        side: of the bar on which the figure has to be; within is no further from `around` than the bar, either way.
        around: what it is to be near to.
        state: "pass", "fail", "undecided" (the interval straddles the bar, or `why`), "not measured", "shown" (no bar).
        why: why it was not measured, or why nothing passes or fails whatever the interval; empty elsewhere.
        pairs, groups: pairs and sentences that the interval stands on; None where nobody counted.
        draws, p: random sets or circuits that are compared, and the p-value; None where there are none.
        seconds: that its part took, without what of it was there already.
        settings: of its part.
    """

    name: str
    figure: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    side: Side = "at least"
    around: float = 0.0
    state: str = NOT_MEASURED
    why: str = ""
    pairs: int | None = None
    groups: int | None = None
    draws: int | None = None
    p: float | None = None
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        figure: str,
        estimate: Estimate | None,
        bar: float | None = None,
        side: Side = "at least",
        around: float = 0.0,
        why: str | None = None,
        sentences: int | None = None,
        **facts: Any,
    ) -> TrustRow:
        """Hold an estimate against a bar; without an estimate the row says that nothing was measured, and `why`.

        Of a single pair nothing passes or fails. Nor does it where the pairs are of several `sentences` and there is no
        interval for new ones: that of other pairs of these is too narrow to stand for it.
        """
        bounds = estimate and estimate.bounds
        common = {"name": name, "figure": figure, "bar": bar, "side": side, "around": around, **facts}
        if estimate is None or estimate.value is None or bounds is None:
            said = (why or "the figure does not exist for these pairs").removeprefix(f"{NOT_MEASURED}: ")
            return cls(**common, why=said)
        low, high = bounds
        state, barred = SHOWN, ""
        if bar is not None:
            passes, fails = {
                "at least": (low >= bar, high < bar),
                "at most": (high <= bar, low > bar),
                "within": (low >= around - bar and high <= around + bar, low > around + bar or high < around - bar),
            }[side]
            if facts.get("pairs") == 1:
                barred = "one pair"
            elif sentences is not None and sentences > 1 and estimate.low_sentences is None:
                barred = "there is no interval for new sentences, this one is for other pairs of these"
            state = UNDECIDED if barred else PASS if passes else FAIL if fails else UNDECIDED
        return cls(**common, value=estimate.value, low=low, high=high, state=state, why=barred)
