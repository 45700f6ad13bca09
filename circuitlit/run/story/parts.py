"""The parts of a story, each made once: what it found is kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.checks import writing_to
from circuitlit.cli.kept import fingerprint, read_kept, settings_of
from circuitlit.files import write_json
from circuitlit.progress import Clock

_GROUPS = ("task", "model", "adapter", "tune", "method", "ablation", "sparsity", "mask", "data", "evaluate", "story")


class Parts:
    """Makes parts, or takes them from a run with the same settings that was stopped.

    Args:
        cfg: the story's settings.
        folder: where the parts' files are.
        clock: times the parts that are made.
    """

    def __init__(self, cfg: DictConfig, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._settings = fingerprint(settings_of(cfg, _GROUPS))

    def made(
        self, name: str, text: str, work: Callable[[], dict[str, Any]], writes_to: Path | None = None
    ) -> dict[str, Any]:
        """One part, as it stands in its file.

        Args:
            name: of the file, and of the part's time.
            text: what is said while it is made.
            work: makes it.
            writes_to: run directory of the verb that `work` runs.
        """
        file = self._folder / f"{name}.json"
        found = self._read(file)
        if found is None:
            with self._clock.phase(name, text), nullcontext() if writes_to is None else writing_to(writes_to):
                content = work()
            self._folder.mkdir(exist_ok=True)
            write_json(file, {"settings": self._settings, "content": content})
            found = self._read(file)
        assert found is not None
        return found

    def _read(self, file: Path) -> dict[str, Any] | None:
        known = read_kept(file)
        return known["content"] if known.get("settings") == self._settings else None
