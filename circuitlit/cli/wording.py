"""What is said of settings: how values and names are written, and what may have been meant instead."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

GONE = {("strategy", "sharded"): "fsdp"}  # presets, and what does the same now


def did_you_mean(value: Any, names: Any) -> str:
    """Which of some names may have been meant; empty if none is near."""
    close = get_close_matches(str(value).lower(), names, 1, 0.5)
    return f"did you mean {close[0]}?" if close else ""


def unknown(key: str, names: list[str]) -> str:
    """One sentence on a setting that does not exist, with the one that may have been meant."""
    last = key.rpartition(".")[2]
    names = [name for name in names if not key.startswith(f"{name}.")]
    close = get_close_matches(key, names, 1, 0.75)
    close += [name for name in names if name.rpartition(".")[2] == last][:1]
    close += get_close_matches(key, names, 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else "see conf/ for all settings"
    return f"there is no setting {key}; {hint}"


def no_preset(group: str, name: str, options: list[str]) -> str:
    """One sentence on a preset that does not exist, or no longer."""
    if (group, name) in GONE:
        return f"there is no {group}={name} any more; use {group}={GONE[group, name]}"
    meant = did_you_mean(name, options).replace("mean ", f"mean {group}=")
    return f"there is no {group}={name}; {meant or 'choose one of:'} {'' if meant else ', '.join(options)}".rstrip()


def replaced(key: str, value: str, inside: list[str]) -> str:
    """One sentence on a value where settings of their own stand."""
    some = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
    return f"{key}={value} would replace the settings {some}; set these instead"


def listing(names: tuple[str, ...]) -> str:
    """Names as a sentence has them: "a, b or c"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{shown(each)}" for name, each in value.items()) + "}"
    if isinstance(value, str) and (not value.strip() or re.fullmatch(r"[-+.\deE]+|true|false|null", value)):
        return f"'{value}'"
    return str(value)
