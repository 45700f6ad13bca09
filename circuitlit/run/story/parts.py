"""The parts of a story, each made once: what it found is kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import TypeAdapter

from circuitlit.cli.kept import fingerprint, read_kept, settings_of
from circuitlit.files import write_json
from circuitlit.progress import part

_GROUPS = ("task", "model", "adapter", "tune", "method", "ablation", "sparsity", "mask", "data", "evaluate", "story")


class Parts:
    """Makes parts, or takes them from a run with the same settings that was stopped.

    Args:
        cfg: the story's settings.
        folder: where the parts' files are.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self._folder = folder
        self._settings = fingerprint(settings_of(cfg, _GROUPS))

    def once(self, name: str, text: str, work: Callable[[], Any], kind: Any) -> Any:
        """One part.

        Args:
            name: of the file, and of the part's time.
            text: what is said while it is made.
            work: makes it.
            kind: its type.
        """
        file, adapter = self._folder / f"{name}.json", TypeAdapter(kind)
        known = read_kept(file)
        if known.get("settings") != self._settings:
            with part(name, text):
                content = adapter.dump_python(work())
            self._folder.mkdir(exist_ok=True)
            write_json(file, {"settings": self._settings, "content": content})
            known = read_kept(file)
        return adapter.validate_python(known["content"])
