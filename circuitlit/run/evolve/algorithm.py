"""The IOI algorithm at one checkpoint, where a task names the indirect object and both mentions of the subject."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jaxtyping import Bool, Int
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.heads import NamePlaces, PatchBed, copying_of_pairs, ioi_algorithm, repeat_scores
from circuitlit.heads.places import NAMES
from circuitlit.heads.roles import head_name


def algorithm_part(
    cfg: DictConfig, bench: Workbench, repeated: Int[Tensor, "batch pos"], inside: Bool[Tensor, "layer head"] | None
) -> dict[str, Any]:
    """The three shares and the heads of every part; empty where it is not asked for or the task has no names.

    Args:
        cfg: `evolve.heads.algorithm` says how far up to go (B, C, D; null leaves it out), `algorithm_pairs` on how many
            pairs.
        bench: the checkpoint's.
        repeated: random tokens said twice, for induction and duplicate-token scores.
        inside: heads that the shares are of, those of the smallest faithful circuit; None takes all.
    """
    settings, data = cfg.evolve.heads, bench.data
    pairs = next((split for split in (data.val, data.train) if len(split)), data.test)  # as the verb heads chooses on
    if settings.algorithm is None or not set(NAMES) <= set(pairs.role_names):
        return {}
    order = pairs.spread(settings.algorithm_pairs)
    bed = PatchBed.build(bench.subject, pairs.batches(cfg.data.eval_batch_size, order=order))
    places = [NamePlaces.of(batch, pairs.role_names) for batch in bed.batches]
    scores = repeat_scores(bed.heads, repeated, settings.length) | copying_of_pairs(bed, places)
    found = ioi_algorithm(bed, places, scores, pool=inside, parts=settings.algorithm)
    return {
        "algorithm": {
            "of": "all heads" if inside is None else "the smallest faithful circuit",
            "shares": {part: asdict(share) for part, share in found.shares.items()},
            "roles": {role: [head_name(head) for head in heads] for role, heads in found.roles.items()},
        }
    }
