"""The words of a command line, read before Hydra sees them: typing errors get plain words, texts are quoted for Hydra.

Hydra's own language stays possible (`task=ioi`, `seed=0,1,2` with -m, `+`, `hydra.run.dir=DIR`). A setting that is a
text, such as a path, is taken as it stands: blanks, `=`, quotes and letters of any script are no language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from circuitlit.cli.kinds import Kind, mapping, path
from circuitlit.cli.presets import known_presets, presets
from circuitlit.cli.schema import find, home_of, is_section, known, names, path_to
from circuitlit.cli.verb_settings import OF_VERBS
from circuitlit.cli.wording import no_preset, replaced, shown, unknown
from circuitlit.errors import UserError

HYDRA = {name: path() for name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")}  # of its own, texts


SECTION = mapping({}, open=True)


def readable(verb: str, words: Sequence[str]) -> list[str]:
    """The words behind the command's name, as Hydra is to read them.

    Raises:
        UserError: a word that is neither an option nor a setting, a setting that does not exist, or a value that is not
            of its kind.
    """
    options, rest = _options(words)
    sweep = bool({"-m", "--multirun"} & set(options)) or "hydra.mode=MULTIRUN" in rest
    elsewhere = any(word.startswith(("--config-dir", "-cd", "hydra.searchpath")) for word in [*options, *rest])
    return [*options, *(setting(verb, word, sweep, elsewhere) for word in rest)]


def setting(verb: str, word: str, sweep: bool = False, elsewhere: bool = False) -> str:
    """One `key=value` as Hydra is to read it.

    Args:
        verb: whose setting it is.
        word: as it was typed.
        sweep: True where commas stand between the values of several runs.
        elsewhere: True where presets may come from other folders than conf/, which Hydra has yet to look through.

    Raises:
        UserError: it has another form, there is no such setting, or the value is not of its kind.
    """
    left, equals, value = word.partition("=")
    plus, key = re.match(r"(\+*)(.*)", left.strip()).groups()  # type: ignore[union-attr]
    groups = presets()
    if not equals or key.startswith("~") or not key:
        raise UserError(_formless(word, groups))
    if key in groups:
        return f"{key}={_preset(key, value, known_presets(key) or groups[key], sweep, elsewhere)}"
    if key.startswith(("hydra.", "hydra/")) and key not in HYDRA:
        return word
    home, settings = home_of(key, verb), known(verb)
    section = home is None and is_section(key, settings)
    if section and not value.startswith("{"):
        raise UserError(replaced(key, value, [name for name in settings if name.startswith(f"{key}.")]))
    kind = SECTION if section else HYDRA.get(key) or find(key, verb)
    if home is None and kind is None:
        raise UserError(_no_setting(key, verb, list(groups)))
    text = _value(value, kind)
    _check_value(key, value, text, kind, sweep)
    return f"{_plus(plus, key, verb)}{key}={text}"


def _options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's options, each with its value, and all other words; Hydra itself does not take them mixed."""
    known_options = get_args_parser()._option_string_actions
    options, rest, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            rest.append(word)
            continue
        name, equals, _ = word.partition("=")
        if name in ("--config-name", "-cn", "--config-path", "-cp"):
            raise UserError(f"{name}: the verb says which configuration it is; folders of your own: --config-dir DIR")
        if name not in known_options:
            meant = f"{word.lstrip('-')}{'' if equals else '=VALUE'}"
            raise UserError(f"there is no option {name}; settings are written without dashes: {meant}")
        options.append(word)
        wants_value = known_options[name].nargs is None or (
            known_options[name].nargs == "?" and left[:1] and "=" not in left[0]
        )
        if wants_value and not equals and left:
            options.append(left.pop(0))
    return options, rest


def _formless(word: str, groups: dict[str, list[str]]) -> str:
    if word.startswith("~"):
        return f"{word}: settings cannot be taken away; give {word.lstrip('~').partition('=')[0]} another value"
    meant = next((f"did you mean {group}={word}?" for group, own in groups.items() if word in own), "")
    return f"'{word}' is no setting; {meant or 'write NAME=VALUE, such as task=ioi or seed=3'}"


