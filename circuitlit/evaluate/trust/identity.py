"""What kept parts depend on, such as those of a trust card, so that a part is made anew when it changes."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.contents import contents_of
from circuitlit.tasks import PairsModule
from circuitlit.tasks.splits import SPLITS


def identity(bench: Workbench, circuit: Circuit) -> dict[str, Any]:
    """What every part of a trust card depends on."""
    return identity_of_model(bench.subject, bench.model.shards is None) | {
        **identity_of_pairs(bench.data),
        "ablation": _ablation(bench),
        "circuit": identity_of(circuit),
        **({} if bench.precision is None else {"precision": bench.precision}),
    }


def _ablation(bench: Workbench) -> list[Any]:
    kind, own = bench.references.kind, bench.ablation
    constants = [own.positional] if kind in ("mean", "optimal") else []
    return [kind, *constants, *([own.steps, own.lr, _function(own.objective)] if kind == "optimal" else [])]


def identity_of_search(bench: Workbench) -> dict[str, Any]:
    """What circuits that are found anew depend on beside."""
    return {"batch_size": bench.data.batch_size, "select": bench.select}


def identity_of_model(subject: Subject, whole: bool = True) -> dict[str, Any]:
    """A model: where it is from, and what is in it, unless its weights are shared out."""
    facts = {"model": subject.name, "weights": subject.provenance}
    return facts | ({"contents": contents_of(subject.model)} if whole else {})


def identity_of_pairs(data: PairsModule) -> dict[str, Any]:
    """A task's pairs."""
    pairs = [repr(getattr(data.splits, split)) for split in SPLITS]
    return {"task": data.splits.name, "pairs": hashlib.sha256("".join(pairs).encode()).hexdigest()}


def identity_of(value: Any) -> Any:
    """A setting as plain types: a circuit by its edges, a method by its name and settings."""
    if isinstance(value, Circuit):
        return hashlib.sha256(value.kept.numpy().tobytes()).hexdigest()
    if isinstance(value, Method):
        score = {"settings": getattr(value.score, "keywords", {})}
        return {"name": value.name, **score, "objective": _function(value.objective), "max_batches": value.max_batches}
    return value


def _function(value: Any) -> Any:
    """A function by its name, with the settings that are bound to it."""
    if isinstance(value, partial):
        own = {key: _function(one) for key, one in value.keywords.items()}
        return [_function(value.func), own] if own else _function(value.func)
    return getattr(value, "__name__", value)
