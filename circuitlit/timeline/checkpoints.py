"""Which checkpoints of a model to look at: hub revisions by schedule, or folders on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from circuitlit.errors import UserError

_LAST = 143_000
_POWERS = [2**power for power in range(10)]
# Steps of Pythia's published checkpoints. Source: arXiv 2407.10827 and its code for "detail", "late" and "sparse".
SCHEDULES: dict[str, list[int]] = {
    "all": [0, *_POWERS, *range(1000, _LAST + 1, 1000)],
    "linear": [0, *range(10_000, 140_001, 10_000), _LAST],
    "log": [0, *_POWERS, *(1000 * 2**power for power in range(8)), _LAST],
    "detail": [
        *_POWERS,
        *range(1000, 15_001, 1000),
        *range(20_000, 65_001, 5000),
        *range(70_000, 140_001, 10_000),
    ],
    "late": [*range(4000, _LAST + 1, 1000)],
    "sparse": [
        *(256, 512),
        *range(1000, 9001, 1000),
        *range(10_000, 45_001, 5000),
        *range(50_000, 90_001, 10_000),
        *(100_000, 120_000, 140_000, _LAST),
    ],
}
_FOLDER = re.compile(r"(?:step_?|checkpoint-)(\d+)")  # ours and Pythia's; those of Hugging Face's Trainer


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series.

    Attributes:
        step: optimizer steps of training behind it.
        path: hub name or folder of the model.
        revision: on the hub; None for a folder.
        adapter: folder of a PEFT adapter on that model, or None.
        tokens: of training behind it, None where unknown.
    """

    step: int
    path: str
    revision: str | None = None
    adapter: str | None = None
    tokens: float | None = None


def scheduled_steps(schedule: str | Sequence[int]) -> list[int]:
    """Steps of a named schedule, or the given ones in order.

    Raises:
        UserError: an unknown name, or something that is no step.
    """
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise UserError(f"evolve.schedule={schedule} is none of {', '.join(SCHEDULES)}, nor a list of steps")
        return SCHEDULES[schedule]
    steps = sorted(set(schedule))
    if not steps or any(not isinstance(step, int) or step < 0 for step in steps):
        raise UserError(f"evolve.schedule={list(schedule)} is not a list of whole steps of at least 0")
    return steps


def hub_checkpoints(
    path: str, schedule: str | Sequence[int], revision: str = "step{step}", tokens_per_step: float | None = None
) -> list[Checkpoint]:
    """Revisions of a hub model.

    Args:
        path: hub name.
        schedule: which steps.
        revision: how a step's revision is called.
        tokens_per_step: of the training, None where unknown.
    """
    if "{step}" not in revision:
        raise UserError(f"evolve.revision={revision} does not hold {{step}}, the number that tells revisions apart")
    found = [Checkpoint(step, path, revision.format(step=step)) for step in scheduled_steps(schedule)]
    return [_with_tokens(checkpoint, tokens_per_step) for checkpoint in found]


def local_checkpoints(
    folder: Path,
    schedule: str | Sequence[int] | None,
    base: str | None = None,
    tokens_per_step: float | None = None,
    key: str = "evolve.folder",
) -> list[Checkpoint]:
    """Checkpoints in a folder: those of its `checkpoints.json`, else its subfolders `step{N}` or `checkpoint-{N}`.

    Args:
        folder: the series, or a run of `finetune`, whose `checkpoints/` is meant.
        schedule: those of these steps that are there; a step that is listed by number must be there; None takes all.
        base: the model that adapters belong to.
        tokens_per_step: for series that do not say it themselves.
        key: what the folder is called in an error.

    Raises:
        UserError: no such folder, nothing in it, or a step that is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder} is not a folder; name one that holds step1, step2 ...")
    if not (folder / "checkpoints.json").is_file() and (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    index = folder / "checkpoints.json"
    found = _indexed(index, base) if index.is_file() else _named(folder, base)
    if not found:
        raise UserError(f"{key}={folder} holds no folder step1, step2 ... or checkpoint-1 ... with a model")
    there = {checkpoint.step: _with_tokens(checkpoint, tokens_per_step) for checkpoint in found}
    if schedule is None:
        return [there[step] for step in sorted(there)]
    steps = scheduled_steps(schedule)
    missing = [step for step in steps if step not in there]
    if missing and (not isinstance(schedule, str) or len(missing) == len(steps)):
        raise UserError(f"{key}={folder} has no step {missing[0]}; it has {', '.join(map(str, sorted(there)))}")
    return [there[step] for step in steps if step in there]


def _indexed(index: Path, base: str | None) -> list[Checkpoint]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        adapters = content["kind"] == "peft"
        rows = [
            (int(row["step"]), str(index.parent / row["folder"]), row.get("tokens")) for row in content["checkpoints"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not an index of checkpoints ({error}); remove it to go by folder names") from error
    if adapters:
        return [Checkpoint(step, base or "", None, folder, tokens) for step, folder, tokens in rows]
    return [Checkpoint(step, folder, tokens=tokens) for step, folder, tokens in rows]


def _named(folder: Path, base: str | None) -> list[Checkpoint]:
    """Subfolders by their names; those that hold an adapter alone belong to `base`."""
    matches = [(path, _FOLDER.fullmatch(path.name)) for path in folder.iterdir()]
    steps = {path: int(match[1]) for path, match in matches if match}
    adapters = {path for path in steps if (path / "adapter_config.json").is_file()}
    whole = [Checkpoint(step, str(path)) for path, step in steps.items() if (path / "config.json").is_file()]
    return whole or [Checkpoint(steps[path], base or "", None, str(path)) for path in adapters]


def _with_tokens(checkpoint: Checkpoint, tokens_per_step: float | None) -> Checkpoint:
    if checkpoint.tokens is not None or tokens_per_step is None:
        return checkpoint
    return replace(checkpoint, tokens=checkpoint.step * tokens_per_step)
