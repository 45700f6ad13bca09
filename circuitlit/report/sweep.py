"""Runs of a sweep: found in its folder, named by the settings that tell them apart, and as a table."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from circuitlit.errors import UserError
from circuitlit.files import whole
from circuitlit.report.artefacts import read_run

OWN = ("run_id", "resume", "ckpt_path", "overwrite", "fail", "paths", "logger", "callbacks")  # settings of no result
FIELDS = "status task model method seed steps seconds n_edges_total n_edges n_edges_reachable sparsity n_pairs".split()


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves; in the place of one that is no run, the runs in it, in the order of their numbers.

    Raises:
        UserError: a folder is no run and holds none.
    """
    found = []
    for folder in folders:
        own = [folder] if (folder / "result.json").is_file() else []
        inside = own or [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/result.json")]
        if not inside:
            raise UserError(f"{folder} is no finished run and holds none; name a run's folder or a sweep's")
        found += sorted(inside, key=_by_number)
    return found


def named_runs(given: Sequence[Path]) -> tuple[dict[Path, str], dict[str, str]]:
    """Names of runs by their folders, and why some cannot be shown, by name.

    Runs are named by the ends of their paths. Those of a sweep's folder are named by the settings in which they differ,
    and only of these some may be left out.

    Raises:
        UserError: a folder is no run and holds none.
    """
    folders = runs_in(given)
    if folders == list(given):
        return dict(zip(folders, ends_of(folders), strict=True)), {}
    names = dict(zip(folders, names_of(folders), strict=True))
    return names, {names[folder]: reason for folder, reason in unreadable(folders).items()}


def unreadable(folders: Sequence[Path]) -> dict[Path, str]:
    """Runs that a page cannot show, and why."""
    reasons = {}
    for folder in folders:
        try:
            read_run(folder)
        except UserError as error:
            result = _result(folder)
            reasons[folder] = str(result.get("reason") if result.get("n_edges", 0) is None else error)
    return reasons


def differing(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with the value of each run; None where a run lacks the setting.

    A preset's settings that go with its name in all runs are left out beside the name, which stands for them.
    """
    saved = [_settings(folder / ".hydra" / "config.yaml") for folder in folders]
    keys = list(dict.fromkeys(key for settings in saved for key in settings))
    columns = {key: [settings.get(key) for settings in saved] for key in keys if key.split(".")[0] not in OWN}
    columns = {key: values for key, values in columns.items() if len(set(map(str, values))) > 1}
    named = {key.partition(".")[0]: values for key, values in columns.items() if re.fullmatch(r"\w+\.name", key)}
    made = {}
    for key, values in columns.items():
        group = key.partition(".")[0]
        if group not in named or key == f"{group}.name":
            made[group if group in named else key] = values
        elif len({*zip(named[group], map(str, values), strict=True)}) > len(set(named[group])):
            made[key] = values
    return made


def names_of(folders: Sequence[Path]) -> list[str]:
    """What differs, as in `seed=0 target=0.95`; the ends of the paths where that does not tell the runs apart."""
    columns = differing(folders)
    ends = [key.rpartition(".")[2] for key in columns]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(columns, ends, strict=True)}
    names = [
        " ".join(f"{short[key]}={_shown(values[place])}" for key, values in columns.items())
        for place in range(len(folders))
    ]
    return names if all(names) and len(set(names)) == len(names) else ends_of(folders)


def ends_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(map(str, folders), 1)]


def write_csv(folders: Sequence[Path], names: Sequence[str], path: Path) -> Path:
    """A line for each run: its name and folder, what differs, its result, and each metric with its interval."""
    results = [_result(folder) for folder in folders]
    columns = differing(folders)
    metrics = list(dict.fromkeys(key for result in results for key, value in result.items() if _is_metric(value)))
    heading = [name for metric in metrics for name in (metric, f"{metric}_low", f"{metric}_high")]
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["run", "folder", *(f"setting:{key}" for key in columns), *FIELDS, *heading])
        for place, (folder, name, result) in enumerate(zip(folders, names, results, strict=True)):
            numbers = [(result.get(metric) or {}).get(end) for metric in metrics for end in ("value", "low", "high")]
            own = [_shown(values[place]) for values in columns.values()]
            table.writerow([name, folder, *own, *(result.get(field) for field in FIELDS), *numbers])
    return path


def _result(folder: Path) -> dict[str, Any]:
    """`result.json`; empty where it cannot be read."""
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_metric(value: object) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def _by_number(folder: Path) -> list[tuple[bool, int, str]]:
    """Sorts 2 ahead of 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in folder.parts]


def _settings(path: Path) -> dict[str, Any]:
    """Every setting of a run by its whole name; none where it saved none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}

    def under(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict) or not node:
            return {prefix: node}
        parts = (under(f"{prefix}.{key}" if prefix else str(key), inner) for key, inner in node.items())
        return {key: value for part in parts for key, value in part.items()}

    return under("", content) if isinstance(content, dict) else {}


def _shown(value: Any) -> str:
    """A value as the command line has it: null, true, 0.95, a text."""
    return value if isinstance(value, str) else json.dumps(value)
