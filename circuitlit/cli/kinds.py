"""Kinds of settings: what a value may be, and one sentence on a value that is not.

Nothing heavy is imported here: a wrong setting is refused before torch is there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from circuitlit.cli.wording import did_you_mean, listing, replaced, shown, unknown

LARGEST = 2**31 - 1  # of whole numbers without a limit of their own: torch's and Lightning's counters hold as much
Hint = Callable[[Any], str]


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes:
        wants: what a message says that a value is not: "a whole number of at least 1".
        fault: one sentence on a value of the setting of some name that is not of this kind, or None.
        literal: True where the value is a text whatever characters it has, such as a path.
        inner: kinds of the settings inside, by name, where the value is a mapping.
        open: True where it may hold other settings than those; with none in `inner`, names of the user's.
        is_list: True where the value is a list.
        nullable: True where it may be null.
        each: kind of every setting inside, where their names are the user's.
    """

    wants: str
    fault: Callable[[str, Any], str | None]
    literal: bool = False
    inner: Mapping[str, Kind] = field(default_factory=dict)
    open: bool = False
    is_list: bool = False
    nullable: bool = False
    each: Kind | None = None

    def __or__(self, other: Kind | None) -> Kind:
        """Either kind; `| None` lets the setting be null, which messages do not mention."""
        if other is None:
            own = self.fault
            return replace(self, fault=lambda key, value: None if value is None else own(key, value), nullable=True)
        wants = f"{self.wants.replace(' or ', ', ')} or {other.wants}"

        def fault(key: str, value: Any) -> str | None:
            found = {kind.fault(key, value): kind for kind in (self, other)}
            if None in found:
                return None
            inside = [text for text, kind in found.items() if kind._holds(value)]
            meant = [text.partition("; ")[2] for text in found if text and "did you mean" in text]
            absent = [] if meant else [text for text in found if text and "does not exist" in text]
            return [*inside, *absent, "; ".join([_not_a(key, value, wants), *meant[:1]])][0]

        return Kind(
            wants,
            fault,
            self.literal or other.literal,
            {**self.inner, **other.inner},
            self.open or other.open,
            self.is_list or other.is_list,
            self.nullable or other.nullable,
        )

    def _holds(self, value: Any) -> bool:
        """True where the value has this kind's form, so that what is wrong with it is inside."""
        return self.is_list if isinstance(value, list) else isinstance(value, dict) and bool(self.inner or self.open)


def kind(wants: str, fits: Callable[[Any], bool], hint: Hint = lambda value: "", literal: bool = False) -> Kind:
    """A kind of single values.

    Args:
        wants: as in `Kind`.
        fits: True for a value of this kind.
        hint: what may have been meant instead of a value that is none; empty if nobody knows.
        literal: as in `Kind`.
    """

    def fault(key: str, value: Any) -> str | None:
        if fits(value):
            return None
        more = hint(value)
        return _not_a(key, value, wants) + (f"; {more}" if more else "")

    return Kind(wants, fault, literal)


def whole(least: int = 0, most: int | None = None) -> Kind:
    """A whole number from `least` to `most`."""
    top = LARGEST if most is None else most
    wants = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"

    def hint(value: Any) -> str:
        if not _is_number(value):
            return ""
        if most is None and value > top:
            return f"the largest is {top}"
        return f"did you mean {value:.0f}?" if value == round(value) and least <= value <= top else ""

    return kind(wants, lambda value: type(value) is int and least <= value <= top, hint)


def number(least: float | None = None, above: float | None = None, most: float | None = None) -> Kind:
    """A finite number, of at least `least`, above `above` and of at most `most`."""
    limits = [f"of at least {least:g}"] if least is not None else []
    limits += [f"above {above:g}"] if above is not None else []
    limits += [f"of at most {most:.0f}"] if most is not None else []
    low, open_low = (-math.inf, True) if least is None and above is None else (least, False)
    low, open_low = (above, True) if above is not None else (low, open_low)
    top = math.inf if most is None else most

    def fits(value: Any) -> bool:
        return _is_number(value) and value <= top and (value > low if open_low else value >= low)

    return kind(" ".join(["a number", " and ".join(limits)]).strip(), fits)


def share(zero: bool = True, one: bool = True) -> Kind:
    """A share between 0 and 1, which it may be or not."""
    ends = ("between 0 and 1", "above 0 and up to 1", "from 0 to below 1", "above 0 and below 1")
    wants = f"a share {ends[(not zero) + 2 * (not one)]}"

    def fits(value: Any) -> bool:
        return _is_number(value) and (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1)

    def hint(value: Any) -> str:
        return f"did you mean {value / 100:g}?" if _is_number(value) and 1 < value <= 100 else ""

    return kind(wants, fits, hint)


def flag() -> Kind:
    """True or false."""
    return kind("true or false", lambda value: isinstance(value, bool))


def choice(*names: str) -> Kind:
    """One of some texts."""
    return kind(listing(names), lambda value: value in names, lambda value: did_you_mean(value, names))


def text() -> Kind:
    """Any text that is not empty."""
    return kind("a text", lambda value: _is_text(value) and bool(str(value).strip()), literal=True)


