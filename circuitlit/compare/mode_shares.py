"""Whether tuning changes what becomes of nodes by more than other pairs do: shares of modes beside one model's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from circuitlit.compare.difference import MINIMUM, Resampled, circuit_difference
from circuitlit.compare.nodes import MODES, node_modes
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError

LEAST = 20  # halvings below which an interval over them says little
Decided = Mapping[str, bool | None]


@dataclass(frozen=True, kw_only=True)
class ModeShare:
    """How many nodes have one mode of reuse, as a share of the nodes that are in either circuit.

    Attributes:
        tuning: base model on one half of the pairs beside tuned model on the other half, mean over halvings.
        resampling: one and the same model on both halves, base and tuned averaged, mean over the same halvings.
        difference: tuning minus resampling.
        low, high: middle 95 % of the difference over halvings. They share pairs, so this speaks for other halves of
            these pairs, and it is not corrected for the number of modes; other seeds of the tuning are the test.
    """

    tuning: float
    resampling: float
    difference: float
    low: float
    high: float


def mode_shares(
    base: Workbench,
    scorers: Sequence[Resampler],
    *,
    halvings: int = LEAST,
    resamples: int = MINIMUM,
    seed: int = 0,
    fits_back: Decided | None = None,
    replaces: Decided | None = None,
) -> dict[str, ModeShare]:
    """Shares of the modes of `node_modes` between two models, and between a model and itself on other pairs.

    Both are counted alike: each side has the scores of one half of the training pairs, and ten or more resamples of
    that half. Weight changes are left out, which a model does not have from itself. A node always fits its own model,
    so swaps count for tuning alone, and only where one shows that a node does not fit: swaps that do not decide, as of
    too few pairs, count as if they had not been made, or a model would differ from itself by its doubtful swaps.

    Args:
        base: the base model, with the pairs.
        scorers: of the base model and of the tuned one, on the same pairs.
        halvings: of the pairs into two halves that share no sentence.
        resamples: of each half.
        seed: of halves and resamples.
        fits_back, replaces: as for `node_modes`.

    Raises:
        UserError: too few halvings, or fewer than four sentences.
    """
    if halvings < LEAST:
        raise UserError(f"halvings={halvings} are too few for an interval; take at least {LEAST}")
    decided = [{name: fits for name, fits in (own or {}).items() if fits is not None} for own in (fits_back, replaces)]
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for halving in range(halvings):
        draw = random.Random(f"{seed}/{halving}")
        halves = _halves(base, draw)
        rows = [[half, *(draw.choices(half, k=len(half)) for _ in range(resamples))] for half in halves]
        first, last = ([_resampled(scorer, drawn, base.count) for drawn in rows] for scorer in scorers)
        across = [
            _shares(first[0], last[1], *decided),
            _shares(first[1], last[0], *decided),
        ]
        within = [_shares(first[0], first[1]), _shares(last[1], last[0])]
        found.append((_mean(across), _mean(within)))
    made = {}
    for mode in MODES[1:]:
        sides = torch.tensor([[one[mode], other[mode]] for one, other in found], dtype=torch.float64)
        difference = sides[:, 0] - sides[:, 1]
        low, high = torch.quantile(difference, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        tuning, resampling = sides.mean(0).tolist()
        made[mode] = ModeShare(tuning=tuning, resampling=resampling, difference=tuning - resampling, low=low, high=high)
    return made


def _halves(bench: Workbench, draw: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of the training pairs in two halves of the sentences."""
    train = bench.data.train
    groups = list(train.groups) if train.groups else list(range(len(train)))
    every = sorted(set(groups))
    if len(every) < 4:
        raise UserError(f"{len(every)} sentences are too few to halve; give the task more training pairs")
    one = set(draw.sample(every, len(every) // 2))
    inside = [[row for row, group in enumerate(groups) if (group in one) == side] for side in (True, False)]
    return inside[0], inside[1]


def _resampled(scorer: Resampler, rows: Sequence[list[int]], count: int) -> Resampled:
    whole, *others = (scorer(drawn) for drawn in rows)
    return Resampled(whole, others, count)


def _shares(
    one: Resampled, other: Resampled, fits_back: Decided | None = None, replaces: Decided | None = None
) -> dict[str, float]:
    modes = node_modes(one, other, circuit_difference(one, other), None, fits_back, replaces)
    counts = Counter(mode for mode in modes.values() if mode != "absent")
    total = sum(counts.values()) or 1
    return {mode: counts[mode] / total for mode in MODES[1:]}


def _mean(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {mode: sum(one[mode] for one in shares) / len(shares) for mode in shares[0]}