def _no_setting(key: str, verb: str, groups: list[str]) -> str:
    others = [other for other, own in OF_VERBS.items() if key in own]
    if others:
        return f"{verb} has no setting {key}, which is one of the verb {others[0]}"
    return unknown(key, [*groups, *names(verb)])


def _preset(group: str, value: str, options: list[str], sweep: bool, elsewhere: bool) -> str:
    """A group's presets; null takes the one that is nothing."""
    if value == "null" and "none" in options:
        return "none"
    chosen = value.split(",") if sweep else [value]
    unknown_ones = [each for each in chosen if each.strip() not in options]
    if unknown_ones and not elsewhere:
        if "," in value and not sweep:
            raise UserError(f"{group}={value} names several presets; add -m for a run of each")
        raise UserError(no_preset(group, unknown_ones[0], options))
    return value


def _plus(plus: str, key: str, verb: str) -> str:
    """What stands before a key: nothing for a setting that there is, `++` inside of what may be null or the user's."""
    around = [kind for kind in path_to(key, verb)[:-1] if kind]
    own = any(not kind.inner if kind.open else kind.nullable for kind in around)
    return "++" if own or (plus and around) else ""


def _value(value: str, kind: Kind | None) -> str:
    """A value as Hydra is to read it: texts between quotes, and whatever else its language has no word for."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    literal = kind is not None and kind.literal
    if kind is not None and kind.literal and kind.is_list and re.fullmatch(r"\[[^\[\]{}'\"]*\]", value):
        return f"[{','.join(_quoted(each.strip()) for each in value[1:-1].split(',') if each.strip())}]"
    if quoted and literal and _parses(value):
        return _quoted(_parsed(value).value())  # type: ignore[arg-type]
    holds = value[:1] in ("[", "{") and kind is not None and (kind.is_list or kind.inner or kind.open)
    if (holds or quoted or not literal or value in ("null", "???")) and _parses(value):
        return value
    return _rewritten(value) if holds else _quoted(value)


def _rewritten(value: str) -> str:
    """A list or mapping in the words of YAML, which knows more of them than Hydra, in Hydra's."""

    def write(each: Any) -> str:
        if isinstance(each, list):
            return f"[{','.join(map(write, each))}]"
        if isinstance(each, dict):
            return "{" + ",".join(f"{name}:{write(inner)}" for name, inner in each.items()) + "}"
        return _quoted(each) if isinstance(each, str) else shown(each)

    try:
        text = write(yaml.safe_load(value))
    except yaml.YAMLError:
        return _quoted(value)
    return text if _parses(text) else _quoted(value)


def _check_value(key: str, value: str, text: str, kind: Kind | None, sweep: bool) -> None:
    """Refuse a value that is not of its kind; settings inside, or one made of others, are looked at later."""
    parsed = _parsed(text)
    if parsed.is_sweep_override() and not sweep:
        listed = f"write {key}=[{value}]" if kind is not None and kind.is_list else "add -m for a run of each"
        raise UserError(f"{key}={value} names several values; {listed}")
    if (
        kind is None
        or value.startswith("{")
        or "${" in text
        or "???" in text
        or parsed.value_type is ValueType.GLOB_CHOICE_SWEEP
    ):
        return
    values = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
    for each in values:
        fault = kind.fault(key, each)
        if fault:
            raise UserError(fault)


def _quoted(value: str) -> str:
    """A text between quotes; `~` at its beginning is the user's home."""
    return QuotedString(os.path.expanduser(value), Quote.single).with_quotes()


def _parsed(value: str) -> Override:
    return OverridesParser.create().parse_override(f"key={value}")


def _parses(value: str) -> bool:
    try:
        _parsed(value)
    except HydraException:
        return False
    return True
