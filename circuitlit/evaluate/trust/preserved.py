"""Is a circuit as good as the model on the task, neither worse nor better? Equivalence, tested on held-out pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import binom
from scipy.stats import t as student

from circuitlit.evaluate.statistics import Estimate, Statistic, mean_estimate, statistic
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.objective import Outcome

MARGIN = 0.1  # of faithfulness around 1, and of wins around one half
LEVEL = 0.9  # of the interval: two one-sided tests at 5 %


def preserved_rows(found: Outcome, full: Outcome, corrupted: Outcome) -> list[TrustRow]:
    """Equivalence of faithfulness for new sentences and for these, how often the circuit beats the model, and its KL.

    Args:
        found, full, corrupted: circuit, full model and no edge on the same pairs.

    Source: two one-sided tests, Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987); wins, Shi et
    al. (arXiv 2410.13032) section 3.
    """
    columns = torch.stack([found.metric, full.metric, corrupted.metric]).double()
    whole = statistic(lambda m: (m[0] - m[2]) / (m[1] - m[2]), columns, found.group)
    both = whole.estimate(LEVEL)
    sizes: dict[str, Any] = {"pairs": len(found.kl), "groups": len(found.group.unique())}
    rows = []
    if both.value is not None and sizes["groups"] > 1:
        said = {"figure": "faithfulness, 90 % interval for new sentences", "p": tost_p(whole, 1.0, MARGIN)}
        rows.append(_near("preserved.faithfulness", both, 1.0, **said, sentences=sizes["groups"], **sizes))
    here = Estimate(both.value, both.low, both.high)
    name = "preserved.these_sentences" if rows else "preserved.faithfulness"
    rows.append(
        _near(name, here, 1.0, figure="faithfulness, 90 % interval for other pairs of these sentences", **sizes)
    )
    wins = (found.metric > full.metric).double() + 0.5 * (found.metric == full.metric).double()
    p = wins_p(float(wins.sum()), len(wins))
    said = "share of pairs on which the circuit does better than the model"
    rows.append(_near("preserved.wins", mean_estimate(wins, found.group), 0.5, figure=said, p=p, **sizes))
    rows.append(TrustRow.of("preserved.kl", "KL, nats", mean_estimate(found.kl, found.group), **sizes))
    return rows


def _near(name: str, estimate: Estimate, around: float, figure: str, **facts: Any) -> TrustRow:
    return TrustRow.of(name, figure, estimate, MARGIN, side="within", around=around, **facts)


def tost_p(found: Statistic, around: float, margin: float) -> float | None:
    """p of no equivalence: that a statistic is at least `margin` from `around`, by t on the sentences' means.

    None with fewer than two sentences. Below .05 exactly where the 90 % interval lies within the margin.
    """
    if not found.variances or not math.isfinite(found.centre):
        return None
    ((variance, dof),) = found.variances
    if not math.isfinite(variance):
        return None
    apart = margin - abs(found.centre - around)
    if variance == 0:
        return 0.0 if apart > 0 else 1.0
    return float(student.sf(apart / math.sqrt(variance), dof))


def wins_p(wins: float, pairs: int) -> float:
    """p of as uneven a number of wins where the true share is up to `MARGIN` from one half; small says not preserved.

    Source: Shi et al. (arXiv 2410.13032), equivalence: sum over k with |k/n - 1/2| >= t of C(n, k) .6^k .4^(n-k).
    """
    uneven, edge = abs(wins / pairs - 0.5), 1e-9
    low, high = math.floor(pairs * (0.5 - uneven) + edge), math.ceil(pairs * (0.5 + uneven) - edge)
    if low >= high:
        return 1.0
    return float(binom.cdf(low, pairs, 0.5 + MARGIN) + binom.sf(high - 1, pairs, 0.5 + MARGIN))
