"""Circuits in the file formats of MIB and EAP-IG, written and read.

A json file maps every edge's name to its score and whether it is in the circuit; a pt file holds the same as matrices,
one row a writer, one column a reader. These formats know no grouped-query attention: every query head has k and v
readers of its own. The effect of a shared k or v reader is shared out evenly, for those of its query heads add up to
it; other scores are repeated. Read back, they are summed, or taken once. Effects keep their sign and our direction,
which is theirs, too, where they attribute a loss: positive is worth keeping. Gates are written as the probabilities
that they are open, which rank alike by size and by sign, and read back as such: the kind "share".
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.files import whole, write_json
from circuitlit.graph.circuit import Circuit
from circuitlit.graph.kinds import kind_of
from circuitlit.graph.layout import scatter_edges
from circuitlit.graph.scores import EdgeScores
from circuitlit.graph.select import writers_of
from circuitlit.graph.topology import Graph

FORMATS = ("mib_json", "mib_pt", "eap_ig_json")
_OURS = "circuitlit"  # a key that other readers skip


@checks_arguments
def export_circuit(circuit: Circuit, path: Path, format: str, d_model: int) -> None:
    """Write a circuit for MIB or EAP-IG; `mib_json` and `eap_ig_json` are one layout.

    Args:
        circuit: `in_graph` holds the edges asked for; of the nodes, those on a path from the input to the logits.
        path: file to write.
        format: one of `FORMATS`.
        d_model: width of the model's residual stream, which those readers want.

    Raises:
        UserError: the circuit has masks by token role, the format is unknown, or the file has another ending than its
            readers look for, or cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"format={format} is not one of {', '.join(FORMATS)}; choose one")
    suffix = ".pt" if format == "mib_pt" else ".json"
    if path.suffix != suffix:
        raise UserError(f"{path}: {format} is read from files that end in {suffix}; name one like that")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if circuit.scores.roles:
        raise UserError("these formats have one score an edge, this circuit one a token role; find it without roles")
    graph = circuit.graph
    wide, home = _ungrouped(graph)
    scores = circuit.scores.signed[0][home]
    if circuit.scores.kind == "effect":
        scores = scores / _members(home)
    kept = circuit.kept[0][home]
    content = {
        "cfg": {
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": d_model,
        },
        _OURS: {
            "n_kv_heads": graph.n_kv_heads,
            "coupled": graph.coupled,
            "inputs": graph.inputs,
            **({"routers": True} if graph.routers else {}),
            "method": circuit.scores.method,
            "ranks_by_magnitude": circuit.scores.ranks_by_magnitude,
            **_written_kind(circuit.scores),
            "details": circuit.scores.details,
            "provenance": circuit.provenance,
        },
    }
    on_path = writers_of(graph, circuit.reachable)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "mib_pt":
            _write_pt(path, content | _matrices(wide, scores, kept, on_path))
        else:
            write_json(path, content | _names(wide, scores, kept, on_path))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


@checks_arguments
def load_circuit(path: Path | str, graph: Graph | None = None) -> Circuit:
    """Read a circuit from a run's folder, our safetensors, or a json or pt file of MIB or EAP-IG.

    Args:
        path: folder or file.
        graph: of the model that it is for; None takes the file's word, key/value heads ungrouped if it has none.

    Raises:
        UserError: not a readable circuit, or of another graph.
    """
    path = Path(path)
    if path.name == "circuit.json" and (path.parent / "circuit.safetensors").is_file():
        path = path.parent
    circuit = _read(path, graph) if path.suffix in (".json", ".pt") else Circuit.load(path)
    if graph is not None and circuit.graph != graph:
        raise UserError(f"{path}: a circuit of {circuit.graph}, but the model has {graph}; name one of this model")
    return circuit


def _written_kind(scores: EdgeScores) -> dict[str, Any]:
    """The kind of the numbers that go out: of gates it is their weight, a share."""
    if scores.kind == "gate":
        return {"kind": "share", "unit": scores.meaning}
    return {"kind": scores.kind, "unit": scores.unit}


