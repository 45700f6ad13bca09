"""A whole tuning story: tune in several ways, follow the circuits, compare, intervene, and tell it on one page.

Every part leaves its own files under the run directory, as the verb of its name does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from omegaconf import DictConfig

from circuitlit.cli.build import build_method, plain
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.report.story import print_story, write_story
from circuitlit.run import compare
from circuitlit.run.story.makers import ConfiguredMakers
from circuitlit.run.story.settings import check, most_draws, verb_settings, ways_of
from circuitlit.timeline.story import TuningStory
from circuitlit.timeline.telling import tell_story

SAMPLED = "sampled from the model"


def run(cfg: DictConfig) -> TuningStory:
    """Tell the story and write `story.json` and `story.html` beside the parts' own files.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    check(cfg)
    prepare(cfg)
    own, other = verb_settings(cfg, "compare", {}), verb_settings(cfg, "intervene", {})
    configured = ConfiguredMakers(cfg, own)
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
        once=configured.once,
        done=partial(configured.finished, own, other),
    )
    result = replace(result, story=plain(cfg.story))
    return finish(cfg, result, configured.subject, write_story, print_story)