def function(*ours: str) -> Kind:
    """The whole name of a function: one of ours, or one of a module that is installed."""

    def fits(value: Any) -> bool:
        return _is_importable(value) and (value in ours or not value.startswith("circuitlit."))

    return kind(f"the whole name of a function, such as {ours[0]}", fits, lambda value: did_you_mean(value, ours))


def word() -> Kind:
    """A name for folders and W&B."""
    forbidden = "/ \\ # ? % :"

    def fits(value: Any) -> bool:
        return _is_text(value) and re.fullmatch(r"(?!\.+$)[^/\\#?%:]+", str(value)) is not None

    return kind(f"a name without any of {forbidden} and not of dots alone", fits, literal=True)


def path(meant: str | None = None, only: str = "") -> Kind:
    """A path; with `meant`, of something that is there.

    Args:
        meant: what belongs there, for the message; None takes paths of nothing.
        only: "file" or "folder", where the other is refused.
    """

    def fault(key: str, value: Any) -> str | None:
        if not _is_text(value) or not str(value).strip():
            return _not_a(key, value, "a path") + (f"; name {meant}" if meant else "")
        place = Path(os.path.expanduser(str(value)))
        if meant is None:
            return None
        try:
            there = place.exists()
        except (OSError, ValueError):  # too long, or a null character
            there = False
        if not there:
            return f"{key}={value} does not exist; name {meant}"
        if only and only != ("folder" if place.is_dir() else "file"):
            return f"{key}={value} is no {only}; name {meant}"
        return None

    return Kind("a path", fault, literal=True)


def listed(item: Kind, least: int = 0, most: int | None = None) -> Kind:
    """A list, each of its items of one kind."""
    wants = "a list" if not least else f"a list of {least}" if least == most else f"a list of at least {least}"

    def fault(key: str, value: Any) -> str | None:
        if not isinstance(value, list):
            return _not_a(key, value, wants) + (
                f"; write {key}=[{shown(value)}]" if _is_text(value) and str(value)[:1] not in "[{" else ""
            )
        if len(value) < least or (most is not None and len(value) > most):
            return _not_a(key, value, wants)
        found = (item.fault(f"{key}[{place}]", each) for place, each in enumerate(value))
        return next((each for each in found if each), None)

    return Kind(wants, fault, item.literal, is_list=True)


def mapping(inner: Mapping[str, Kind], needed: tuple[str, ...] = (), open: bool = False) -> Kind:
    """Settings with names of their own.

    Args:
        inner: their kinds.
        needed: those that must be there.
        open: True lets others be there.
    """

    def fault(key: str, value: Any) -> str | None:
        if not isinstance(value, dict):
            return _not_a(key, value, f"settings of its own: {', '.join(inner)}" if inner else "settings of its own")
        for name in needed:
            if name not in value:
                return f"{key}.{name} is missing; give it a value"
        for name, each in value.items():
            if name not in inner and not open:
                return unknown(f"{key}.{name}", [f"{key}.{own}" for own in inner])
            found = inner[name].fault(f"{key}.{name}", each) if name in inner else None
            if found:
                return found
        return None

    return Kind("settings of its own", fault, any(each.literal for each in inner.values()), inner, open)


def table(values: Kind) -> Kind:
    """Names of the user's own, each with a value of one kind."""

    def fault(key: str, value: Any) -> str | None:
        if not isinstance(value, dict):
            return _not_a(key, value, "names with values")
        found = (values.fault(f"{key}.{name}", each) for name, each in value.items())
        return next((each for each in found if each), None)

    return Kind("names with values", fault, open=True, each=values)


def built(targets: Mapping[str, Mapping[str, Kind]]) -> Kind:
    """Something that `_target_` makes of the settings beside it.

    Args:
        targets: the settings of each of ours, by its name. Of any other one, those in `targets` are checked and it may
            have more.
    """
    extra = {"_partial_": flag(), "_convert_": text(), "_recursive_": flag()}
    ours = [target for target in targets if target.startswith("circuitlit.")]
    every = {name: each for of_target in targets.values() for name, each in of_target.items()}

    def fault(key: str, value: Any) -> str | None:
        if not isinstance(value, dict):
            return replaced(key, shown(value), [f"{key}.{name}" for name in every])
        target, example = value.get("_target_"), next(iter(targets))
        if not isinstance(target, str) or not _is_importable(target):
            return f"{key}._target_={shown(target)} is not the name of a function or class, such as {example}"
        if target.startswith("circuitlit.") and target not in ours:
            more = did_you_mean(target, ours)
            return f"{key}._target_={target} does not exist; {more or 'choose one of: ' + ', '.join(ours)}"
        own = {**targets.get(target, {}), **extra}
        rest = {name: each for name, each in value.items() if name != "_target_"}
        return mapping(own, open=target not in ours).fault(key, rest)

    return Kind("settings with a _target_", fault, inner={**every, **extra, "_target_": text()}, open=True)


FREE = Kind("anything", lambda key, value: None, open=True)


def _not_a(key: str, value: Any, wants: str) -> str:
    return f"{key}={shown(value)} is not {wants}"


def _is_importable(value: Any) -> bool:
    """True for a name in a package that is installed, as far as that is seen without importing it."""
    names = str(value).split(".")
    dotted = isinstance(value, str) and len(names) > 1 and all(name.isidentifier() for name in names)
    return dotted and find_spec(names[0]) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
