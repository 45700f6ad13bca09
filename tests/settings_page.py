"""Writes the tables of conf/README.md from the yaml files: `uv run python tests/settings_page.py`.

What stands above the marker in that page is written by hand and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parent.parent / "conf"
PAGE = CONF / "README.md"
MARKER = "<!-- Everything below is written by tests/settings_page.py. -->\n"
KEY = re.compile(r"^( *)([\w.]+):(?=\s|$)")
SKIPPED = ("defaults", "hydra", "verb", "name", "none")  # and what only says which function makes an object
MANY = 6  # different values; more are not listed


def head(file: Path) -> list[str]:
    """The comment at the top of a file, line by line."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.removeprefix("#").strip())
    return lines


def comments(file: Path) -> dict[str, str]:
    """The comment of each setting by its whole name: behind it, or in lines of its own above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    inside: list[tuple[int, str]] = []  # indent and name of the settings around
    for line in file.read_text().splitlines()[len(head(file)) :]:
        if line.strip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        match = KEY.match(line)
        if match:
            indent = len(match[1])
            inside = [each for each in inside if each[0] < indent] + [(indent, match[2])]
            behind = re.search(r"\s#\s+(.*)$", line)
            text = " ".join([*above, *([behind[1]] if behind else [])])
            if text:
                found[".".join(name for _, name in inside)] = text
        above = []
    return found


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a file that hold values, by their whole names."""
    for name, value in (content or {}).items():
        key = f"{prefix}{name}"
        if key in SKIPPED or name.startswith("_"):
            continue
        if name == "architecture":
            yield key, "numbers" if value else None
        elif isinstance(value, dict) and value and "_target_" not in value:
            yield from leaves(value, f"{key}.")
        elif isinstance(value, dict) and value:
            if value["_target_"] == "hydra.utils.get_method":
                yield key, value["path"]
            else:
                yield f"{key}._target_", value["_target_"]
                yield from leaves(value, f"{key}.")
        else:
            yield key, value


def shown(value: Any) -> str:
    """A value as code that a table can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text.replace('|', chr(92) + '|')}`"


def table(rows: list[tuple[str, ...]], *columns: str) -> str:
    """Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines) + "\n"


def settings(files: list[Path], prefix: str = "") -> str:
    """One table of the settings in some files; of presets, which are several, it says which have which value."""
    values: dict[str, dict[str, str]] = {}
    meaning: dict[str, str] = {}
    for file in files:
        said = comments(file)
        for key, value in leaves(yaml.safe_load(file.read_text())):
            values.setdefault(key, {})[file.stem] = shown(value)
        for key, text in said.items():
            meaning.setdefault(key, text.replace("|", "\\|"))
    everywhere = len([file for file in files if not file.stem.startswith("_")])
    rows = [(f"`{prefix}{key}`", _values(of, everywhere), _meaning(key, meaning)) for key, of in values.items()]
    return table(rows, "setting", "value", "meaning")


def _meaning(key: str, known: dict[str, str]) -> str:
    """The comment of a setting, or of what it is inside of."""
    if key.endswith("_target_"):
        return "the function or class that makes it; it may be yours"
    around = [key.rsplit(".", depth)[0] for depth in range(key.count(".") + 1)]
    return next((known[name] for name in around if name in known), "")


def _values(of: dict[str, str], everywhere: int) -> str:
    """All values of a setting; the usual one first, each other one with the presets that have it."""
    presets: dict[str, list[str]] = {}
    for preset, value in of.items():
        presets.setdefault(value, []).append(preset)
    if len(presets) > MANY:
        return "one for each preset"
    shared = next((of[preset] for preset in of if preset.startswith("_")), None)
    most = max(presets, key=lambda value: len(presets[value]))
    usual = shared or (most if 2 * len(presets[most]) > everywhere else None)
    rest = [f"{value} ({', '.join(names)})" for value, names in presets.items() if value != usual]
    return ", ".join([*([usual] if usual else []), *rest])


def group(name: str) -> str:
    """The presets of a group, and their settings."""
    files = sorted((CONF / name).glob("*.yaml"), key=lambda file: (not file.stem.startswith("_"), file.stem))
    presets = [file for file in files if not file.stem.startswith("_")]
    rows = [(f"[`{name}={file.stem}`]({name}/{file.name})", " ".join(head(file)) or "") for file in presets]
    text = f"### {name}\n\n{table(rows, 'preset', 'what it is')}"
    if "@package _global_" in presets[0].read_text():
        return text  # it sets what other tables explain
    body = settings(files, "" if name == "strategy" else f"{name}.")
    return f"{text}\n{body}" if body.count("\n") > 2 else text


def verb(file: Path) -> str:
    """A verb's command and its own settings."""
    body = settings([file])
    text = f"### {file.stem}\n\n" + "\n".join(f"    {line}" for line in head(file)) + "\n"
    return f"{text}\n{body}" if body.count("\n") > 2 else text


def generated() -> str:
    """Everything below the marker."""
    verbs = [file for file in sorted(CONF.glob("[!_]*.yaml")) if file.stem != "base"]
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
    parts = [
        "## Settings of all verbs\n\nFrom [base.yaml](base.yaml).\n\n" + settings([CONF / "base.yaml"]),
        "## Groups and their presets\n",
        *map(group, groups),
        "## Settings of single verbs\n",
        *map(verb, verbs),
    ]
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    return PAGE.read_text().partition(MARKER)[0] + MARKER + "\n" + generated()


if __name__ == "__main__":
    PAGE.write_text(page())
