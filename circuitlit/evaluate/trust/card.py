"""`measure_trust`: the parts of a trust card, each made once and kept, and their rows."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.ablations import Ablations, measure_ablations
from circuitlit.evaluate.generalisation import Generalisation, measure_generalisation
from circuitlit.evaluate.model_errors import ModelErrors, measure_errors
from circuitlit.evaluate.trust.claims import Claims, measure_chance, measure_need, measure_preserved
from circuitlit.evaluate.trust.find_rivals import find_rivals
from circuitlit.evaluate.trust.identity import identity, identity_of, identity_of_search
from circuitlit.evaluate.trust.measure_robustness import measure_robustness
from circuitlit.evaluate.trust.measure_stability import measure_stability
from circuitlit.evaluate.trust.rivals import Rivals
from circuitlit.evaluate.trust.robustness import Robustness
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.evaluate.trust.rows import (
    ablation_rows,
    claims_of,
    error_rows,
    generalisation_rows,
    rival_rows,
    robustness_rows,
    stability_rows,
)
from circuitlit.evaluate.trust.stability import Stability
from circuitlit.graph import Circuit
from circuitlit.lock import InUse
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.store import Failure, Share, opened

log = logging.getLogger(__name__)
Part = TypeVar("Part", bound=Result)
PARTS: dict[str, tuple[type[Result], Callable[..., Any], Callable[..., list[TrustRow]], str]] = {
    "preserved": (Claims, measure_preserved, claims_of, "Comparing the circuit with the model"),
    "chance": (Claims, measure_chance, claims_of, "Running random circuits"),
    "errors": (ModelErrors, measure_errors, error_rows, "Looking for the model's errors"),
    "ablations": (Ablations, measure_ablations, ablation_rows, "Cutting the same edges in other ways"),
    "generalises": (Generalisation, measure_generalisation, generalisation_rows, "Changing the pairs"),
    "minimal": (Claims, measure_need, claims_of, "Removing edges one by one"),
    "stable": (Stability, measure_stability, stability_rows, "Finding the circuit again and again"),
    "robust": (Robustness, measure_robustness, robustness_rows, "Finding the circuit again from perturbed pairs"),
    "unique": (Rivals, find_rivals, rival_rows, "Searching rivals"),
}
IN_STEPS = ("stable", "robust", "unique")  # parts that keep what they have done so far
NONE_WILL_DO = {"minimal": ("knockouts",), "ablations": ("random",), "stable": ("pairs",), "robust": ("pairs",)}
CHEAP = ("preserved", "chance", "errors", "ablations", "generalises", "minimal")  # without the training of masks


@dataclass(frozen=True, kw_only=True, repr=False)
class TrustCard(Result):
    """What `measure_trust` found.

    Attributes:
        task, model, method, n_edges: the circuit.
        trust: rows by their names.
    """

    schema: ClassVar[str] = "trust"
    file: ClassVar[str] = "trust.json"

    task: str
    model: str
    method: str
    n_edges: int
    trust: dict[str, TrustRow]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a claim."""
        names = (
            "name",
            "figure",
            "value",
            "low",
            "high",
            "bar",
            "state",
            "why",
            "pairs",
            "groups",
            "draws",
            "p",
            "seconds",
        )
        for row in self.trust.values():
            yield {name: getattr(row, name) for name in names}


@checks_arguments
def measure_trust(
    bench: Workbench,
    circuit: Circuit,
    *,
    only: Sequence[str] = CHEAP,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
) -> TrustCard:
    """Make the parts of a trust card and their rows.

    Args:
        bench: subject, pairs and masked model.
        circuit: any circuit of the model.
        only: which parts: "preserved", "chance", "errors", "ablations", "generalises", "minimal", "stable",
            "robust", "unique".
        settings: arguments of each part's function, by its name.
        folder: keeps the parts, so that a call that was stopped goes on, and a part that is asked for later joins them.
            None keeps nothing.
        seed: of all parts.

    Raises:
        UserError: no such part or argument, a count below 1 of what has to be there, or a circuit with masks for token
            roles that the task lacks.
    """
    bench = bench.fitted(circuit)
    known_by, anew, rows = identity(bench, circuit), identity_of_search(bench), []
    with opened(folder) as store:
        for name, own, known in _asked(only, settings, seed):
            kind, function, read, title = PARTS[name]
            with phase(name, title):
                steps = {"folder": store.folder / name} if name in IN_STEPS else {}
                work = partial(_timed, function, bench, circuit, own | steps)
                found = store.tried(name, known_by | (anew if steps else {}) | known, kind, work)
            rows += [_failed(name, found)] if isinstance(found, Failure) else _with_facts(read(found), found, known)
    return TrustCard(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        n_edges=circuit.n_edges,
        trust={row.name: row for row in rows},
    )


