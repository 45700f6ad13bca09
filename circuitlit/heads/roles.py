"""`HeadScores`: everything that is known of single heads, and which of a circuit's heads have which role."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.files import save_tensors, write_json
from circuitlit.graph import Circuit, Graph
from circuitlit.graph.nodes import node_name
from circuitlit.graph.select import writers_of

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1

Head = tuple[int, int]


@dataclass(frozen=True, repr=False)
class HeadScores:
    """Scores of all heads of one model, by name.

    Attributes:
        graph: the heads' layers and numbers.
        scores: one number per head, the higher the more of it; NaN where it was not measured.
        details: settings and findings, plain types only.
    """

    graph: Graph
    scores: dict[str, Float[Tensor, "layer head"]]
    details: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.graph.n_layers, self.graph.n_heads)
        for name, values in self.scores.items():
            if tuple(values.shape) != shape:
                raise ValueError(f"score {name} has shape {tuple(values.shape)}, the graph wants {shape}")

    def top(self, name: str, count: int) -> list[Head]:
        """The heads with the highest scores, best first; those that were not measured are left out."""
        return top_heads(self.scores[name], count)

    def above(self, name: str, threshold: float) -> Bool[Tensor, "layer head"]:
        """True for heads whose score exceeds a threshold."""
        return self.scores[name] > threshold

    def to_frame(self) -> pd.DataFrame:
        """A row a head, a column a score."""
        import pandas as pd

        graph = self.graph
        names = [node_name(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]
        return pd.DataFrame({"head": names, **{name: grid.flatten().numpy() for name, grid in self.scores.items()}})

    def __repr__(self) -> str:
        return f"HeadScores({self.details.get('model', 'model')!r}, scores={list(self.scores)})"

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(notebook=True)

    def save(self, folder: Path | str) -> None:
        """Write `heads.safetensors` (scores) and `heads.json` (by head name, with the details); makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "graph": self.graph.to_dict(), "details": self.details}
        tensors = {name: values.float() for name, values in self.scores.items()}
        save_tensors(folder / "heads.safetensors", tensors, {"circuitlit": json.dumps(header)})
        named = {name: by_name(values) for name, values in self.scores.items()}
        write_json(folder / "heads.json", {**header, "scores": named})

    @classmethod
    def load(cls, path: Path | str) -> HeadScores:
        """Read scores from their folder or their safetensors file.

        Raises:
            UserError: the file is missing, damaged or holds no head scores.
        """
        file = Path(path) / "heads.safetensors" if Path(path).is_dir() else Path(path)
        try:
            with safe_open(file, "pt") as opened:
                header = json.loads((opened.metadata() or {})["circuitlit"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return cls(Graph(**header["graph"]), tensors, header["details"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: no readable head scores ({error}); name a run of the verb heads") from error


def head_name(head: Head) -> str:
    """`a3.h5`."""
    return f"a{head[0]}.h{head[1]}"


def by_name(values: Float[Tensor, "layer head"]) -> dict[str, float]:
    """Measured scores by head name."""
    return {head_name((int(i), int(j))): float(values[i, j]) for i, j in (~values.isnan()).nonzero()}


def top_heads(values: Float[Tensor, "layer head"], count: int) -> list[Head]:
    """The heads with the highest finite scores, best first."""
    order = values.flatten().nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    flat = [int(place) for place in order[:count] if not bool(values.flatten()[place].isnan())]
    return [divmod(place, values.shape[1]) for place in flat]


def heads_of(chosen: Bool[Tensor, "layer head"]) -> list[Head]:
    """The heads that are marked, first layer first."""
    return [(int(layer), int(head)) for layer, head in chosen.nonzero()]


def mark(graph: Graph, heads: list[Head]) -> Bool[Tensor, "layer head"]:
    """The same heads as a grid."""
    grid = torch.zeros(graph.n_layers, graph.n_heads, dtype=torch.bool)
    for layer, head in heads:
        grid[layer, head] = True
    return grid


def heads_in_circuit(circuit: Circuit) -> Bool[Tensor, "layer head"]:
    """Heads that some reachable edge of the circuit leaves, so that another enters them."""
    return circuit.graph.by_head(writers_of(circuit.graph, circuit.reachable))


def roles_in_circuit(
    scores: HeadScores, circuit: Circuit, thresholds: Mapping[str, float]
) -> dict[str, list[tuple[str, float]]]:
    """For each role, the circuit's heads whose score exceeds the role's threshold, best first, with their scores.

    Args:
        scores: of the same model.
        circuit: of the same model.
        thresholds: by score name; scores that were not computed are left out.

    Raises:
        ValueError: scores and circuit are of different graphs.
    """
    if scores.graph != circuit.graph:
        raise ValueError("head scores and circuit belong to different models")
    inside = heads_in_circuit(circuit)
    found = {}
    for role, threshold in thresholds.items():
        if role not in scores.scores:
            continue
        values = torch.where(inside & scores.above(role, threshold), scores.scores[role], torch.nan)
        best = top_heads(values, values.numel())
        found[role] = [(head_name(head), float(values[head])) for head in best]
    return found
