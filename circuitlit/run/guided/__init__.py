"""LoRA's ranks by layer: from circuits, a gradient probe, uniform, at random, and AdaLoRA, at equal parameters."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import build_subject, provenance
from circuitlit.cli.finish import finish, own_settings
from circuitlit.compare.rank_patterns import RankComparison, RankSettings, compare_rank_patterns
from circuitlit.errors import UserError
from circuitlit.report.guided import print_guided, write_guided
from circuitlit.run.guided.makers import makers_of


def run(cfg: DictConfig) -> RankComparison:
    """Tune every way with every seed, and write `guided.json` and a page.

    Raises:
        UserError: a setting that cannot be used.
    """
    if cfg.adapter.build is None or cfg.tune.data:
        raise UserError("guided needs adapter=lora and a task with corrupted prompts (no tune.data)")
    settings = RankSettings(**own_settings(cfg.guided))
    base = build_subject(cfg)
    facts, makers = provenance(cfg, base), makers_of(cfg, base)
    del base  # makes room for the models that are tuned
    result = compare_rank_patterns(makers, settings, score=cfg.tune.score)
    return finish(cfg, result, facts, write_guided, print_guided)
