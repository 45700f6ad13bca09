"""Guessed anatomies tried on a twin: probes find factors, and whose heads are whose; only one that holds is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.check.identities import ends, own_heads, random_prompts, stream_steps
from circuitlit.evaluate.check.twin import KeepsFloat64, float64_twin
from circuitlit.model import Subject
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.families import ANATOMIES, GUESSED, forget_guess
from circuitlit.model.guess import guesses

EXACT = 1e-9
MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, UserError)


def taken_guess(subject: Subject, seed: int) -> tuple[Subject, dict[str, Any] | None]:
    """A subject with the first guess that holds on its twin, and which one that is; as it is where a row is there.

    Raises:
        UserError: no guess holds.
    """
    kind = subject.model.config.model_type
    if kind not in GUESSED:
        return subject, None
    for number, row in enumerate(guesses(subject.model)):
        with KeepsFloat64():
            changes = _changes(subject, row, seed)
        if changes is not None:
            ANATOMIES[kind] = replace(row, **changes)
            return _as(subject), {"number": number, "changes": changes}
    forget_guess(kind)
    raise UserError(f"no anatomy that the names of a {kind} model's modules allow holds on its twin; add a row for it")


def _as(subject: Subject) -> Subject:
    """The subject with the row that its type has now."""
    return Subject(subject.model, subject.tokenizer, subject.name, subject.provenance, checked=True)


def _changes(subject: Subject, row: Anatomy, seed: int) -> dict[str, Any] | None:
    """What has to be changed in a guess for its twin to hold; None where nothing helps."""
    kind, made = subject.model.config.model_type, {}
    try:
        ANATOMIES[kind] = row
        twin = float64_twin(_as(subject), seed)
        prompts = random_prompts(twin, seed)
        (_, gained, embeds), (_, added, writes), *_ = stream_steps(twin, prompts.clean)
        for name, goal, part in (("embed_factor", gained, embeds), ("write_factor", added, writes)):
            factor = _times(next(iter(part.values())), goal)
            made |= {} if abs(factor - 1) < EXACT or len(part) > 1 else {name: factor}
        ANATOMIES[kind] = replace(row, **made)
        twin = Subject(twin.model)
        alone = own_heads(twin, prompts) == 0
        if not alone and len(row.projections) == 1:
            return None  # of one matrix another layout may be right
        on, off, _ = ends(twin, prompts)
        return made | ({} if alone else {"joint": True}) if max(on, off) <= EXACT else None
    except MISFITS:
        return None


def _times(write: Tensor, gained: Tensor) -> float:
    """The factor on a write that comes nearest to what the stream gains."""
    return float((write * gained).sum() / write.square().sum())
