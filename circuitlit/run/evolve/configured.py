"""What an evolution measures at each checkpoint, from configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import attribute, build_method, build_workbench, plain
from circuitlit.cli.configs import ONE_MODEL, Entry, check_shared, composed, entries
from circuitlit.cli.kept import settings_of, training_of
from circuitlit.cli.learn import learn
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.testing import enough_draws
from circuitlit.graph import EdgeScores
from circuitlit.model import Subject
from circuitlit.model.contents import stamps_of
from circuitlit.run.evolve.series import claims_of, configured
from circuitlit.timeline.cells import TaskAtCheckpoint
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.follow import Before, Job, Series, head_jobs
from circuitlit.timeline.measured import Learn, measure_task
from circuitlit.timeline.measured_heads import FollowSettings, HeadsFollowed
from circuitlit.timeline.summary import CAUSAL, HEADS

_GROUPS = ("task", "model", "adapter", "mask", "sparsity", "objective", "ablation", "method", "data")
_OWN = ("circuits", "cold_every", "faithfulness", "probe_pairs", "resamples", "smallest", "heads")


def check(cfg: DictConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: a single resample, backup without the algorithm, masks in parts, a part that does not exist, or a
            checkpoint to go on from.
    """
    settings_from(cfg)
    settings = cfg.evolve
    if settings.part not in range(settings.parts):
        raise UserError(f"evolve.part={settings.part} is not one of the parts 0 to {settings.parts - 1}")
    if settings.parts > 1 and settings.circuits == "masks":
        raise UserError("evolve.parts needs circuits=attribution: masks begin with those of the checkpoint before")
    if cfg.ckpt_path is not None:
        raise UserError("ckpt_path is for single runs; evolve goes on by itself in the same hydra.run.dir")


def tasks_of(cfg: DictConfig) -> dict[str, DictConfig]:
    """The tasks with the settings that make them.

    Raises:
        UserError: one has the name of another cell, or another model.
    """
    entered = entries(cfg.evolve.tasks, "task") or [Entry(str(cfg.task.name), ())]
    if {entry.name for entry in entered} & {HEADS, CAUSAL}:
        raise UserError(f"evolve.tasks: '{HEADS}' and '{CAUSAL}' are names of other cells; call the task otherwise")
    made = {entry.name: composed(*entry.settings) if entry.settings else cfg for entry in entered}
    for name, own in made.items():
        check_shared(own, cfg, f"evolve.tasks: {name}", ONE_MODEL)
    return made


def settings_from(cfg: DictConfig) -> FollowSettings:
    """What is measured."""
    own = plain(cfg.evolve)
    names = ("faithfulness", "smallest", "probe_pairs", "resamples", "draws")
    return FollowSettings(**{name: own[name] for name in names}, seed=cfg.seed, heads=HeadsFollowed(**own["heads"]))


@dataclass(frozen=True)
class ConfiguredJobs:
    """What is measured at the checkpoints of one series.

    Attributes:
        cfg: the evolution's settings.
        one: the series.
        tasks: by name, with their settings.
    """

    cfg: DictConfig
    one: Series
    tasks: dict[str, DictConfig]

    def at(self, checkpoint: Checkpoint, number: int, before: Before) -> Sequence[Job]:
        """The measurements of one checkpoint."""
        final, settings = checkpoint == self.one.final, settings_from(self.cfg)
        jobs = [self._task(name, checkpoint, number, before.get(name)) for name in self.tasks]
        draws = settings.heads.draws or enough_draws(claims_of(self.cfg))
        return jobs + head_jobs(settings, known(self.cfg, checkpoint), final, draws)

    def _task(self, name: str, checkpoint: Checkpoint, number: int, before: tuple[Path, object] | None) -> Job:
        task, final = self.tasks[name], checkpoint == self.one.final
        own, by_masks = configured(task, checkpoint), task.evolve.circuits == "masks"
        cold = by_masks and number % task.evolve.cold_every == 0
        start, earlier = before if by_masks and before else (None, None)

        def work(subject: Subject, folder: Path) -> TaskAtCheckpoint:
            bench, method, settings = build_workbench(own, subject), build_method(own), settings_from(own)
            file = start and start / "circuit.safetensors"
            by: Learn | None = partial(_masks, own, folder, file, cold) if by_masks else None
            return measure_task(bench, method, settings, folder, final, by)

        return Job(name, [known(task, checkpoint), earlier, cold, final], work)


def _masks(
    cfg: DictConfig, folder: Path, start: Path | None, cold_too: bool, bench: Workbench
) -> tuple[EdgeScores, EdgeScores | None]:
    """Masks that begin with those of the checkpoint before, and where asked for others that begin with attribution."""
    attribution = attribute(cfg, bench) if start is None or cold_too else None
    cold = learn(cfg, bench, attribution, folder / "cold")[0].scores() if attribution is not None else None
    if start is None:
        assert cold is not None
        return cold, None
    warm = cfg.copy()
    warm.mask.init_from = str(start)
    return learn(warm, bench, None, folder)[0].scores(), cold


def known(cfg: DictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """All settings that a measurement depends on."""
    own = plain(cfg.evolve)
    chosen = {"evolve": {key: own[key] for key in _OWN}, "checkpoint": asdict(checkpoint)}
    stamps = stamps_of(checkpoint.path, checkpoint.adapter or cfg.adapter.path)
    masks = training_of(cfg) if own["circuits"] == "masks" else {}
    return settings_of(cfg, _GROUPS) | chosen | masks | {"weights": stamps}
