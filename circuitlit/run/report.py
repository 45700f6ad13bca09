"""Pages and figures of saved runs: one run, several side by side, papers, a W&B workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE
from circuitlit.report import write_page
from circuitlit.report.artefacts import read_run
from circuitlit.report.paper import FORMATS, save_figures
from circuitlit.report.runs import write_runs_page
from circuitlit.report.sweep import ends_of, names_of, readable, runs_in, write_csv
from circuitlit.report.workspace import build_workspace, workspace_spec


def run(cfg: DictConfig) -> dict[str, Any]:
    """Write what was asked for: the page into the run's own directory, everything else into this verb's.

    Raises:
        UserError: no run, a damaged one, or an unknown format or target.
    """
    written = _write(cfg)
    for path in written:
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return {"written": [str(path) for path in written]}


def _write(cfg: DictConfig) -> list[Path]:
    if cfg.target not in ("files", "wandb"):
        raise UserError(f"target={cfg.target} is neither files nor wandb; choose one")
    if cfg.target == "wandb":
        return [_write_workspace(cfg)]
    if cfg.format not in ("html", *FORMATS):
        raise UserError(f"format={cfg.format} is none of html, {', '.join(FORMATS)}; choose one")
    if bool(cfg.run) == bool(cfg.runs):
        raise UserError("name one run (run=DIR) or several to compare (runs=[A,B], or runs=FOLDER of a sweep)")
    if cfg.runs:
        if cfg.format != "html":
            raise UserError(f"format={cfg.format} is for one run (run=DIR); a comparison is a page")
        return _compare([Path(cfg.runs)] if isinstance(cfg.runs, str) else [Path(folder) for folder in cfg.runs])
    if cfg.format == "html":
        return [write_page(Path(cfg.run))]
    return save_figures(read_run(Path(cfg.run)), run_dir(), cfg.format)


def _compare(given: list[Path]) -> list[Path]:
    """The page of several runs and their table; those of a sweep's folder are named by what differs."""
    folders = runs_in(given)
    names = dict(zip(folders, ends_of(folders) if folders == given else names_of(folders), strict=True))
    shown, reasons = readable(folders) if folders != given else (folders, {})
    left_out = {names[folder]: reason for folder, reason in reasons.items()}
    for name, reason in left_out.items():
        CONSOLE.print(f"not shown: {name} ({reason})", highlight=False, markup=False, soft_wrap=True)
    table = write_csv(folders, list(names.values()), run_dir() / "runs.csv")
    page = write_runs_page(shown, run_dir() / "runs.html", [names[folder] for folder in shown], left_out)
    return [page, table]


def _write_workspace(cfg: DictConfig) -> Path:
    workspace = build_workspace(cfg.entity, cfg.project)
    path = run_dir() / "workspace.json"
    write_json(path, workspace_spec(workspace))
    if cfg.online:
        workspace.save()
        CONSOLE.print(f"  W&B: {workspace.url}", highlight=False)
    return path
