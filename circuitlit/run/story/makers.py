"""How a story tunes, loads and follows models, from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import build_pairs, build_subject, build_workbench
from circuitlit.cli.checks import writing_to
from circuitlit.cli.finish import prepare
from circuitlit.cli.sides import load_side, passages
from circuitlit.discover.workbench import Workbench
from circuitlit.model import Subject
from circuitlit.run import evolve, tune
from circuitlit.run.story.settings import Way, verb_settings
from circuitlit.tasks import EncodedPairs
from circuitlit.timeline.evolution import TaskEvolution
from circuitlit.timeline.telling import Makers


@dataclass(frozen=True)
class ConfiguredMakers:
    """Makes `Makers`.

    Attributes:
        cfg: the story's settings.
        own: settings with the circuits' pairs.
    """

    cfg: DictConfig
    own: DictConfig

    @cached_property
    def subject(self) -> Subject:
        """The model before tuning."""
        return build_subject(self.cfg)

    def makers(self, ways: list[Way]) -> Makers:
        """Of some ways to tune."""
        return Makers(
            tune={way.name: partial(self._tune, way.cfg) for way in ways},
            base=self._base,
            load=lambda folder, name: load_side(self.cfg, str(folder), name),
            bench=partial(build_workbench, self.own),
            follow=self._follow,
            text=self._text,
        )

    def _tune(self, way: DictConfig, folder: Path) -> dict[str, Any]:
        with writing_to(folder):
            found = tune.run(way).to_dict()
        prepare(self.cfg)
        return found

    def _base(self) -> tuple[Workbench, EncodedPairs]:
        return build_workbench(self.own, self.subject), build_pairs(self.cfg, self.subject).test

    def _follow(self, _name: str, folder: Path) -> TaskEvolution:
        with writing_to(folder / "evolve"):
            made = evolve.run(verb_settings(self.cfg, "evolve", {"evolve": {"folder": str(folder / "tune")}}))
        assert made is not None
        return made.series[0].tasks[self.cfg.task.name]

    def _text(self, subject: Subject, folder: Path) -> Int[Tensor, "passage pos"]:
        size = self.cfg.story.passages
        with writing_to(folder):
            return passages(verb_settings(self.cfg, "intervene", {}), subject, size.count, size.length)
