"""How the masks of saved runs evolved: `evolution.json`, the stages, and whether runs agree about them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE
from circuitlit.report.grid import grid
from circuitlit.timeline.agreement import Agreement, agreement, repetitions
from circuitlit.timeline.chance import BEYOND
from circuitlit.timeline.mask_run import MaskRun, save_evolution
from circuitlit.timeline.snapshots import Snapshots
from circuitlit.timeline.stages import Boundary, Timeline


def run(cfg: DictConfig) -> dict[str, Any]:
    """Follow one run, or compare several.

    Each run's `evolution.json`, and `stages` in its `result.json`, are written anew; a comparison goes into
    `agreement.json` of this verb's own directory.

    Raises:
        UserError: no run, or runs that cannot be compared.
    """
    folders = [Path(folder) for folder in (cfg.runs or ([cfg.run] if cfg.run else []))]
    if not folders or (cfg.run and cfg.runs):
        raise UserError("name one run (run=DIR) or several to compare (runs=[A,B,C])")
    followed = [_follow(folder) for folder in folders]
    for folder, (seen, timeline) in zip(folders, followed, strict=True):
        print_stages(folder, seen, timeline)
    if len(folders) == 1:
        return followed[0][1].to_dict()
    return _compare(folders, followed)


def _follow(folder: Path) -> tuple[Snapshots, Timeline]:
    seen, timeline = save_evolution(MaskRun.read(folder), folder)
    path = folder / "result.json"
    if path.is_file():
        write_json(path, json.loads(path.read_text()) | {"stages": timeline.to_dict()})
    return seen, timeline


def print_stages(folder: Path, seen: Snapshots, timeline: Timeline) -> None:
    """One run's stages as a table, the schedule's knots, and the change points at which no stage begins."""
    steps, final = seen.steps, seen.overlap_final()
    title = f"{folder}: {timeline.verdict}, {len(steps)} snapshots to step {steps[-1]} of {seen.schedule.steps}"
    table = grid(title, ("stage",), ("start", "p", "end", "overlap with the end", "edges changed"))
    for stage in timeline.stages:
        if stage.start is None or stage.end is None:
            table.add_row(stage.name, "not observed")
            continue
        first, last = steps.index(stage.start.step), steps.index(stage.end.step)
        changed = sum(seen.churn(at) for at in range(first + 1, last + 1))
        overlaps = f"{final[first]:.3f} to {final[last]:.3f}"
        table.add_row(stage.name, _text(stage.start), _p(stage.start), _text(stage.end), overlaps, str(changed))
    CONSOLE.print(table)
    knots = [f"{name.replace('_', ' ')} at step {at:.0f}" for name, at in seen.knots().items() if at is not None]
    CONSOLE.print(f"  schedule: {', '.join(knots) or 'no knots'}; * within one snapshot of one", highlight=False)
    for point in timeline.change_points:
        if point.status != BEYOND:
            CONSOLE.print(f"  no stage begins at step {_text(point)}: {point.status}, p {_p(point)}", highlight=False)


def _text(at: Boundary) -> str:
    interval = f" [{at.low}, {at.high}]" if at.high > at.low else ""
    return f"{at.step}{interval}{'*' if at.mark else ''}"


def _p(at: Boundary) -> str:
    return "-" if at.p is None else f"{at.p:.3f}"


def _compare(folders: list[Path], followed: list[tuple[Snapshots, Timeline]]) -> dict[str, Any]:
    lengths = {seen.schedule.steps for seen, _ in followed}
    if len(lengths) > 1:
        raise UserError(f"runs of {sorted(lengths)} steps cannot be compared; name runs of one length")
    knots = [seen.knots() for seen, _ in followed]
    rows = agreement([timeline for _, timeline in followed], knots, lengths.pop())
    repeated = repetitions(knots)
    _print_agreement(folders, repeated, rows)
    content = {
        "runs": [str(folder) for folder in folders],
        "repetitions": repeated,
        "knots": knots,
        "starts": [asdict(row) for row in rows],
    }
    write_json(run_dir() / "agreement.json", content)
    CONSOLE.print(f"{run_dir() / 'agreement.json'}", highlight=False, soft_wrap=True)
    return content


def _print_agreement(folders: list[Path], repeated: list[bool], rows: list[Agreement]) -> None:
    runs = [f.name if own else f"{f.name} (other schedule)" for f, own in zip(folders, repeated, strict=True)]
    table = grid("start of each stage (step)", ("stage",), (*runs, "repetitions"))
    for row in rows:
        starts = [
            f"{'-' if start is None else start}{'' if moved is None else f', {moved}'}"
            for start, moved in zip(row.starts, row.moved, strict=True)
        ]
        table.add_row(row.stage, *starts, row.verdict)
    CONSOLE.print(table)
