"""The frozen product: which edges are kept, why, and where they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.files import save_tensors, write_json
from circuitlit.graph.kinds import kind_of
from circuitlit.graph.layout import sum_by_writer
from circuitlit.graph.scores import EdgeScores, normalised
from circuitlit.graph.select import SELECTIONS, Select, greedy, nodes_of, reachable_edges, top_k
from circuitlit.graph.topology import Graph

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2  # 1 did not say of what kind the scores are


@dataclass(frozen=True)
class Circuit:
    """A set of edges of one graph, with the scores it was cut from.

    Attributes:
        scores: the scores; `scores.graph` fixes the edges' order.
        kept: True for the edges asked for, one row per token role or a single row.
        reachable: the kept edges that lie on a path from the input to the logits.
        provenance: model, task, method, seed, versions ...: plain types only.
    """

    scores: EdgeScores
    kept: Bool[Tensor, "copies edge"]
    reachable: Bool[Tensor, "copies edge"]
    provenance: dict[str, object] = field(default_factory=dict)

    @classmethod
    def cut(
        cls, scores: EdgeScores, count: int, provenance: dict[str, object] | None = None, select: Select = "top_k"
    ) -> Circuit:
        """The `count` best edges of some scores, exactly as many, and what of them is reachable.

        Args:
            scores: what a method found.
            count: edges to keep.
            provenance: where the scores come from.
            select: "top_k" takes the best edges wherever they are, "greedy" grows a circuit from the logits.

        Raises:
            UserError: more edges than there are, or than the method ranks, or fewer than none.
        """
        if not 0 <= count <= scores.size:
            raise UserError(f"count={count} is not a number of edges from 0 to {scores.size:,}; give one")
        if scores.limit is not None and count > scores.limit:
            raise UserError(
                f"{scores.method} kept {scores.limit:,} edges and rejected all others, so it has no circuit of "
                f"{count:,}; take its own size, a smaller one, or a lower threshold"
            )
        if select not in SELECTIONS:
            raise ValueError(f"select={select} is none of {SELECTIONS}")
        order = scores.order
        kept = greedy(scores.graph, order, count) if select == "greedy" else top_k(order, count)
        return cls.of(scores, kept, provenance)

    @classmethod
    def of(
        cls, scores: EdgeScores, kept: Bool[Tensor, "copies edge"], provenance: dict[str, object] | None = None
    ) -> Circuit:
        """A given set of edges, and what of it is reachable."""
        return cls(scores, kept, reachable_edges(scores.graph, kept), provenance or {})

    @property
    def graph(self) -> Graph:
        """The edges' order."""
        return self.scores.graph

    @property
    def n_edges(self) -> int:
        """Edges asked for."""
        return int(self.kept.sum())

    @property
    def n_reachable(self) -> int:
        """Edges that can matter."""
        return int(self.reachable.sum())

    @property
    def sparsity(self) -> float:
        """Share of the graph's edges removed, unreachable ones counted as kept; 0 is the full model, 1 no edge."""
        return 1 - self.n_edges / self.kept.numel()

    @property
    def weight(self) -> Float[Tensor, "copies edge"]:
        """What each edge weighs in this circuit: its score's weight, and 0 where it is not kept."""
        return self.scores.weight * self.kept

    @property
    def shares(self) -> Float[Tensor, "edge"]:
        """Each edge's share of the circuit's whole weight; token roles are added up."""
        return normalised(self.weight)

    @property
    def writer_weights(self) -> Float[Tensor, "writer"]:
        """Weight of the reachable edges out of each writer; for gates nearly their number."""
        return sum_by_writer(self.graph, (self.weight * self.reachable).sum(0, keepdim=True))[0]

    def nodes(self) -> list[str]:
        """Names of the heads and MLPs on a path from the input to the logits, in graph order."""
        there = nodes_of(self.graph, self.reachable)
        return [name for name, own in zip(self.graph.nodes, there.tolist(), strict=True) if own]

    def edges(self) -> list[str]:
        """Names of the reachable edges, in graph order."""
        return [self.graph.edge_name(int(edge)) for edge in self.reachable.any(0).nonzero()]

    def to_frame(self) -> pd.DataFrame:
        """The reachable edges, those first that selection takes first; with token roles, a row for each that keeps one.

        Columns: edge, writer, reader; `score`, an effect with its sign and else the weight; `weight`; `role`, if there
        are roles. `EdgeScores` says what a weight is.
        """
        import pandas as pd

        graph, scores = self.graph, self.scores
        place = self.reachable.flatten().nonzero()[:, 0].cpu()
        place = place[scores.order.flatten().cpu()[place].argsort(descending=True, stable=True)]
        edge = place % graph.n_edges
        columns = {
            "edge": [graph.edge_name(number) for number in edge.tolist()],
            "writer": [graph.writers[number] for number in graph.writer_of[edge].tolist()],
            "reader": [graph.readers[number] for number in graph.reader_of[edge].tolist()],
            "score": scores.signed.flatten().cpu()[place].numpy(),
            "weight": scores.weight.flatten().cpu()[place].numpy(),
        }
        if scores.roles:
            columns["role"] = [scores.roles[number] for number in (place // graph.n_edges).tolist()]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        sizes = f"n_edges={self.n_edges}, n_edges_total={self.kept.numel()}, n_edges_reachable={self.n_reachable}"
        return f"Circuit(method={self.scores.method!r}, {sizes})"

    def save(self, folder: Path | str) -> None:
        """Write `circuit.safetensors` (scores, kept, reachable) and `circuit.json` (names); makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        scores = self.scores
        tensors = {"scores": scores.values, "kept": self.kept, "reachable": self.reachable}
        header = {
            "format": FORMAT,
            "graph": self.graph.to_dict(),
            "method": scores.method,
            "roles": list(scores.roles),
            "ranks_by_magnitude": scores.ranks_by_magnitude,
            "kind": scores.kind,
            "unit": scores.unit,
            "threshold": scores.threshold,
            "softness": scores.softness,
            "details": scores.details,
            "n_edges_total": self.kept.numel(),
            "n_edges": self.n_edges,
            "n_edges_reachable": self.n_reachable,
            "sparsity": self.sparsity,
            "provenance": self.provenance,
        }
        save_tensors(folder / "circuit.safetensors", tensors, {"circuitlit": json.dumps(header)})
        write_json(folder / "circuit.json", {**header, "edges": self.edges()})

    @classmethod
    def load(cls, path: Path | str) -> Circuit:
        """Read a circuit from its folder or its safetensors file.

        Raises:
            UserError: the file is missing, damaged or not a circuit.
        """
        file = Path(path) / "circuit.safetensors" if Path(path).is_dir() else Path(path)
        try:
            with safe_open(file, "pt") as opened:
                header = json.loads((opened.metadata() or {})["circuitlit"])
                tensors = {name: opened.get_tensor(name) for name in ("scores", "kept", "reachable")}
            scores = EdgeScores(
                Graph(**header["graph"]),
                tensors["scores"].to(torch.float32),
                header["method"],
                tuple(header["roles"]),
                header["ranks_by_magnitude"],
                header["details"],
                **kind_of(header),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}: not a readable circuit ({error}); name a circuit.safetensors or its run"
            ) from error
        return cls(scores, tensors["kept"], tensors["reachable"], header["provenance"])
