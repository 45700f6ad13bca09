"""Is a circuit as good as the model on the task, neither worse nor better? Equivalence, tested on held-out pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Int
from scipy.stats import binom
from scipy.stats import t as student
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, Statistic, mean_estimate, statistic
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.objective import Outcome

MARGIN = 0.1  # of faithfulness around 1, and of wins around one half
LEVEL = 0.9  # of the interval: two one-sided tests at 5 %
NOISE = 1e-6  # of single precision, as a share of a metric; ten times that in logits or nats where it is near 0
WINS = "share of pairs on which the circuit does better than the model"


def preserved_rows(found: Outcome, full: Outcome, corrupted: Outcome) -> list[TrustRow]:
    """Equivalence of faithfulness for new sentences and for these, how often the circuit beats the model, and its KL.

    All but the KL are of the pairs that have the task's metric: some may lack a wrong answer.

    Args:
        found, full, corrupted: circuit, full model and no edge on the same pairs.

    Source: two one-sided tests, Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987); wins, Shi et
    al. (arXiv 2410.13032) section 3.
    """
    ends = torch.stack([found.metric, full.metric, corrupted.metric])
    known = torch.isfinite(ends).all(0)
    columns, group = ends[:, known].double(), found.group[known]
    sizes = _sizes(group)
    of = "" if bool(known.all()) else f", {len(group)} of {len(known)} pairs that have the task's metric"
    kl = TrustRow.of("preserved.kl", "KL, nats", mean_estimate(found.kl, found.group), **_sizes(found.group))
    if not len(group):
        why = "no pair has the task's metric"
        named = ("preserved.faithfulness", "faithfulness", 1.0), ("preserved.wins", WINS, 0.5)
        return [*(_near(name, None, around, figure, why=why, **sizes) for name, figure, around in named), kl]
    whole = statistic(lambda m: (m[0] - m[2]) / (m[1] - m[2]), columns, group)
    both = whole.estimate(LEVEL)
    rows = []
    if both.value is not None and sizes["groups"] > 1:
        said = {"figure": f"faithfulness, 90 % interval for new sentences{of}", "p": tost_p(whole, 1.0, MARGIN)}
        rows.append(_near("preserved.faithfulness", both, 1.0, **said, sentences=sizes["groups"], **sizes))
    here = Estimate(both.value, both.low, both.high)
    name = "preserved.these_sentences" if rows else "preserved.faithfulness"
    figure = f"faithfulness, 90 % interval for other pairs of these sentences{of}"
    rows.append(_near(name, here, 1.0, figure, **sizes))
    equal = torch.isclose(columns[0], columns[1], rtol=NOISE, atol=10 * NOISE)
    wins = torch.where(equal, 0.5, (columns[0] > columns[1]).double())
    p = wins_p(float(wins.sum()), len(wins))
    rows.append(_near("preserved.wins", mean_estimate(wins, group), 0.5, f"{WINS}{of}", p=p, **sizes))
    return [*rows, kl]


def _sizes(group: Int[Tensor, "pair"]) -> dict[str, Any]:
    return {"pairs": len(group), "groups": len(group.unique())}


def _near(name: str, estimate: Estimate | None, around: float, figure: str, **facts: Any) -> TrustRow:
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
