"""Turns mistakes of the user's into one sentence, and clears away what a failed run had begun."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from circuitlit.errors import UserError


def explain(error: BaseException) -> str | None:
    """One sentence for a mistake that the user can mend; None for a defect of ours, which deserves its traceback."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return str(cause)
    for cause in _causes(error):
        if isinstance(cause, HydraException | OmegaConfBaseException) and str(cause).strip():
            return _one_line(str(cause))
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return "a group takes the name of a preset, not a number: sparsity=p95, or sparsity.target=0.95"
    if isinstance(error, OSError) and error.filename and _makes_a_folder(error):
        return f"'{error.filename}' cannot be written ({error.strerror}); choose another folder: hydra.run.dir=DIR"
    return None


def _makes_a_folder(error: OSError) -> bool:
    """True for an error of Hydra's when it makes the output folder."""
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return bool({"mkdir", "makedirs"} & set(frames))


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _one_line(text: str) -> str:
    """Hydra's paragraphs as one sentence."""
    missing = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    options = re.search(r"Available options in '[^']*':\s*((?:.|\n)*?)(?:\n\s*Config search path|\Z)", text)
    if missing:
        known = ", ".join(options[1].split()) if options else "see conf/"
        return f"there is no {missing[1]}={missing[2]}; choose one of: {known}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "See https" not in line]
    return "; ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))


def sweep_up(folder: Path, before: set[Path]) -> None:
    """Remove the files that appeared since `before`, but for Hydra's own: its settings and its log."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if (
            path in before
            or ".hydra" in path.relative_to(folder).parts
            or (path.suffix == ".log" and path.parent == folder)
        ):
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