@checks_arguments
def share_trust(
    bench: Workbench,
    circuit: Circuit,
    folder: Path | str,
    *,
    only: Sequence[str] = CHEAP,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> None:
    """Make what no other process has begun of a trust card that several processes make side by side.

    Once all have ended, `measure_trust` with the same arguments reads what is there and makes the rest, such as a part
    that failed.

    Args:
        bench, circuit, only, settings, seed: as for `measure_trust`.
        folder: of the card, the same for all processes.

    Raises:
        UserError: as for `measure_trust`.
    """
    bench = bench.fitted(circuit)
    known_by, anew, store = identity(bench, circuit), identity_of_search(bench), Share(Path(folder))
    for name, own, known in _asked(only, settings, seed):
        kind, function, _, title = PARTS[name]
        if store.settled(name, known_by | (anew if name in IN_STEPS else {}) | known):
            continue
        try:
            if name in IN_STEPS:
                with phase(name, title):
                    function(bench, circuit, **own, folder=Share(store.folder / name))
            else:
                work = partial(_timed, function, bench, circuit, own)
                store.tried(name, known_by | known, kind, partial(_told, name, title, work))
        except InUse as busy:
            log.info("%s: %s", name, busy)
        except Exception as error:
            log.info("%s", name, exc_info=error)  # the process that sums up meets it again, and says it


def _asked(
    only: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None, seed: int
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The names of the parts, with the arguments of their functions and these as plain types."""
    unknown = [name for name in only if name not in PARTS]
    if unknown or not only:
        raise UserError(f"only={list(only)} are not some of {', '.join(PARTS)}")
    for name, given in (settings or {}).items():
        _check(name, given)
    for name in only:
        own = {**(settings or {}).get(name, {}), "seed": seed}
        yield name, own, {key: identity_of(value) for key, value in own.items()}


def _check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments that a part does not take, and counts of nothing."""
    if name not in PARTS:
        raise UserError(f"settings: there is no part {name}; take some of {', '.join(PARTS)}")
    taken = inspect.signature(PARTS[name][1]).parameters
    known = {key: one for key, one in taken.items() if key not in ("bench", "circuit", "folder", "seed")}
    anything = any(one.kind is one.VAR_KEYWORD for one in known.values())
    for key, value in given.items():
        if key not in known and not anything:
            raise UserError(f"settings of {name}: there is no argument {key}; take some of {', '.join(known)}")
        counts, least = key in known and known[key].annotation == "int", int(key not in NONE_WILL_DO.get(name, ()))
        if counts and isinstance(value, SupportsIndex) and index(value) < least:
            raise UserError(f"settings of {name}: {key}={value} is too few, at least {least} is needed")


def _told(name: str, title: str, work: Callable[[], Part]) -> Part:
    with phase(name, title):
        return work()


def _timed(function: Callable[..., Part], bench: Workbench, circuit: Circuit, own: dict[str, Any]) -> Part:
    begun = time.perf_counter()
    return function(bench, circuit, **own).replaced(seconds=time.perf_counter() - begun)


def _with_facts(rows: list[TrustRow], found: Result, settings: dict[str, Any]) -> list[TrustRow]:
    return [replace(row, seconds=found.seconds, settings=settings) for row in rows]


def _failed(name: str, failure: Failure) -> TrustRow:
    return TrustRow(name=name, figure=name, why=failure.error)
