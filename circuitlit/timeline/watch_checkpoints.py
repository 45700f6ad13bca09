"""From readings of a circuit to what was found; and the same readings after the fact, over checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError, sentence
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.progress import phase, say
from circuitlit.tasks import Pairs
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.evolution import Evolution
from circuitlit.timeline.follow import Loaded, loaded_subject, one_at_a_time
from circuitlit.timeline.measured_heads import FollowSettings
from circuitlit.timeline.series import SOME
from circuitlit.timeline.summary import summarise_evolution
from circuitlit.timeline.watched import DRIFT, WATCHED, Reading, Unread, WatchedCircuit
from circuitlit.timeline.watcher import Watcher, WatchSettings

SERIES = "training"
PairsOf = Callable[[Any], Pairs]  # of a tokenizer


@checks_arguments
def watch_checkpoints(
    checkpoints: Sequence[Checkpoint],
    pairs: Pairs | PairsOf,
    circuit: Circuit | str | Path | None = None,
    settings: WatchSettings | None = None,
    *,
    load: Callable[[Checkpoint], Subject] | None = None,
    folder: Path | str | None = None,
) -> WatchedCircuit:
    """Follow a circuit over the checkpoints of a training, as the callbacks do while it runs.

    Args:
        checkpoints: of `local_checkpoints(FOLDER)`; the first one is the start.
        pairs: of your own, or what makes them of the model's tokenizer (`partial(ioi, ...)`).
        circuit: to watch, or its file or run; None takes the one that is found at the start.
        settings: what is measured.
        load: loads a checkpoint; None takes `load_subject`.
        folder: gets the circuits; None keeps none.

    Raises:
        UserError: fewer than two checkpoints, or a start that cannot be read.
    """
    loaded: Loaded = partial(one_at_a_time, load or loaded_subject)
    with ExitStack() as stack:
        where = Path(stack.enter_context(TemporaryDirectory()) if folder is None else folder)
        return watch_series(checkpoints, pairs, circuit, settings or WatchSettings(), loaded, where)[0]


def watch_series(
    checkpoints: Sequence[Checkpoint],
    pairs: Pairs | PairsOf,
    circuit: Circuit | str | Path | None,
    settings: WatchSettings,
    loaded: Callable[[Checkpoint, Checkpoint | None], AbstractContextManager[Subject]],
    folder: Path,
) -> tuple[WatchedCircuit, Evolution]:
    """As `watch_checkpoints`, with the evolution that `timeline` reads; circuits go into the folder."""
    if len(checkpoints) < 2:
        raise UserError(f"a watch needs two checkpoints or more, there are {len(checkpoints)}")
    watcher: Watcher | None = None
    readings: list[Reading] = []
    unread: list[Unread] = []
    with phase("watch", f"Watching the circuit over {len(checkpoints)} checkpoints"):
        for number, checkpoint in enumerate(checkpoints):
            say(f"step {checkpoint.step:,}")
            try:
                with loaded(checkpoint, next(iter(checkpoints[number + 1 :]), None)) as subject:
                    if watcher is None:
                        made = pairs if isinstance(pairs, Pairs) else pairs(subject.tokenizer)
                        watcher = Watcher(SERIES, made, settings, folder, circuit)
                    readings.append(watcher.read(subject, checkpoint.step))
            except Exception as error:
                if not readings:
                    raise
                reason = str(error) if isinstance(error, UserError) else sentence(error)
                unread.append(Unread(step=checkpoint.step, reason=reason))
    assert watcher is not None
    with phase("stages", "Looking for stages"):
        return with_stages(watched_circuit(watcher, readings, unread), folder)


def watched_circuit(watcher: Watcher, readings: Sequence[Reading], unread: Sequence[Unread]) -> WatchedCircuit:
    """What some readings have found so far, without stages."""
    first, alarms = readings[0], [(one.step, alarm) for one in readings for alarm in one.alarms]
    broken = [(one.step, one.reason) for one in unread if "not finite" in one.reason or "NaN" in one.reason]
    found = [*alarms, *broken]
    step, what = min(found, key=lambda one: one[0]) if found else (None, None)
    return WatchedCircuit(
        status=DRIFT if found else WATCHED,
        reason=f"step {step}: {what}" if found else None,
        model=watcher.model,
        task=watcher.task,
        method=first.cell.method,
        circuit="found" if watcher.given is None else "given",
        n_edges=watcher.start.n_edges,
        n_edges_total=first.cell.n_edges_total,
        n_pairs=watcher.n_pairs,
        limits=watcher.limits,
        readings=list(readings),
        unread=list(unread),
    )


def with_stages(found: WatchedCircuit, folder: Path, draws: int = SOME) -> tuple[WatchedCircuit, Evolution]:
    """The same with the stages of its training, and the evolution that they are read off.

    Args:
        found: the readings.
        folder: that holds their circuits.
        draws: random circuits beside what neighbouring readings share, where a behaviour emerges.
    """
    cells = [(Checkpoint(one.step, str(folder)), one.cell) for one in found.readings]
    own = FollowSettings(smallest=False, resamples=0)
    series = {SERIES: {found.task: cells}}
    evolution = summarise_evolution(series, [found.task], found.model, folder / "circuits", own, draws)
    stages = evolution.series[0].tasks[found.task].stages
    return found.replaced(stages=stages), evolution.replaced(provenance=found.provenance)
