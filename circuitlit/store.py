"""Parts of a long analysis, each made once: what a stopped run has finished is read, not made again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from circuitlit.errors import sentence
from circuitlit.files import write_json
from circuitlit.lock import InUse, claimed_cell
from circuitlit.plain_types import converter_of

log = logging.getLogger(__name__)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Failure:
    """A part that could not be made.

    Attributes:
        error: why, in a sentence.
    """

    error: str


@dataclass(frozen=True)
class Part(Generic[Made]):
    """A part that can be made by itself.

    Attributes:
        name, settings, kind, work: as `Store.made` takes them.
    """

    name: str
    settings: object
    kind: type[Made]
    work: Callable[[], Made]


@dataclass(frozen=True)
class Store:
    """A folder of json files, one for each part, with the hash of the settings that it was made with.

    A part that is there with the same settings is read; everything else is made anew. Two processes never make the
    same part: the second one waits for the first.

    Attributes:
        folder: of the files; it is made with the first one.
        explain: from an error to the sentence that is written down.
    """

    folder: Path
    explain: Callable[[Exception], str] = sentence

    def known(self, name: str, settings: object, kind: type[Made]) -> Made | None:
        """A part that is there with these settings; None if it is not, failed, or is damaged.

        Args:
            name: of the file, without its ending.
            settings: all that the part depends on; plain types.
            kind: its type, such as a dataclass or `dict[str, Any]`.
        """
        content = self._read(name)
        if content.get("settings") != fingerprint(settings) or "content" not in content:
            return None
        try:
            return converter_of(kind).validate_python(content["content"])
        except ValueError:  # of an earlier version
            return None

    def settled(self, name: str, settings: object) -> bool:
        """True if a part has been made or tried with these settings."""
        return self._read(name).get("settings") == fingerprint(settings)

    def made(self, name: str, settings: object, kind: type[Made], work: Callable[[], Made], wait: bool = True) -> Made:
        """A part: read if it is there with these settings, else made and written.

        Args:
            name, settings, kind: as for `known`.
            work: makes it.
            wait: for another process that is making it.

        Raises:
            InUse: another process is making it, and `wait` is False.
        """
        found = self.known(name, settings, kind)
        if found is not None:
            return found
        with claimed_cell(self.folder / f"{name}.json", wait):
            if self.known(name, settings, kind) is None:  # another process may have made it meanwhile
                (self.folder / f"{name}.json").unlink(missing_ok=True)  # it speaks of files that work may overwrite
                self._write(name, settings, content=converter_of(kind).dump_python(work()))
            found = self.known(name, settings, kind)  # as the next run will read it
        assert found is not None, f"{name}: what was written is not a {kind}"
        return found

    def all_made(self, parts: Iterable[Part[Made]]) -> dict[str, Made]:
        """Parts that do not need each other, by their names."""
        return {part.name: self.made(part.name, part.settings, part.kind, part.work) for part in parts}

    def tried(
        self, name: str, settings: object, kind: type[Made], work: Callable[[], Made], wait: bool = True
    ) -> Made | Failure:
        """As `made`, but an error of this part does not stop the others: it is written down, and tried again."""
        try:
            return self.made(name, settings, kind, work, wait)
        except InUse:
            raise
        except Exception as error:
            return self.failed(name, settings, error)

    def failed(self, name: str, settings: object, error: Exception) -> Failure:
        """Write down that a part could not be made."""
        log.info("%s", name, exc_info=error)
        failure = Failure(self.explain(error))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(name, settings, error=failure.error)
        return failure

    def _write(self, name: str, settings: object, **content: object) -> None:
        write_json(self.folder / f"{name}.json", {"settings": fingerprint(settings), **content})

    def _read(self, name: str) -> dict[str, Any]:
        return _object_in(self.folder / f"{name}.json")


class Share(Store):
    """A store that several processes fill side by side: none waits for what another one is making."""

    def made(self, name: str, settings: object, kind: type[Made], work: Callable[[], Made], wait: bool = False) -> Made:
        """As `Store.made`.

        Raises:
            InUse: another process is making it.
        """
        return super().made(name, settings, kind, work, wait=False)

    def all_made(self, parts: Iterable[Part[Made]]) -> dict[str, Made]:
        """As `Store.all_made`.

        Raises:
            InUse: all that nobody else makes is made, but something is missing.
        """
        found, missing = {}, None
        for part in parts:
            try:
                found[part.name] = self.made(part.name, part.settings, part.kind, part.work)
            except InUse as busy:
                missing = busy
        if missing is not None:
            raise missing
        return found


@contextmanager
def opened(folder: Path | str | Store | None) -> Iterator[Store]:
    """A folder's store; without a folder one that is gone after the block. A store is taken as it is."""
    if isinstance(folder, Store):
        yield folder
    elif folder is not None:
        yield Store(Path(folder))
    else:
        with TemporaryDirectory() as made:
            yield Store(Path(made))


def is_part(path: Path) -> bool:
    """True for a file in which a store keeps a part that was made."""
    return {"settings", "content"} <= _object_in(path).keys()


def _object_in(path: Path) -> dict[str, Any]:
    """What a json file holds; empty if it is missing, damaged, or no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def fingerprint(settings: object) -> str:
    """A short hash of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
