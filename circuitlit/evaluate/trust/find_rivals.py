"""`find_rivals`: is a circuit the only one, or one of several? Searched with a given number of edges in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from circuitlit.arguments import checks_arguments
from circuitlit.discover.gates import Gates
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.find import GATES, SCHEDULE
from circuitlit.evaluate.trust.planted_search import search_planted
from circuitlit.evaluate.trust.rival_figures import rivals_of
from circuitlit.evaluate.trust.rival_search import STARTS, RivalSearch
from circuitlit.evaluate.trust.rivals import ACCEPTED, FEW, MOST, REJECTED, PlantedSearch, RivalCircuit, Rivals
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.progress import phase
from circuitlit.store import Part, Store, opened
from circuitlit.tasks import PairsModule

SHARES = (0.75, 0.5, 0.25, 0.0)


@checks_arguments
def find_rivals(
    bench: Workbench,
    circuit: Circuit,
    *,
    shares: Sequence[float] = SHARES,
    starts: Sequence[str] = STARTS,
    precision: float = 0.05,
    within: float = 0.02,
    exact: float = 0.05,
    draws: int = 5,
    probe_pairs: int = 32,
    pairs: int = 200,
    control: bool = True,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
    others: Mapping[str, PairsModule] | None = None,
    folder: Path | str | Store | None = None,
    seed: int = 0,
) -> Rivals:
    """Search circuits of the same size with a given share of edges in common, down to none.

    Args:
        bench: subject, pairs and masked model.
        circuit: the first one.
        shares: of its edges that rivals keep; 0.25 and 0.75, where verdicts change, are always among them.
        starts: what masks start from: mask gradients in the model without the circuit ("removed") or in the whole model
            ("whole"), or all masks open and equal ("equal"); validation pairs choose.
        precision: the least share with an accepted rival is bisected to this.
        within: share of KL(model || no edges) by which a rival's KL may be higher, the upper end of its interval.
        exact: by which its exact match may be lower.
        draws: random circuits with as many common edges, for comparison.
        probe_pairs: validation pairs that choose the start.
        pairs: most test pairs, of as many sentences as possible.
        control: True searches a planted second copy in a random model before it says "unique", which it does of no
            model with fewer than three layers or two key/value heads.
        schedule, gates: of the masks' training; None takes those of `find_circuit`.
        others: pairs of more tasks, for the cross table.
        folder: keeps the rivals, so that a search that was stopped goes on; a `Share` shares them out to several
            processes; None keeps nothing.
        seed: of everything random.

    Raises:
        UserError: masks that differ by token role, an unknown start, or a circuit of more than half of all edges.
        InUse: another process of a `Share` searches some of the rivals.

    Source: repulsion from an earlier circuit, arXiv 2605.12671, which penalises common edges by a weight; here their
    number is held.
    """
    if len(circuit.kept) > 1 or 2 * circuit.n_edges > circuit.kept.numel() or not circuit.n_edges:
        raise UserError("rivals are searched of circuits with at most half of all edges and without token roles")
    if not starts or set(starts) - set(STARTS):
        raise UserError(f"starts={list(starts)} are not some of {', '.join(STARTS)}")
    bench = replace(bench, count=circuit.n_edges, layout=MaskLayout(circuit.graph))
    settings: dict[str, Any] = {
        "schedule": schedule or SCHEDULE,
        "gates": gates or GATES,
        "starts": list(starts),
        "within": within,
    }
    settings |= {"exact": exact, "draws": draws, "probe_pairs": probe_pairs, "pairs": pairs, "seed": seed}
    search = RivalSearch.of(bench, circuit, **settings)
    planned = sorted({round(share * circuit.n_edges) for share in (*shares, 1.0, FEW, MOST)}, reverse=True)
    with opened(folder) as store:
        parts = [
            Part("free", search.identity, RivalCircuit, partial(_told, "free", "without a constraint", search.free))
        ]
        made = store.all_made([*parts, *(_part(search, common) for common in planned)])
        free, found = made["free"], {common: made[f"rival_{common}"] for common in planned}
        while (common := _between(circuit.n_edges, precision, [*found.values(), free])) is not None:
            part = _part(search, common)
            found[common] = store.made(part.name, part.settings, part.kind, part.work)
        result = rivals_of(search, free, [found[common] for common in sorted(found, reverse=True)], others or {})
        fits = circuit.graph.n_layers >= 3 and circuit.graph.n_kv_heads >= 2  # two copies of three heads
        if control and fits and result.u_low >= MOST and result.free.state != REJECTED:
            with phase("control", "Searching a planted second copy in a random model"):
                key = {"graph": circuit.graph.to_dict(), **search.identity}
                work = partial(search_planted, circuit.graph, circuit.n_edges, bench.subject.device, settings)
                result = result.replaced(control=store.made("control", key, PlantedSearch, work))
    return result


def _part(search: RivalSearch, common: int) -> Part[RivalCircuit]:
    key, title = {"common": common, **search.identity}, f"a rival with {common:,} of {search.bench.count:,} edges"
    work = partial(_told, f"rival {common}", title, partial(search.rival, common))
    return Part(f"rival_{common}", key, RivalCircuit, work)


def _told(name: str, what: str, search: Callable[[], RivalCircuit]) -> RivalCircuit:
    with phase(name, f"Searching {what}"):
        return search()


def _between(size: int, precision: float, tried: Sequence[RivalCircuit]) -> int | None:
    """Number of common edges to search next, between the least accepted and the next lower one.

    Args:
        size: edges of the circuit.
        precision: share at which the bisection ends, but not below one edge.
        tried: what the numbers so far gave, and the search without a constraint.
    """
    least = min((one.n_common for one in tried if one.state == ACCEPTED), default=size)
    below = max((one.n_common for one in tried if one.n_common < least), default=least)
    return None if least - below <= max(1, precision * size) else (least + below) // 2
