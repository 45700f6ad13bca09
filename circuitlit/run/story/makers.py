"""How a story tunes, loads and follows models, from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import build_pairs, build_subject, build_workbench
from circuitlit.cli.checks import run_dir, writing_to
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.kept import settings_of
from circuitlit.cli.resume import trained_with
from circuitlit.cli.sides import load_side, passages
from circuitlit.compare.comparison import Comparison
from circuitlit.compare.interventions import Interventions
from circuitlit.discover.workbench import Workbench
from circuitlit.model import Subject
from circuitlit.model.contents import stamps_of
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.report.interventions import print_interventions, write_interventions
from circuitlit.result import Result
from circuitlit.run import evolve, tune
from circuitlit.run.story.settings import Way, verb_settings
from circuitlit.store import Store
from circuitlit.tasks import EncodedPairs
from circuitlit.timeline.evolution import TaskEvolution
from circuitlit.timeline.telling import Makers, made

_GROUPS = ("task", "model", "adapter", "tune", "method", "ablation", "sparsity", "mask", "data", "evaluate", "story")


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

    def once(self, name: str, text: str, work: Callable[[], Any], kind: type) -> Any:
        """A part of the story, made once with these settings."""
        weights = stamps_of(self.cfg.model.path, self.cfg.adapter.path)
        settings = settings_of(self.cfg, _GROUPS) | trained_with(self.cfg, ("trainer",), 1) | {"weights": weights}
        return Store(run_dir() / "parts").made(name, settings, kind, partial(made, name, text, work, kind))

    def finished(self, own: DictConfig, other: DictConfig, result: Result, folder: Path, subject: Subject) -> Result:
        """A part's result with its files and page, as `compare` or `intervene` leave them."""
        with writing_to(folder):
            if isinstance(result, Comparison):
                return finish(own, result, subject, write_comparison, print_comparison)
            assert isinstance(result, Interventions)
            return finish(other, result, subject, write_interventions, print_interventions)

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
