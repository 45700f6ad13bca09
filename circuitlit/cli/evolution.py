"""Callback that follows the masks of a run as they evolve: overlap, churn, stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from circuitlit.discover import MaskLearner
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.mask_run import load_masks, mask_files
from circuitlit.timeline.snapshots import Snapshots

BUDGET = 0.03  # share of the run's time


class Evolution(Callback):
    """Logs `masks/...` at every snapshot and names the stage that the run is in.

    `masks/overlap_previous` and `masks/overlap_start` are chance-corrected overlaps of the circuit that would be cut
    now; `masks/churn` counts the edges that went in or out since the last snapshot; `masks/undecided` is a share of
    gates; `masks/stage_untested` is 1 to 4, judged with today's circuit in place of the final one; it is compared with
    chance only when the run has ended (`follow_masks`).

    The stage is the dear part: it is left out whenever the callback has used more than `BUDGET` of the run's time,
    except where the run may stop on it. With several processes all come to the same decision.

    Args:
        folder: the run's `masks` folder: a resumed run reads there what came before.
        count: edges that the circuit is going to keep.
        every: steps between two snapshots; of a run that is shorter only the last masks are seen.
        stop: True ends the run at convergence, once the schedule's last knot has passed.

    Attributes:
        stage: name of the stage when it was last judged, untested, "" as long as none is known.
        seconds: that this callback has taken.
        seen: all snapshots so far.
    """

    def __init__(self, folder: Path, count: int, every: int, stop: bool = False) -> None:
        self.folder, self.count, self.every, self.stop = folder, count, every, stop
        self.stage = ""
        self.seconds = 0.0
        self.seen: Snapshots | None = None
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the first masks, or with those of the files that a resumed run has left."""
        assert isinstance(pl_module, MaskLearner)
        own = pl_module
        self.seen = Snapshots(own.loss.layout, self.count, own.schedule, own.target, own.gates)
        for step, path in mask_files(self.folder).items() if trainer.global_step else ():
            if step <= trainer.global_step:
                self.seen.add(step, load_masks(path))
        self._started = time.perf_counter()
        if self.every <= trainer.max_steps:
            self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look when it is time."""
        if trainer.global_step % self.every == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the last masks, whose step is not one to look at where the run has stopped early."""
        self._take_in(trainer, pl_module)

    def _take_in(self, trainer: Trainer, learner: LightningModule) -> bool:
        assert isinstance(learner, MaskLearner) and self.seen is not None
        return self.seen.add(trainer.global_step, learner.log_alpha.detach().float().cpu())

    def look(self, trainer: Trainer, learner: LightningModule) -> None:
        """Take in the masks, compare, log."""
        began = time.perf_counter()
        if not self._take_in(trainer, learner):
            return
        step, seen = trainer.global_step, self.seen
        assert seen is not None
        figures = {"undecided": seen.undecided[-1], "overlap_start": seen.overlap(0, -1)}
        if len(seen.steps) > 1:
            figures |= {"overlap_previous": seen.overlap_previous(-1), "churn": float(seen.churn(-1))}
        if self.stop or self.seconds <= BUDGET * (began - self._started):
            self.stage = seen.timeline(resamples=0).current or ""
            if self.stage:
                figures["stage_untested"] = float(NAMES.index(self.stage) + 1)
        for logger in trainer.loggers:
            logger.log_metrics({f"masks/{name}": value for name, value in figures.items()}, step=step)
        knots = [knot for knot in seen.knots().values() if knot is not None]
        if self.stop and self.stage == NAMES[-1] and step >= max(knots, default=0):
            trainer.should_stop = True
        self.seconds += time.perf_counter() - began


def snapshots_of(trainer: Trainer) -> Snapshots:
    """What the callback has seen of a run, which need not be read back from its mask files."""
    (seen,) = (one.seen for one in trainer.callbacks if isinstance(one, Evolution))  # type: ignore[attr-defined]
    assert seen is not None
    return seen
