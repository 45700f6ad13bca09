"""Every model type that the library calls a causal language model: how it runs here, or why it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoConfig

from circuitlit.model.anatomy import Anatomy
from circuitlit.model.families import ANATOMIES
from circuitlit.model.refused import REFUSED
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Families(Result):
    """Model types.

    Attributes:
        runs: how each type runs: fast, with attention written here, or borrowed, with the model's own (checked first).
        refused: why each other type is refused.
    """

    schema: ClassVar[str] = "families"
    file: ClassVar[str] = "families.json"

    runs: dict[str, str]
    refused: dict[str, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A model type each, those that run first."""
        for name, way in self.runs.items():
            yield {"model_type": name, "runs": way, "refused": None}
        for name, reason in self.refused.items():
            yield {"model_type": name, "runs": None, "refused": reason}


def list_families() -> Families:
    """All model types, by name; nothing is loaded."""
    return Families(runs={name: _way(name) for name in sorted(ANATOMIES)}, refused=dict(sorted(REFUSED.items())))


def _way(name: str) -> str:
    """How a type runs with its usual configuration."""
    row = ANATOMIES[name]
    borrowed = (row if isinstance(row, Anatomy) else row(AutoConfig.for_model(name))).borrowed
    return "borrowed" if borrowed else "fast"
