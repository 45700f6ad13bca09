"""Turns mistakes of the user's into one sentence, and clears away what a failed run had begun."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from circuitlit.cli.schema import names
from circuitlit.cli.wording import no_preset, unknown
from circuitlit.errors import Unchecked, UserError, sentence

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACES = "EACCES EPERM EROFS EEXIST ENAMETOOLONG ELOOP ENOTDIR EISDIR".split()  # what a path itself can be the cause of
MAKING = {"mkdir", "makedirs", "configure_handler"}  # functions by which Hydra makes the output folder and its log


def explain(error: BaseException, verb: str = "train") -> str | None:
    """One sentence for a mistake that the user can mend; None for a defect of ours, which deserves its traceback.

    Args:
        error: what was raised.
        verb: whose settings they were.
    """
    for cause in causes(error):
        if isinstance(cause, Unchecked):
            return _to_check(cause)
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
            place = cause.problem_mark
            return f"{place.name}, line {place.line + 1}: not YAML ({cause.problem}); mend it"
    for cause in causes(error):
        if isinstance(cause, HydraException | OmegaConfBaseException) and str(cause).strip():
            return _one_line(str(cause), verb)
    if is_full(error):
        return "no room is left to write the run's files; make room, and go on in the same folder or start again"
    if isinstance(error, ValueError) and _raised_by(error).is_relative_to(Path(hydra.__file__).parent):
        return _one_line(str(error), verb)  # options that do not fit each other
    return next((said for cause in causes(error) if isinstance(cause, OSError) and (said := _misplaced(cause))), None)


def _to_check(error: Unchecked) -> str:
    """The refusal of a model that needs a check, with the command of the check."""
    facts = error.facts
    words = [f"model={'local' if facts['path'] else facts['name']}", f"model.dtype={facts['dtype']}"]
    if facts["path"]:
        words += [f"model.path={facts['path']}", f"model.source={facts['source']}"]
    words += [f"model.revision={facts['revision']}"] if facts.get("revision") else []
    words += ["model.trust_remote_code=true"] if facts["trust_remote_code"] else []
    words += [f"adapter=peft adapter.path={facts['adapter']}"] if facts["adapter"] else []
    because = "; ".join(error.reasons)
    return f"this model needs a check first, because {because}: python -m circuitlit check {' '.join(words)}"


def explained(error: Exception) -> str:
    """The sentence that is written down for a part that could not be made."""
    return explain(error) or sentence(error)


def is_full(error: BaseException) -> bool:
    """True where the disk, or what the user may put there, is full."""
    return any(isinstance(cause, OSError) and cause.errno in FULL for cause in causes(error))


def _raised_by(error: Exception) -> Path:
    """The file whose code raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename if frames else "")


def _misplaced(error: OSError) -> str | None:
    """One sentence on a path that cannot be used; None where the path is not the cause."""
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    reason, name = error.strerror, error.filename
    if name is None:
        gone = isinstance(error, FileNotFoundError)  # of os.getcwd()
        return "the working directory does not exist any more; change into one that does" if gone else None
    if error.errno == errno.EEXIST:
        reason = "it is no folder" if Path(name).exists() else "a link that leads nowhere"
    if MAKING & frames:
        return f"'{name}' cannot be written ({reason}); choose another folder: hydra.run.dir=DIR"
    if errno.errorcode.get(error.errno or 0) in PLACES:
        return f"'{name}' cannot be used ({reason}); give access to it, or name another"
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """An error, and all that it was raised from or in the handling of."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _one_line(text: str, verb: str) -> str:
    """Hydra's paragraphs as one sentence in our words."""
    missing = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
    if missing:
        options = re.search(r"Available options in '[^']*':\s*((?:.|\n)*?)(?:\n\s*Config search path|\Z)", text)
        return no_preset(missing[1], missing[2], options[1].split() if options else [])
    full_key = re.search(r"full_key: (\S+)", text)
    key = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text) or full_key
    if key and ("not in struct" in text or "Could not" in text):
        return _absent(key[1], verb)
    other = re.search(r"Interpolation key '([^']+)' not found", text)
    if other:
        return f"{full_key[1] if full_key else 'a setting'} takes its value from {other[1]}, which does not exist"
    absent = re.search(r"Error (?:loading|locating target) '([^']+)'", text.replace("\\'", "'"))
    if absent:
        return f"{absent[1]} does not exist or cannot be imported; correct the name of the function or class"
    called = re.search(r"Error in call to target '([^']+)':\s*\w+\((['\"])(.*)\2\)", text, re.DOTALL)
    if called:
        place = f"{full_key[1]}: " if full_key else ""
        return f"{place}{called[1]} does not take these settings ({called[3]}); correct them"
    twice = re.search(r"Multiple values for (\S+)\.|(\S+) appears more than once in the final", text)
    if twice:
        group = twice[1] or twice[2]
        return f"{group} is chosen twice; a preset that chooses another one says so: override /{group}: NAME"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "See https" not in line]
    return "; ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))


def _absent(key: str, verb: str) -> str:
    """One sentence on a setting that the chosen presets do not have."""
    every = names(verb)
    if key not in every:
        return unknown(key, every)
    return f"{key} is no setting of the chosen presets; see conf/{key.partition('.')[0]}/ for one that has it"


def sweep_up(folder: Path, before: set[Path], names: Sequence[str] | None = None) -> None:
    """Remove what appeared since `before`, only of these names if any are given, but never Hydra's settings and log."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if (
            path in before
            or (names is not None and path.relative_to(folder).parts[0] not in names)
            or ".hydra" in path.relative_to(folder).parts
            or (path.suffix == ".log" and path.parent == folder)
        ):
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