def _ungrouped(graph: Graph) -> tuple[Graph, Int[Tensor, "edge"]]:
    """The graph with k and v readers for each query head, and for each of its edges the edge of ours."""
    wide = replace(graph, n_kv_heads=graph.n_heads)
    group = graph.n_heads // graph.n_kv_heads
    readers = []
    for layer in range(graph.n_layers):
        first = graph.reader_rows(layer).start
        queries = range(first, first + graph.n_heads)
        keys = [queries.stop + head // group for head in range(graph.n_heads)]
        readers += [*queries, *keys, *(key + graph.n_kv_heads for key in keys)]
        readers += range(graph.mlp_row(layer), graph.reader_rows(layer).stop)
    ours = torch.tensor([*readers, graph.n_readers - 1])
    return wide, graph.offsets[ours[wide.reader_of]] + wide.writer_of


def _members(home: Int[Tensor, "edge"]) -> Int[Tensor, "edge"]:
    """For each ungrouped edge, how many of them make up its edge of ours."""
    return torch.bincount(home)[home]


def _names(
    wide: Graph, scores: Float[Tensor, "edge"], kept: Bool[Tensor, "edge"], on_path: Bool[Tensor, "writer"]
) -> dict[str, Any]:
    rows = zip(range(wide.n_edges), scores.tolist(), kept.tolist(), strict=True)
    nodes = zip([*wide.writers, "logits"], [*on_path.tolist(), bool(on_path.any())], strict=True)
    return {
        "nodes": {name: {"in_graph": there} for name, there in nodes},
        "edges": {wide.edge_name(edge): {"score": score, "in_graph": there} for edge, score, there in rows},
    }


def _matrices(
    wide: Graph, scores: Float[Tensor, "edge"], kept: Bool[Tensor, "edge"], on_path: Bool[Tensor, "writer"]
) -> dict[str, Any]:
    return {
        "src_nodes": wide.writers,
        "dst_nodes": wide.readers,
        "edges_scores": scatter_edges(wide, scores[None])[0].T.contiguous(),
        "edges_in_graph": scatter_edges(wide, kept[None].float())[0].T.bool().contiguous(),
        "nodes_in_graph": on_path,
    }


def _write_pt(path: Path, content: dict[str, Any]) -> None:
    with whole(path) as partial, partial.open("wb") as file:  # torch's own opening raises no OSError
        torch.save(content, file)


def _read(path: Path, graph: Graph | None) -> Circuit:
    """A circuit from a file of theirs; one that says nothing of key/value heads takes `graph`'s."""
    try:
        content = _parse(path)
        cfg, ours = content["cfg"], content.get(_OURS, {})
        layers, heads = int(cfg["n_layers"]), int(cfg["n_heads"])
        groups = ours.get("n_kv_heads") or (graph.n_kv_heads if graph and graph.n_heads == heads else heads)
        parallel, coupled, inputs = cfg.get("parallel_attn_mlp"), ours.get("coupled"), ours.get("inputs", 1)
        own = Graph(layers, heads, int(groups), bool(parallel), bool(coupled), int(inputs), bool(ours.get("routers")))
        wide, home = _ungrouped(own)
        scores, there = _from_matrices(wide, content) if "edges_scores" in content else _from_names(wide, content)
        kind: dict[str, Any] = kind_of(ours) if ours else {"kind": "effect"}
        repeated = kind["kind"] != "effect" if "kind" in ours else bool(ours) and not ours["ranks_by_magnitude"]
        values = torch.zeros(own.n_edges, dtype=torch.float64)
        values.index_add_(0, home, scores / _members(home) if repeated else scores)
        method, by_magnitude = str(ours.get("method", path.stem)), ours.get("ranks_by_magnitude", True)
        found = EdgeScores(own, values.float()[None], method, (), by_magnitude, ours.get("details", {}), **kind)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise UserError(f"{path}: not a readable circuit of MIB or EAP-IG ({reason}); export it again") from error
    kept = torch.zeros(own.n_edges, dtype=torch.bool)
    kept[home[there]] = True
    return Circuit.of(found, kept[None], ours.get("provenance", {"file": str(path)}))


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(str(error).splitlines()[0]) from error


def _from_names(wide: Graph, content: dict[str, Any]) -> tuple[Float[Tensor, "edge"], Bool[Tensor, "edge"]]:
    scores = torch.zeros(wide.n_edges, dtype=torch.float64)
    there = torch.zeros(wide.n_edges, dtype=torch.bool)
    for name, facts in content["edges"].items():
        edge, score = wide.edge_index(name), float(facts.get("score", 0))
        if not math.isfinite(score):
            raise ValueError(f"edge {name} has the score {score}")
        scores[edge], there[edge] = score, bool(facts.get("in_graph", False))
    return scores, there


def _from_matrices(wide: Graph, content: dict[str, Any]) -> tuple[Float[Tensor, "edge"], Bool[Tensor, "edge"]]:
    for key, names in (("src_nodes", wide.writers), ("dst_nodes", wide.readers)):
        if list(content[key]) != names:
            raise ValueError(f"{key} are not the nodes of its cfg, in order")
    scores, there = content["edges_scores"].double(), content["edges_in_graph"].bool()
    place = (wide.writer_of, wide.reader_of)
    if not bool(scores[place].isfinite().all()):
        raise ValueError("edges_scores holds a number that is not finite")
    return scores[place], there[place]
