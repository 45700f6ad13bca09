"""What a verb wrote and printed, without what differs from run to run: times, paths, versions, hashes."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

VOLATILE = {"seconds", "seconds_by_phase", "provenance", "command", "format", "schema", "step_seconds", "path", "file"}
MODELS = re.compile(r"config\.json$|^tokenizer\.json$")  # files of saved models and adapters


def written_files(root: Path, told: re.Pattern[str] | None = None) -> dict[str, Any]:
    """All json files and tables, and the words of all pages, by their paths; of everything else the paths."""
    found: dict[str, Any] = {"other files": {}}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or re.search(r"\.hydra/|\.log$|\.lock$", name):
            continue
        if told and told.search(name):
            found["other files"][name] = True
        elif path.suffix == ".json" and not MODELS.search(path.name):
            content = json.loads(path.read_text())
            kept = isinstance(content, dict) and content.keys() == {"settings", "content"}  # of a store
            found[name] = normalised(content["content"] if kept else content, root)
        elif path.suffix == ".html":
            found[name] = words(path.read_text(encoding="utf-8"), root)
        elif path.suffix == ".csv":
            found[name] = normalised(_table(path), root)
        else:
            found["other files"][name] = True
    return found


def _table(path: Path) -> list[dict[str, Any]]:
    """Rows of a csv file, with numbers as such."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    number = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?")
    return [{k: float(v) if number.fullmatch(v) else v for k, v in row.items()} for row in rows]


def normalised(content: Any, root: Path) -> Any:
    """Without what differs from run to run; long lists of numbers thinned out."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in VOLATILE}
        kept = {key: value for key, value in kept.items() if not (key == "settings" and isinstance(value, str))}
        return {key: normalised(value, root) for key, value in kept.items()}
    if isinstance(content, list):
        if len(content) > 20 and all(isinstance(one, int | float) for one in content):
            step = -(-len(content) // 8)
            return [len(content), _short(math.fsum(content)), *(_short(one) for one in content[::step])]
        if len(content) > 60:
            content = [len(content), *content[:: -(-len(content) // 20)]]
        return [normalised(one, root) for one in content]
    return _short(content) if isinstance(content, float) else plain(content, root)


def _short(number: float) -> float:
    return float(f"{number:.9g}")


def plain(content: Any, root: Path) -> Any:
    """A string without paths of this run."""
    if not isinstance(content, str):
        return content
    base = re.escape(str(root.parent.parent))
    return re.sub(rf"{base}/[\w-]+/[\w.-]+", "<tmp>", content.replace(str(root), "<out>"))


def printed_lines(text: str, root: Path) -> list[str]:
    """Lines of the terminal without times; one space, and one piece of a rule, for many."""
    lines = (re.sub(r"\s+", " ", plain(line, root)).strip() for line in text.splitlines())
    lines = (re.sub(r"([─━])\1+", r"\1", line) for line in lines)
    timed = re.compile(r"^\d+\.\d s$|\d s left|s from here on|scored in|^\d+ %:|steps/s")
    return [line for line in lines if line and not timed.search(line)]


def words(page: str, root: Path) -> str:
    """What a reader sees of a page, without figures and times."""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
    text = re.sub(r"(?s)<[^>]*>", " ", text)
    text = re.sub(r"seconds(\.\w+)?\s+\d+(\.\d+)?", "~", text)
    text = re.sub(r"\d+(\.\d+)? (s|seconds|minutes|min)\b|\d+\.\d+\.\d+\S*|\d{4}-\d\d-\d\d\S*|[\da-f]{12,}", "~", text)
    return re.sub(r"\s+", " ", plain(text, root)).strip()
