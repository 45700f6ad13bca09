"""What kept parts depend on, such as those of a trust card, so that a part is made anew when it changes."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.tasks import PairsModule
from circuitlit.tasks.splits import SPLITS


def identity(bench: Workbench, circuit: Circuit) -> dict[str, Any]:
    """What every part of a trust card depends on."""
    return identity_of_pairs(bench.subject, bench.data) | {
        "ablation": bench.references.kind,
        "circuit": identity_of(circuit),
        **({} if bench.precision is None else {"precision": bench.precision}),
    }


def identity_of_pairs(subject: Subject, data: PairsModule) -> dict[str, Any]:
    """A model and its task's pairs."""
    pairs = [repr(getattr(data.splits, split)) for split in SPLITS]
    facts = {"task": data.splits.name, "model": subject.name, "weights": subject.provenance}
    return facts | {"pairs": hashlib.sha256("".join(pairs).encode()).hexdigest()}


def identity_of(value: Any) -> Any:
    """A setting as plain types: a circuit by its edges, a method by its name and settings."""
    if isinstance(value, Circuit):
        return hashlib.sha256(value.kept.numpy().tobytes()).hexdigest()
    if isinstance(value, Method):
        score = {"settings": getattr(value.score, "keywords", {})}
        return {"name": value.name, **score, "objective": _name(value.objective), "max_batches": value.max_batches}
    return value


def _name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", str(function))
