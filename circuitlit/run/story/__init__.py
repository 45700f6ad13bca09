"""A whole tuning story: tune in several ways, follow the circuits, compare, intervene, and tell it on one page.

Every part leaves its own files under the run directory, as the verb of its name does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import build_method, plain
from circuitlit.cli.checks import run_dir, writing_to
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.kept import settings_of
from circuitlit.compare.comparison import Comparison
from circuitlit.compare.interventions import Interventions
from circuitlit.errors import UserError
from circuitlit.evaluate.testing import LEAST_DRAWS
from circuitlit.model import Subject
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.report.interventions import print_interventions, write_interventions
from circuitlit.report.story import print_story, write_story
from circuitlit.result import Result
from circuitlit.run import compare
from circuitlit.run.story.makers import ConfiguredMakers
from circuitlit.run.story.settings import most_draws, verb_settings, ways_of
from circuitlit.store import Store
from circuitlit.timeline.story import TuningStory
from circuitlit.timeline.telling import made, tell_story

_GROUPS = ("task", "model", "adapter", "tune", "method", "ablation", "sparsity", "mask", "data", "evaluate", "story")
SAMPLED = "sampled from the model"


def run(cfg: DictConfig) -> TuningStory:
    """Tell the story and write `story.json` and `story.html` beside the parts' own files.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check(cfg)
    prepare(cfg)
    own, other = verb_settings(cfg, "compare", {}), verb_settings(cfg, "intervene", {})
    configured = ConfiguredMakers(cfg, own)

    store, settings = Store(run_dir() / "parts"), settings_of(cfg, _GROUPS)

    def once(name: str, text: str, work: Callable[[], Any], kind: type) -> Any:
        return store.made(name, settings, kind, partial(made, name, text, work, kind))

    def done(result: Result, folder: Path, subject: Subject) -> Result:
        with writing_to(folder):
            if isinstance(result, Comparison):
                return finish(own, result, subject, write_comparison, print_comparison)
            assert isinstance(result, Interventions)
            return finish(other, result, subject, write_interventions, print_interventions)

    result = tell_story(
        configured.makers(ways_of(cfg)),
        build_method(cfg),
        run_dir(),
        layers=list(cfg.story.layers),
        pairs=cfg.story.pairs,
        draws=most_draws(cfg),
        seed=cfg.seed,
        comparing=compare.settings_of(own),
        intervening=own_settings(other.intervene, "other_tasks", "passages") | {"text_source": other.text or SAMPLED},
        once=once,
        done=done,
    )
    result = replace(result, story=plain(cfg.story))
    return finish(cfg, result, configured.subject, write_story, print_story)


def _check(cfg: DictConfig) -> None:
    if cfg.story.draws is not None and cfg.story.draws < LEAST_DRAWS:
        raise UserError(f"story.draws={cfg.story.draws} is too few random sets; take at least {LEAST_DRAWS}")
    if cfg.tune.data:
        raise UserError("a story needs a task with corrupted prompts; leave tune.data out and choose a task")
    if cfg.ckpt_path is not None:
        raise UserError("ckpt_path is for one tuning run; a story that was stopped goes on in the same hydra.run.dir")
