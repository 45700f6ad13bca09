"""Head scores of one checkpoint, and what ablating its induction heads does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.arguments import check_resamples
from circuitlit.errors import UserError
from circuitlit.evaluate.found import OK, UNMEASURABLE
from circuitlit.evaluate.testing import LEAST_DRAWS
from circuitlit.heads import Heads, copying_scores, repeat_scores, repeated_tokens, successor_lists, successor_scores
from circuitlit.heads.causal import causal_check, repeat_score
from circuitlit.heads.repeats import front_token
from circuitlit.heads.roles import head_name, heads_of, top_heads
from circuitlit.model import Subject
from circuitlit.timeline.cells import Ablated, HeadsAtCheckpoint, InductionCheck

SMALL = 1000  # tokens of a vocabulary on which copying costs nothing
Ids = Int[Tensor, "batch pos"]


@dataclass(frozen=True, kw_only=True)
class HeadsFollowed:
    """What is asked of heads at every checkpoint.

    Attributes:
        run: False leaves head scores out.
        sequences, length: random token sequences, said twice, and tokens before the repetition.
        threshold: above it a head has a role.
        top: at most so many induction heads are ablated at the last checkpoint; None takes all above the threshold.
        algorithm: how far up the IOI algorithm is followed, for tasks that name io, s1 and s2; None leaves it out.
        algorithm_pairs: pairs for it.
        backup: at most so many random sets of heads and random directions beside the ablation of the name movers at
            every checkpoint where the algorithm finds some; 0 does not ask who takes over from them.
        draws: random sets of other heads; 0 leaves the ablation out, None takes as many as significance needs.
    """

    run: bool = True
    sequences: int = 16
    length: int = 24
    threshold: float = 0.3
    top: int | None = None
    algorithm: Literal["B", "C", "D"] | None = None
    algorithm_pairs: int = 32
    backup: int = 0
    draws: int | None = None

    def __post_init__(self) -> None:
        """Refuse a part that the algorithm does not have, and to ask for backup of name movers that nobody looks for.

        Raises:
            UserError: `algorithm` is none of B, C and D, or None with `backup`.
        """
        if self.algorithm not in (None, "B", "C", "D"):
            raise UserError(f"algorithm={self.algorithm} is none of B, C, D; None leaves it out")
        if self.backup and self.algorithm is None:
            raise UserError(
                f"heads.backup={self.backup} asks who takes over from the name movers; add heads.algorithm=B"
            )


@dataclass(frozen=True, kw_only=True)
class FollowSettings:
    """What is measured at every checkpoint.

    Attributes:
        faithfulness: of the smallest circuit.
        smallest: False does not search for it.
        probe_pairs: validation pairs that choose it.
        resamples: bootstrap samples of the training pairs at the last checkpoint, for the noise floor of attributed
            circuits; 0 makes none.
        draws: random circuits beside what neighbours share; None takes as many as significance needs.
        seed: of samples and random tokens.
        heads: what is asked of them.
    """

    faithfulness: float = 0.8
    smallest: bool = True
    probe_pairs: int = 32
    resamples: int = 5
    draws: int | None = None
    seed: int = 0
    heads: HeadsFollowed = HeadsFollowed()

    def __post_init__(self) -> None:
        """Refuse a single resample.

        Raises:
            UserError: it is one.
        """
        check_resamples(self.resamples)


def measure_heads(subject: Subject, settings: FollowSettings) -> HeadsAtCheckpoint:
    """Scores of every head, and the model's loss and accuracy on repeated random tokens."""
    ids, fresh = repeated(subject, settings)
    graph, grids = subject.graph, _grids(subject, settings, ids)
    names = [head_name((layer, h)) for layer in range(graph.n_layers) for h in range(graph.n_heads)]
    intact = {name: float(measure(()).mean()) for name, measure in _behaviours(subject, settings, ids, fresh).items()}
    return HeadsAtCheckpoint(
        n_parameters=subject.model.num_parameters(),
        scores={role: dict(zip(names, grid.flatten().tolist(), strict=True)) for role, grid in grids.items()},
        **intact,
    )


def _grids(subject: Subject, settings: FollowSettings, ids: Ids) -> dict[str, Float[Tensor, "layer head"]]:
    """What heads look at on repeated tokens, what they copy of the first half, and successors where the words are."""
    heads, length = Heads(subject), settings.heads.length
    grids = repeat_scores(heads, ids, length)
    few = ids[: 16 if subject.model.config.vocab_size < SMALL else 1, : ids.shape[1] - length]
    grids["copying"] = copying_scores(heads, few, torch.ones_like(few, dtype=torch.bool))["copying"]
    lists = [] if subject.tokenizer is None else successor_lists(subject.tokenizer)
    return grids | ({"successor": successor_scores(heads, lists)} if lists else {})


def check_induction(subject: Subject, settings: FollowSettings, draws: int) -> InductionCheck:
    """What ablating the induction heads does to repeated tokens, beside as many random heads that are none.

    All heads above the threshold are ablated, or the `top` highest of them; no random set holds a head above it. Where
    more than half of the heads are above it, as many of the highest are taken as there are others. Random sets may hold
    previous-token heads, which induction needs; those of `bystanders` hold no head with any score of attention above
    the threshold, where there are enough such heads.
    """
    asked, graph, seed = settings.heads, subject.graph, settings.seed
    grids = repeat_scores(Heads(subject), repeated(subject, settings)[0], asked.length)
    grid = grids["induction"]
    above = [head for head in top_heads(grid, grid.numel()) if float(grid[head]) > asked.threshold]
    best = above[: min(asked.top or len(above), grid.numel() - len(above))]
    if not best:
        reason = f"{'every head' if above else 'no head'} has an induction score above {asked.threshold:g}"
        return InductionCheck(status=UNMEASURABLE, reason=reason)
    anything = heads_of(torch.stack([*grids.values()]).amax(0) > asked.threshold)
    names, found = [head_name(head) for head in best], {}
    ids, fresh = repeated(subject, settings, new=1)  # others than the heads were chosen on
    for name, measure in _behaviours(subject, settings, ids, fresh).items():
        check, bystanders = causal_check(measure, graph, best, draws, seed, spared=above), None
        if grid.numel() - len({*anything, *best}) >= len(best):
            few = min(draws, LEAST_DRAWS)
            bystanders = causal_check(measure, graph, best, few, seed, spared=[*above, *anything]).random
        found[name] = Ablated(**{**vars(check), "heads": names}, bystanders=bystanders)
    return InductionCheck(status=OK, heads=names, n_above=len(above), n_heads=grid.numel(), **found)


def _behaviours(
    subject: Subject, settings: FollowSettings, ids: Ids, fresh: Ids
) -> dict[str, Callable[..., Float[Tensor, "example"]]]:
    length = settings.heads.length
    return {
        name: repeat_score(subject, ids, fresh, length, "interchange", name)  # type: ignore[arg-type]
        for name in ("loss", "accuracy")
    }


def repeated(subject: Subject, settings: FollowSettings, new: int = 0) -> tuple[Ids, Ids]:
    """Random tokens said twice, and as long ones that do not repeat; other `new` gives others."""
    asked, vocabulary, seed = settings.heads, subject.model.config.vocab_size, settings.seed
    bos = front_token(subject.tokenizer)
    ids = repeated_tokens(vocabulary, asked.sequences, asked.length, seed + 2 * new, bos)
    fresh = repeated_tokens(vocabulary, asked.sequences, 2 * asked.length, seed + 1 + 2 * new, bos, 1)
    return ids.to(subject.device), fresh.to(subject.device)
