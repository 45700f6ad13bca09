"""Tests on pairs that know which of them share a sentence, and their correction where many are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from scipy.stats import PermutationMethod, binomtest, false_discovery_control, pearsonr, spearmanr, ttest_1samp
from torch import Tensor

from circuitlit.evaluate.statistics import Groups, group_means

LEVEL = 0.05
LEAST_DRAWS = 20  # random sets below which a rank among them says little
Try = TypeVar("Try")
Nested = TypeVar("Nested")  # dictionaries, lists and dataclasses in each other


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those up to alpha errs anywhere with a probability of at most alpha.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that of those up to q an expected share of at most q is false.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995).
    """
    return false_discovery_control(list(p)).tolist() if p else []


def paired_p(difference: Float[Tensor, "pair"], groups: Groups) -> float:
    """Two-sided p of a mean difference of 0 on new sentences: Student's t on the groups' means.

    1 where it cannot be tested (a single group, or numbers that are not finite) and where all differences are 0. Group
    means that are all equal have no t; there it is the least p that signs alone can give, `2 ** (1 - groups)`.
    """
    return _t_test(difference, 0.0, groups, "two-sided")


def above_chance(right: Float[Tensor, "pair"], chance: float, groups: Groups) -> float:
    """One-sided p of more right answers than chance gives: t on the groups' means, or exact for pairs that stand alone.

    Args:
        right: 1 where the answer is right, else 0.
        chance: probability of a right guess.
        groups: which pairs share a sentence; None, or all different, where every pair stands alone.
    """
    if groups is None or len(groups.unique()) == len(groups):
        return float(binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue)
    return _t_test(right, chance, groups, "greater")


def _t_test(values: Float[Tensor, "pair"], null: float, groups: Groups, alternative: str) -> float:
    means = group_means(values, groups)
    count, middle = len(means), float(means.mean()) - null
    if count < 2 or not math.isfinite(middle) or bool((means == null).all()):
        return 1.0
    if float(means.std()) == 0:
        return 1.0 if alternative == "greater" and middle < 0 else 2.0 ** (1 - count)
    return float(ttest_1samp(means.numpy(), null, alternative=alternative)[1])  # type: ignore[arg-type]


def rank_p(value: float, random: Sequence[float]) -> float:
    """Share of random values at least as large, the value itself counted; in (0, 1]."""
    return (1 + sum(_reaches(other, value) for other in random)) / (1 + len(random))


def above_all(p: float | None, draws: int | None) -> bool:
    """Whether a `rank_p` is the least that so many draws can give: where it is not significant, they are too few."""
    return p is not None and draws is not None and p * (draws + 1) < 1.5


def _reaches(other: float, value: float) -> bool:
    """At least as large; single precision does not decide between values that are the same."""
    return other >= value or math.isclose(other, value, rel_tol=1e-6)


def enough_draws(claims: int, level: float = LEVEL) -> int:
    """Fewest random draws with which each of some claims can fall below a level after Holm's correction.

    The least `rank_p` of k draws is 1 / (k + 1), which has to be below level / claims.
    """
    return math.floor(claims / level + 1e-9)


def until_clear(
    values: Sequence[float | None],
    tries: Iterable[Try],
    score: Callable[[Try], Sequence[float | None]],
    reached: int = 10,
    least: int = LEAST_DRAWS,
) -> list[Try]:
    """Random tries until chance has reached each of some values often enough to tell that it can, or all of them.

    `rank_p` of the tries is then valid, and a little conservative: significance costs all draws, the lack of it few.

    Args:
        values: what was found; None where it does not exist.
        tries: random counterparts, made one by one.
        score: a try's value for each of `values`.
        reached: tries at least as large after which a value needs no more.
        least: fewest tries.

    Source: Besag and Clifford, Biometrika 78 (1991), sequential Monte Carlo p-values.
    """
    made: list[Try] = []
    counts = [0 if value is not None else reached for value in values]
    for one in tries:
        made.append(one)
        for place, (own, other) in enumerate(zip(values, score(one), strict=True)):
            counts[place] += own is not None and other is not None and _reaches(other, own)
        if len(made) >= least and min(counts, default=reached) >= reached:
            break
    return made


def with_holm(result: Nested) -> Nested:
    """A nested result with `p_holm` beside every `rank_p`, corrected for all claims that it makes.

    Dictionaries are changed in place; dataclasses, which are frozen, are made anew.
    """
    found: list[float] = []
    _with_claims(result, found.append)
    corrected = iter(holm(found))
    return _with_claims(result, lambda _: next(corrected))


def _with_claims(node: Any, correct: Callable[[float], float | None]) -> Any:
    """Every part that holds a `rank_p` with a `p_holm`; a claim without a value gets no corrected one either."""
    if isinstance(node, list | tuple):
        return type(node)(_with_claims(part, correct) for part in node)
    if isinstance(node, dict):
        parts = node
    elif is_dataclass(node) and not isinstance(node, type):
        parts = {field.name: getattr(node, field.name) for field in fields(node)}
    else:
        return node
    parts = {name: _with_claims(part, correct) for name, part in parts.items()}
    if "rank_p" in parts:
        parts["p_holm"] = None if parts["rank_p"] is None else correct(parts["rank_p"])
    if isinstance(node, dict):
        node.update(parts)
        return node
    return replace(node, **parts)


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Pearson's correlation and its two-sided p under permutations, exact up to seven values; None without spread.

    The least p of n values is 2 / n!.
    """
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    found = pearsonr(x, y, method=PermutationMethod(random_state=0))
    return float(found[0]), float(found[1])  # type: ignore[arg-type]


def censored_scores(times: Sequence[tuple[float, float]]) -> list[float]:
    """How many others each time is surely later than, less how many it is surely earlier than.

    Args:
        times: each lies after its first number and no later than its second, which is infinite where it never came.

    Source: Gehan, Biometrika 52 (1965), for times known to lie between two others.
    """
    return [
        float(sum((low >= other_high) - (high <= other_low) for other_low, other_high in times)) for low, high in times
    ]


def monotonicity(doses: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's correlation of response with dose; 0 where nothing responds."""
    if len(set(values)) < 2:
        return 0.0
    return float(spearmanr(doses, values)[0])  # type: ignore[arg-type]


def slope(doses: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of response over dose."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (list(doses), list(values)))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
