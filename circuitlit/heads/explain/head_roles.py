"""Roles of a few heads, by the scores, thresholds and algorithm of `score_heads`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.graph.nodes import place_of
from circuitlit.heads.algorithm import Thresholds, ioi_algorithm
from circuitlit.heads.attention import Heads
from circuitlit.heads.copying import copying_of_pairs
from circuitlit.heads.effects import path_effects
from circuitlit.heads.head_settings import REPEATED, HeadSettings
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.places import NAMES, NamePlaces
from circuitlit.heads.repeats import front_token, repeat_scores, repeated_tokens
from circuitlit.heads.roles import Head, mark
from circuitlit.model import Subject
from circuitlit.model.limits import longest_prompt

Grids = dict[str, Float[Tensor, "layer head"]]


def head_roles(
    bench: Workbench, names: Sequence[str], rows: Sequence[int], seed: int
) -> tuple[dict[str, list[str]], dict[str, dict[str, float]]]:
    """Roles and scores of some heads, by name.

    Args:
        bench: subject and pairs; heads are scored on those to choose on.
        names: of the heads.
        rows: pairs of `bench.data.to_choose_on`.
        seed: of random tokens.
    """
    pairs, settings = bench.data.to_choose_on, HeadSettings()
    heads = {(layer, head or 0): name for name in names for layer, head in [place_of(name)]}
    grids = _looking_back(bench.subject, settings, seed)
    batches = list(pairs.batches(bench.data.eval_batch_size, order=list(rows)))
    found: dict[str, list[Head]] = {}
    if all(batch.has_corrupted for batch in batches):
        found = _on_task(PatchBed.build(bench.subject, batches), pairs.role_names, list(heads), settings, grids)
    roles: dict[str, list[str]] = {name: [] for name in names}
    for head, name in heads.items():
        roles[name] = [role for role, members in found.items() if head in members]
        for role in (*REPEATED, "copying", "negative_copying"):
            limit, same = settings.thresholds[role.removeprefix("negative_")], role.replace("copying", "name_mover")
            if role in grids and float(grids[role][head]) > limit and not {role, same} & {*roles[name]}:
                roles[name].append(role)
    scores = {name: {key: float(grid[head]) for key, grid in grids.items()} for head, name in heads.items()}
    return roles, {name: {key: x for key, x in own.items() if not math.isnan(x)} for name, own in scores.items()}


def _looking_back(subject: Subject, settings: HeadSettings, seed: int) -> Grids:
    """Scores on repeated random tokens, as many as the model has positions for."""
    own, config = settings.repeats, subject.model.config
    length = int(min(own.length, (longest_prompt(config)[0] - 1) // 2))
    if length < 2:
        return {}
    ids = repeated_tokens(config.vocab_size, own.sequences, length, seed, front_token(subject.tokenizer))
    return repeat_scores(Heads(subject), ids, length)


def _on_task(
    bed: PatchBed, role_names: Sequence[str], heads: list[Head], settings: HeadSettings, grids: Grids
) -> dict[str, list[Head]]:
    """Add what is scored on the task's pairs to the grids; the parts of the IOI algorithm that the heads play."""
    named = set(NAMES) <= set(role_names)
    places = [NamePlaces.of(batch, role_names) for batch in bed.batches] if named else []
    writers = [bed.graph.writers_before(layer) + head for layer, head in heads]
    grids |= copying_of_pairs(bed, places, heads)
    grids["direct_effect"] = path_effects(bed, writers, [bed.graph.n_readers - 1]).grid(bed.graph)
    if not named or "induction" not in grids:
        return {}
    limits = Thresholds(settings.thresholds["copying"], settings.thresholds["copy_suppression"])
    algorithm = ioi_algorithm(bed, places, grids, None, mark(bed.graph, heads), limits, only=writers)
    grids |= algorithm.grids
    return algorithm.roles
