"""Is a model read rightly? Identities on its own weights and on a twin; or the list of all families."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs, build_subject
from circuitlit.cli.finish import finish, prepare
from circuitlit.errors import UserError
from circuitlit.evaluate.check.check_model import ModelCheck, check_model
from circuitlit.evaluate.check.list_families import Families, list_families
from circuitlit.progress import phase
from circuitlit.report.check import print_check, print_families


def run(cfg: DictConfig) -> ModelCheck | Families:
    """Write `check.json`, or `families.json`, into the run directory.

    Raises:
        UserError: the model is not read rightly; the place where it first differs and what mends it.
    """
    prepare(cfg)
    if cfg.families:
        return finish(cfg, list_families(), {}, None, print_families)
    with phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg, unchecked=True)
    given = any(word.startswith("task") for word in HydraConfig.get().overrides.task)
    pairs = build_pairs(cfg, subject) if given else None
    result = check_model(subject, pairs=pairs, cache_dir=cfg.paths.cache_dir, seed=cfg.seed)
    result = finish(cfg, result, subject, None, print_check)
    if result.status == "FAILED":
        where = "no single part differs alone" if result.place is None else f"first at {result.place}"
        mends = f"; what mends it: {result.remedy}" if result.remedy else ""
        raise UserError(f"{subject.name} is not read rightly, {where}{mends}")
    return result
