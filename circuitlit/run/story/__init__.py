"""A whole tuning story: tune in several ways, follow the circuits, compare, intervene, and tell it on one page.

Every part is a verb of its own and leaves its own files under the run directory. Circuits are scored on validation
pairs, which tuning never saw; everything that is said of them is measured on test pairs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_workbench, plain
from circuitlit.cli.checks import run_dir, writing_to
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.sides import load_both
from circuitlit.compare.comparison import compare_models
from circuitlit.compare.scored import ScoredModel
from circuitlit.errors import UserError
from circuitlit.evaluate.testing import LEAST_DRAWS, with_holm
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE, Clock, phase
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.report.story import print_story, write_story
from circuitlit.run import compare, evolve, intervene, tune
from circuitlit.run.story.measure import answers, carried_by_layers
from circuitlit.run.story.parts import Parts
from circuitlit.run.story.settings import Way, verb_settings, ways_of


def run(cfg: DictConfig) -> dict[str, Any]:
    """Tell the story and write `story.json` and `story.html` beside the parts' own files.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check(cfg)
    ways, clock, folder = ways_of(cfg), Clock(), run_dir()
    parts = Parts(cfg, folder / "parts", clock)
    told: dict[str, dict[str, Any]] = {}
    for way in ways:
        own, place = way.cfg, folder / way.name / "tune"
        told[way.name] = {
            "tuning": parts.made(f"{way.name}_tuning", f"{way.name}: tuning", lambda c=own: tune.run(c), place)
        }
    answered = parts.made(
        "answers",
        "Testing all ways on the same held-out pairs and on other text",
        lambda: asdict(answers(cfg, [way.name for way in ways])),
    )
    for way in ways:
        told[way.name] |= answered["ways"][way.name]
    between = answered["between"]
    sides: dict[str, ScoredModel] = {}
    for way in ways:
        told[way.name] |= _followed(cfg, way, folder / way.name, sides, parts)
    result = _result(cfg, ways, told, between, clock)
    write_json(folder / "story.json", result)
    page = write_story(folder)
    print_story(result, CONSOLE)
    for path in (folder / "story.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _check(cfg: DictConfig) -> None:
    if cfg.story.draws is not None and cfg.story.draws < LEAST_DRAWS:
        raise UserError(f"story.draws={cfg.story.draws} is too few random sets; take at least {LEAST_DRAWS}")
    if cfg.tune.data:
        raise UserError("a story needs a task with corrupted prompts; leave tune.data out and choose a task")
    if cfg.ckpt_path is not None:
        raise UserError("ckpt_path is for one tuning run; a story that was stopped goes on in the same hydra.run.dir")


def _followed(cfg: DictConfig, way: Way, folder: Path, sides: dict[str, ScoredModel], parts: Parts) -> dict[str, Any]:
    """One way's circuits over its checkpoints, the difference at the end, and what its nodes and layers carry."""
    name, tuned = way.name, str(folder / "tune")

    def timeline() -> dict[str, Any]:
        made = evolve.run(verb_settings(cfg, "evolve", {"evolve": {"folder": tuned}}))
        return made["series"][0]["tasks"][cfg.task.name]

    def nodes() -> dict[str, Any]:
        last = max((folder / "evolve" / "circuits").iterdir(), key=_step)
        changes = {"base": tuned, "tuned": str(folder.parent / "base"), "circuit": str(last)}
        made = intervene.run(verb_settings(cfg, "intervene", changes)).to_dict()
        return {key: made[key] for key in ("chosen", "ablation", "enhancement", "transfer", "full_metric")}

    def difference_and_layers() -> dict[str, Any]:
        sides.pop("tuned", None)
        difference = _difference(verb_settings(cfg, "compare", {"tuned": tuned}), folder / "compare", sides)
        seed_everything(cfg.seed, verbose=False)
        return {
            "difference": _short(difference),
            "layers": [asdict(row) for row in carried_by_layers(cfg, folder / "tune", sides, difference)],
        }

    told = {"timeline": parts.made(f"{name}_timeline", f"{name}: following the circuit", timeline, folder / "evolve")}
    text = f"{name}: comparing, and moving layers into the base model"
    told |= parts.made(f"{name}_difference", text, difference_and_layers)
    return told | {"nodes": parts.made(f"{name}_nodes", f"{name}: intervening", nodes, folder / "intervene")}


def _difference(cfg: DictConfig, folder: Path, sides: dict[str, ScoredModel]) -> dict[str, Any]:
    """The verb compare on a way's model; the base is scored once for all ways."""
    with writing_to(folder), Clock():
        prepare(cfg)
        with phase("load", "Loading both models"):
            base, tuned = (build_workbench(cfg, subject) for subject in load_both(cfg))
        found = compare_models(base, tuned, build_method(cfg), **compare.settings_of(cfg), scored=sides)
        return asdict(finish(cfg, found, base.subject, write_comparison, print_comparison))


def _step(folder: Path) -> int:
    return int(folder.name.rsplit("step", 1)[1])


def _short(difference: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of `compare.json`."""
    kept = {key: difference[key] for key in ("n_edges_total", "resamples", "delta")}
    for key in ("at_size", "at_faithfulness"):
        entry = difference[key]
        kept[key] = entry and {name: value for name, value in entry.items() if name != "points"}
    kept["turnover"], weights = difference["turnover"], difference["weights"]
    return kept | {"weights": {"relative": weights["relative"], "distribution": weights["distribution"]}}


def _result(
    cfg: DictConfig, ways: list[Way], told: dict[str, dict[str, Any]], between: dict[str, Any] | None, clock: Clock
) -> dict[str, Any]:
    short = [f"{way.name}: {told[way.name]['tuning']['reason']}" for way in ways if told[way.name]["tuning"]["reason"]]
    return {
        "status": "FAILED" if short else "OK",
        "reason": "; ".join(short) or None,
        "task": cfg.task.name,
        "model": cfg.model.name,
        "method": cfg.method.name,
        "seed": cfg.seed,
        "score": cfg.tune.score,
        "steps": cfg.tune.steps,
        "story": plain(cfg.story),
        "ways": with_holm(told),
        "between": between,
        **clock.times(),
    }
