"""One watched training: reads when it is time, writes what it finds, agrees with the other processes, says stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.graph import Circuit
from circuitlit.progress import CONSOLE
from circuitlit.report.watch import write_watch_page
from circuitlit.result import PACKAGES, version
from circuitlit.tasks import Pairs
from circuitlit.timeline.watch_checkpoints import SERIES, PairsOf, watched_circuit, with_stages
from circuitlit.timeline.watched import Alarm, Reading, Unread, WatchedCircuit
from circuitlit.timeline.watcher import TEXT, Watcher, WatchSettings, watched_with
from circuitlit.watch.live import beside_training, subject_of, whole_model
from circuitlit.watch.pace import SHARE, Pace

log = logging.getLogger(__name__)
OnDrift = Literal["warn", "stop"]
Log = Callable[[dict[str, float]], None]


@dataclass(kw_only=True)
class WatchSession:
    """Watches one training; both callbacks hold one.

    Attributes:
        pairs: of your own, or what makes them of the model's tokenizer (`partial(ioi, ...)`).
        circuit: to watch, or its file or run; None takes the one that is found at the start.
        tokenizer: None takes the trainer's.
        folder: for `watch.json`, `evolve.json`, the page and the circuits; None takes one in the trainer's.
        every: steps between readings; None lets the readings cost at most `share` of the training's time.
        share: of that time.
        on_drift: "warn" says it and goes on, "stop" also ends the training.
        settings: what is measured.
        result: what was found so far.
    """

    pairs: Pairs | PairsOf
    circuit: Circuit | str | Path | None = None
    tokenizer: Any = None
    folder: str | Path | None = None
    every: int | None = None
    share: float = SHARE
    on_drift: OnDrift = "warn"
    settings: WatchSettings = field(default_factory=WatchSettings)
    result: WatchedCircuit | None = None
    readings: list[Reading] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    _watcher: Watcher | None = None
    _pace: Pace = field(default_factory=Pace)
    _begun: int = 0  # step at which this process began
    _trained: float = 0.0
    _stopped: bool = False
    _facts: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"versions": {name: version(name) for name in PACKAGES}}
    )

    def __post_init__(self) -> None:
        if self.on_drift not in ("warn", "stop"):
            raise UserError(f"on_drift={self.on_drift} is neither warn nor stop")
        if self.every is not None and self.every < 1:
            raise UserError(f"every={self.every} is not at least 1 step")
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share} is not above 0 and at most 1")

    def begin(self, model: nn.Module, step: int, last: int | None, tokenizer: Any, place: Path, log_to: Log) -> bool:
        """Read the start, or take up the readings of a training that was interrupted. Mistakes are raised here.

        Args:
            model: that is trained, on its device.
            step: at which training begins.
            last: at which it ends, if that is known.
            tokenizer: the trainer's.
            place: folder of the trainer.
            log_to: gets the figures.

        Returns:
            True where the training is to stop.
        """
        whole_model(model)  # in every process: what is refused is refused by all
        self.tokenizer = self.tokenizer or tokenizer
        self.folder = Path(self.folder or place / "watch")
        self._pace, self._begun = Pace(last, self.every, self.share), step
        self.readings, self.unread, self._stopped = [], [], False
        if _writes():
            self._open(model, step)
            if not self.readings or self.readings[-1].step < step:
                self._read(model, step, log_to, strict=True)
        self._pace.begin(step)
        return self._agree(step)

    def after(self, model: nn.Module, step: int, ends: bool, log_to: Log) -> bool:
        """A step has ended: read, if it is time; True where the training is to stop."""
        self._pace.stepped(step)
        if not ends and step < self._pace.due:
            return self._stopped
        if _writes():
            if next(model.parameters()).is_cuda:
                torch.cuda.synchronize()  # or the steps' time would not be known
            planned = self._pace.plans and not ends
            if not planned and (not self.readings or self.readings[-1].step < step):
                self._read(model, step, log_to, strict=False)
            self._pace.plan(step)
            if planned:
                _say(self._pace.words(step))
        return self._agree(step)

    def end(self, step: int) -> None:
        """Training has ended: write the evolution and the page."""
        if not _writes() or self._watcher is None or not self.readings:
            return
        seconds = self._pace.step_seconds(step)
        self._trained = 0.0 if seconds is None else seconds * max(1, step - self._begun)
        begun = time.perf_counter()
        self._save()
        assert self.result is not None and isinstance(self.folder, Path)
        self.result, evolution = with_stages(self.result, self.folder)
        evolution.save(self.folder)
        self._pace.spent += time.perf_counter() - begun
        self.result = self.result.replaced(seconds=self._pace.spent, cost=self._cost())
        self.result.save(self.folder)
        (self.folder / TEXT).unlink(missing_ok=True)  # nobody goes on from here
        page, cost = write_watch_page(self.result, self.folder), self.result.cost
        more = "" if cost is None else f", {cost:.1%} of the training's time"
        _say(f"{len(self.readings)} readings in {self._pace.spent:.1f} s{more}: {page}")

    def _open(self, model: nn.Module, step: int) -> None:
        assert isinstance(self.folder, Path)
        pairs = self.pairs if isinstance(self.pairs, Pairs) else self.pairs(self.tokenizer)
        known = WatchedCircuit.load(self.folder) if step and (self.folder / WatchedCircuit.file).is_file() else None
        self._watcher = Watcher(SERIES, pairs, self.settings, self.folder, self.circuit)
        self._facts["watched_with"] = own = watched_with(pairs, self.settings, self.circuit)
        if known is not None:
            changed = [name for name, value in known.provenance.get("watched_with", own).items() if value != own[name]]
            if changed:
                raise UserError(
                    f"the readings in {self.folder} were made with other {changed[0]}; go on with the same, or watch "
                    "into another folder"
                )
            self.readings = [one for one in known.readings if one.step <= step]
            self.unread = list(known.unread)
        if self.readings and known is not None:
            given = {name: value for name, value in asdict(self.settings.limits).items() if value is not None}
            self._watcher.go_on(self.readings, replace(known.limits, **given))
            return _say(f"goes on from {len(self.readings)} readings in {self.folder}")
        self._watcher.anew = True

    def _read(self, model: nn.Module, step: int, log_to: Log, strict: bool) -> None:
        """One reading; after the first one, an error of ours never ends somebody's training."""
        watcher, begun = self._watcher, time.perf_counter()
        assert watcher is not None
        device = next(model.parameters()).device
        try:
            with beside_training(device):
                subject = subject_of(model, self.tokenizer)
                reading = watcher.read(subject, step)
        except Exception as error:
            if strict:
                raise
            self._fail(model, step, error)
            self._pace.read(time.perf_counter() - begun)
            return
        self.readings.append(replace(reading, seconds=time.perf_counter() - begun))
        self._save()
        log_to({f"circuit/{name}": value for name, value in self.readings[-1].figures().items()})
        self._pace.read(time.perf_counter() - begun)
        if strict:
            limits = [f"{name} {value:.3f}" for name, value in asdict(watcher.limits).items() if value is not None]
            size = f"{watcher.start.n_edges:,} edges, method {watcher.settings.method.name}"
            _say(f"{size}; drift begins beyond {', '.join(limits)}; {self._pace.words(step)}")
        if reading.alarms:
            self._alarm(step, reading.alarms)

    def _fail(self, model: nn.Module, step: int, error: Exception) -> None:
        if not all(math.isfinite(float(one.detach().float().sum())) for one in model.parameters()):
            return self._alarm(step, [Alarm(signal="weights", value=None, limit=None)], "weights are not finite")
        log.warning("circuit watch: step %d could not be read (%s); the training goes on", step, error, exc_info=error)
        self.unread.append(Unread(step=step, reason=str(error)))
        self._save()

    def _alarm(self, step: int, alarms: list[Alarm], unread: str | None = None) -> None:
        if unread is not None:
            self.unread.append(Unread(step=step, reason=unread))
        self._stopped = self.on_drift == "stop"
        then = "the training is stopped" if self._stopped else "the training goes on (on_drift=stop ends it)"
        log.warning("circuit watch: drift at step %d: %s; %s", step, "; ".join(map(str, alarms)), then)
        self._save()

    def _save(self) -> None:
        watcher, pace = self._watcher, self._pace
        assert watcher is not None and isinstance(self.folder, Path)
        if not self.readings:
            return
        found = watched_circuit(watcher, self.readings, self.unread)
        self.result = found.replaced(
            stopped=self._stopped,
            training_seconds=self._trained or None,
            cost=self._cost(),
            seconds=pace.spent,
            provenance=self._facts,
        )
        self.result.save(self.folder)

    def _cost(self) -> float | None:
        return self._pace.spent / self._trained if self._trained else None

    def _agree(self, step: int) -> bool:
        """Every process takes over when the first one reads next, and whether it stops."""
        told: list[Any] = [(self._pace.due, self._pace.plans, self._stopped)]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
            dist.broadcast_object_list(told, src=0, device=device)
        self._pace.due, self._pace.plans, self._stopped = told[0]
        return self._stopped


def _writes() -> bool:
    """Whether this is the process that reads and writes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _say(text: str) -> None:
    CONSOLE.print(f"circuit watch: {text}", highlight=False, soft_wrap=True)


class Watching:
    """What the callbacks of every trainer have; arguments as the attributes of `WatchSession`."""

    @checks_arguments
    def __init__(
        self,
        pairs: Pairs | PairsOf,
        circuit: Circuit | str | Path | None = None,
        *,
        tokenizer: Any = None,
        folder: str | Path | None = None,
        every: int | None = None,
        share: float = SHARE,
        on_drift: OnDrift = "warn",
        settings: WatchSettings | None = None,
    ) -> None:
        self.session = WatchSession(
            pairs=pairs,
            circuit=circuit,
            tokenizer=tokenizer,
            folder=folder,
            every=every,
            share=share,
            on_drift=on_drift,
            settings=settings or WatchSettings(),
        )

    @property
    def result(self) -> WatchedCircuit:
        """What was found so far.

        Raises:
            UserError: nothing was read yet.
        """
        if self.session.result is None:
            raise UserError("nothing was watched yet; put the callback into a Trainer and train")
        return self.session.result
