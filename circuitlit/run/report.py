"""Pages and figures of saved runs: one run, several side by side, papers, a W&B workspace."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.progress import CONSOLE
from circuitlit.report import write_page, write_runs
from circuitlit.report.artefacts import read_run
from circuitlit.report.beside import read_beside, read_groups
from circuitlit.report.paper import FORMATS, save_figures
from circuitlit.report.workspace import write_workspace


def run(cfg: DictConfig) -> list[Path]:
    """Write what was asked for: the page into the run's own directory, everything else into this verb's.

    Raises:
        UserError: no run, a damaged one, or an unknown format or target.
    """
    written = _write(cfg)
    for path in written:
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return written


def _write(cfg: DictConfig) -> list[Path]:
    if cfg.target not in ("files", "wandb"):
        raise UserError(f"target={cfg.target} is neither files nor wandb; choose one")
    if cfg.target == "wandb":
        path = run_dir() / "workspace.json"
        if url := write_workspace(cfg.entity, cfg.project, cfg.task.name, path, cfg.online):
            CONSOLE.print(f"  W&B: {url}", highlight=False, soft_wrap=True)
        return [path]
    if cfg.format not in ("html", *FORMATS):
        raise UserError(f"format={cfg.format} is none of html, {', '.join(FORMATS)}; choose one")
    if bool(cfg.run) == bool(cfg.runs):
        raise UserError("name one run (run=DIR) or several to compare (runs=[A,B], or runs=FOLDER of a sweep)")
    if not cfg.runs:
        folder = Path(cfg.run)
        groups = None if cfg.groups is None else read_groups(Path(cfg.groups))
        if cfg.format == "html":
            return [write_page(folder, cfg.beside, groups)]
        found = read_run(folder)
        return save_figures(found, run_dir(), cfg.format, read_beside(found, groups=groups).groups)
    if cfg.format != "html":
        raise UserError(f"format={cfg.format} is for one run (run=DIR); a comparison is a page")
    given = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
    written, left_out = write_runs(given, run_dir())
    for name, reason in left_out.items():
        CONSOLE.print(f"not shown: {name} ({reason})", highlight=False, soft_wrap=True)
    return written
