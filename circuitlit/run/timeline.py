"""How masks evolved, or the circuits of a model in training: the stages, and whether runs of masks agree on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from circuitlit.arguments import check_once
from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE
from circuitlit.report.timeline import print_agreement, print_timeline
from circuitlit.result import read_json
from circuitlit.timeline.agreement import TimelineAgreement, compare_timelines
from circuitlit.timeline.mask_timeline import MaskTimeline, follow_masks

if TYPE_CHECKING:
    from circuitlit.timeline.evolution import Evolution


def run(cfg: DictConfig) -> MaskTimeline | TimelineAgreement | Evolution:
    """Follow one run, or compare several.

    One run may also be of `evolve` or `watch`, or the folder of a watch callback: its `evolve.json` is read. Each other
    run's `evolution.json`, and `stages` in its `result.json`, are written anew; a comparison goes into
    `agreement.json` of this verb's own directory.

    Raises:
        UserError: no run, or runs that cannot be compared.
    """
    folders = [Path(folder) for folder in (cfg.runs or ([cfg.run] if cfg.run else []))]
    if not folders or (cfg.run and cfg.runs):
        raise UserError("name one run (run=DIR) or several to compare (runs=[A,B,C])")
    check_once("runs", [str(folder.resolve()) for folder in folders])
    watched = [folder for folder in folders if (folder / "evolve.json").is_file()]
    if watched and len(folders) > 1:
        raise UserError(f"{watched[0]} holds circuits of a model over its training; runs= compares runs of train alone")
    if watched:
        return _evolution(watched[0])
    found = {str(folder): _follow(folder) for folder in folders}
    for name, timeline in found.items():
        print_timeline(timeline, name, CONSOLE)
    if len(folders) == 1:
        return found[str(folders[0])]
    result = compare_timelines(found)
    path = result.save(run_dir())
    print_agreement(result, CONSOLE)
    CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _evolution(folder: Path) -> Evolution:
    from circuitlit.report.evolution_stages import print_evolution_stages  # which a run of masks can do without
    from circuitlit.timeline.evolution import Evolution

    found = Evolution.load(folder)
    print_evolution_stages(found, CONSOLE)
    return found


def _follow(folder: Path) -> MaskTimeline:
    timeline = follow_masks(folder)
    timeline.save(folder)
    path = folder / "result.json"
    if path.is_file():
        write_json(path, read_json(path) | {"stages": timeline.stages.to_dict()})
    return timeline
