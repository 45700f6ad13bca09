"""The greater-than check of the verb heads: does a circuit's greater-than algorithm look as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from circuitlit.evaluate.found import OK, UNMEASURABLE
from circuitlit.graph import Circuit
from circuitlit.heads import PatchBed, greater_than_check
from circuitlit.heads.greater_than import heads_into_mlps, mlps_to_logits
from circuitlit.heads.roles import head_name

YEAR = "yy"


def year_check(
    bed: PatchBed, role_names: Sequence[str], circuit: Circuit | None, draws: int, seed: int
) -> dict[str, Any] | None:
    """The check on the first batch of pairs, or why it cannot be made; None for tasks without years.

    Args:
        bed: the pairs.
        role_names: of their tokens.
        circuit: whose MLPs write to the logits and whose heads feed these; None makes no check.
        draws: random sets of as many heads.
        seed: of these sets.
    """
    if YEAR not in role_names:
        return None
    if circuit is None:
        return {"status": UNMEASURABLE, "reason": "it is of a circuit's heads; give heads.circuit=RUN"}
    batch = bed.batches[0]
    here, wrong = batch.roles == list(role_names).index(YEAR), batch.signs < 0
    if not bool((here.any(1) & wrong.any(1)).all()):
        reason = f"a pair has no token of the role '{YEAR}', or no wrong years; give every pair both"
        return {"status": UNMEASURABLE, "reason": reason}
    year = here.long().cumsum(1).argmax(1)  # its last token
    last_wrong = wrong.long().cumsum(1).argmax(1, keepdim=True)
    if not bool((batch.choices.gather(1, last_wrong) == batch.clean.gather(1, year[:, None])).all()):
        reason = "the tokenizer splits years into digits; it needs two digits in a token"
        return {"status": UNMEASURABLE, "reason": reason}
    mlps = mlps_to_logits(circuit)
    heads = heads_into_mlps(circuit, mlps)
    found = greater_than_check(bed.subject, batch, year, heads, mlps, draws, seed)
    names = {"heads": [head_name(head) for head in heads], "mlps": [f"m{layer}" for layer in mlps]}
    return {"status": OK, "n_pairs": len(batch), **names, **asdict(found)}
