"""Looks settings up: what a key may be, and whether a whole configuration is as it should be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from circuitlit.cli.kinds import Kind
from circuitlit.cli.settings import SETTINGS
from circuitlit.cli.verb_settings import OF_VERBS
from circuitlit.cli.wording import replaced, shown, unknown
from circuitlit.errors import UserError


def known(verb: str) -> dict[str, Kind]:
    """The settings that a verb has."""
    return {**SETTINGS, **OF_VERBS[verb]}


def find(key: str, verb: str) -> Kind | None:
    """What the setting of some name may be; None where there is no such setting, or no kind of it alone is known."""
    found = path_to(key, verb)
    return found[-1] if found else None


def path_to(key: str, verb: str) -> list[Kind | None]:
    """The kinds of the setting that a key is inside of, and of each one inside that, down to the key's own."""
    home = home_of(key, verb)
    if home is None:
        return []
    found: list[Kind | None] = [known(verb)[home]]
    for name in key[len(home) :].split(".")[1:]:
        found.append(found[-1].inner.get(name, found[-1].each) if found[-1] else None)
    return found


def home_of(key: str, verb: str) -> str | None:
    """The setting that a key is, or is inside of."""
    settings, parts = known(verb), key.split(".")
    homes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((home for home in homes if home in settings), None)


def is_section(key: str, settings: Mapping[str, Kind]) -> bool:
    """True for a name that settings stand under."""
    return any(name.startswith(f"{key}.") for name in settings)


def names(verb: str) -> list[str]:
    """All settings of a verb by their whole names, those of everything that a `_target_` may make, too."""

    def under(key: str, kind: Kind) -> Iterator[str]:
        yield key
        for name, inner in kind.inner.items():
            yield from under(f"{key}.{name}", inner)

    return [name for key, kind in known(verb).items() for name in under(key, kind)]


def check_settings(cfg: DictConfig, verb: str) -> None:
    """Refuse values that are not of their setting's kind, and settings that do not exist.

    `~` at the beginning of a path becomes the user's home.

    Raises:
        UserError: the first of them.
    """
    content: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for fault in _faults("", content, _allowed(verb), verb):
        raise UserError(fault)
    for key, value in _leaves("", content):
        kind = find(key, verb)
        texts = value if isinstance(value, list) else [value]
        if kind is not None and kind.literal and any(isinstance(each, str) and each.startswith("~") for each in texts):
            at_home = [os.path.expanduser(each) if isinstance(each, str) else each for each in texts]
            OmegaConf.update(cfg, key, at_home if isinstance(value, list) else at_home[0])


@cache
def _allowed(verb: str) -> dict[str, Kind]:
    """The settings that a verb has, and those of other verbs, which experiments may set."""
    own = known(verb)
    others = {name: kind for of_verb in OF_VERBS.values() for name, kind in of_verb.items()}
    return {name: kind for name, kind in others.items() if not is_section(name, own)} | own


def _leaves(prefix: str, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _faults(prefix: str, content: dict[str, Any], settings: Mapping[str, Kind], verb: str) -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in settings:
            fault = settings[key].fault(key, value)
            if fault:
                yield fault
        elif not is_section(key, settings):
            yield unknown(key, names(verb))
        elif isinstance(value, dict):
            yield from _faults(f"{key}.", value, settings, verb)
        else:
            yield replaced(key, shown(value), [own for own in known(verb) if own.startswith(f"{key}.")])
