"""Runs of fine-tuning: their names, and the checkpoint of each at which they are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from circuitlit.arguments import check_once
from circuitlit.errors import UserError

Score = Literal["metric", "accuracy"]
LOOKED_AT = ("checkpoints", "probe_every", "probe_pairs", "score")


def run_names(paths: list[str]) -> dict[str, Path]:
    """Runs by the way they tuned (`dpo lora`), by their folder where the run did not finish, numbered where equal.

    Runs of one tuner and adapter whose settings differ are ways of their own: `sft lora lr=0.001`.

    Raises:
        UserError: one run twice, or a result that is no json.
    """
    check_once("runs", [str(Path(path).resolve()) for path in paths])
    ways: list[str] = []
    told: list[dict[str, str]] = []
    for path in paths:
        file = Path(path) / "result.json"
        try:
            found = json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise UserError(f"runs: {file} is not JSON ({error}); name another run") from error
        ways.append(f"{found['tune']} {found['adapter']}" if {"tune", "adapter"} <= set(found) else Path(path).name)
        told.append(_settings(found.get("provenance", {})))
    names = []
    for way, own in zip(ways, told, strict=True):
        alike = [other for name, other in zip(ways, told, strict=True) if name == way]
        names.append(
            " ".join([way, *(f"{k}={v}" for k, v in own.items() if any(other.get(k) != v for other in alike))])
        )
    labels = [f"{n} {names[:i].count(n) + 1}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    check_once("names of runs", labels)  # a folder may be called like a number that was made up
    return dict(zip(labels, map(Path, paths), strict=True))


def _settings(provenance: dict[str, Any]) -> dict[str, str]:
    """How a run was trained, by the last word of each setting; not where it was looked at meanwhile."""
    from pandas import json_normalize

    rows = json_normalize({part: provenance.get(part) for part in ("tune", "adapter")}).iloc[0].items()
    named = {str(key).rpartition(".")[2]: str(value) for key, value in rows}
    return {key: value for key, value in named.items() if key not in LOOKED_AT}


def checkpoint_scores(run: Path, match: Score) -> dict[int, float]:
    """Validation scores of a run's checkpoints, by step.

    Raises:
        UserError: there are none.
    """
    file = run / "checkpoints" / "checkpoints.json"
    try:
        rows = json.loads(file.read_text())["checkpoints"]
        found = {int(row["step"]): float(row["metrics"][match]) for row in rows}
        if not found:
            raise ValueError("it is empty")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"runs: {file} has no checkpoints with validation {match} ({error}); name runs of finetune"
        ) from error


def common_level(series: Mapping[str, Mapping[int, float]]) -> float:
    """The highest score that every run reaches at some step.

    Args:
        series: scores of each run's checkpoints, by step.
    """
    return min(max(scores.values()) for scores in series.values())


def nearest_step(name: str, scores: Mapping[int, float], level: float) -> int:
    """The checkpoint whose score is nearest to a level; of equal ones the first, and never the untouched model.

    Raises:
        UserError: the run has no checkpoint behind its first step.
    """
    tuned = {step: score for step, score in scores.items() if step > 0}
    if not tuned:
        raise UserError(f"run {name} has no checkpoint but that of step 0; tune with tune.checkpoints=[5,10,20,...]")
    return min(tuned, key=lambda step: (abs(tuned[step] - level), step))
