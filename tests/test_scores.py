"""Kinds of scores: log-alphas as mask runs leave them are no quantities, and what lies off a circuit plays no part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_batch, tiny_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitlit.compare import LABELS, Resampled, circuit_difference, node_modes
from circuitlit.compare.effects import node_weights, ranked_nodes
from circuitlit.compare.generality import composites, conflict_index
from circuitlit.compare.layers import changed_layers, circuit_layers
from circuitlit.discover import (
    EdgePruning2024,
    HardConcrete,
    MaskedLoss,
    MaskLearner,
    Schedule,
    SigmoidTopK,
    UniformGradient,
    acdc,
    clean_corrupted,
    eap,
    eap_ig,
    eap_ig_activations,
    exact,
    information_flow,
    initial_log_alpha,
    mask_gradients,
    random_scores,
    relp,
)
from circuitlit.discover.sparse_difference import DifferenceLearner
from circuitlit.errors import UserError
from circuitlit.evaluate import consensus, similarity
from circuitlit.evaluate.overlap import StandIns
from circuitlit.graph import Circuit, EdgeScores, Graph, MaskLayout, export_circuit, load_circuit, top_k
from circuitlit.graph.kinds import kind_of
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence, negative_metric
from circuitlit.report.edges import ranked_edges, ranking_note
from circuitlit.timeline.series import Noise, Point, follow, velocities

GRAPH, COUNT = Graph(8, 6, 2), 400
THRESHOLD = HardConcrete(temperature=0.4).threshold


def gates(values: Tensor) -> EdgeScores:
    return EdgeScores(GRAPH, values, "hard_concrete", kind="gate", threshold=THRESHOLD)


def mask_run(seed: int = 0) -> Circuit:
    """Log-alphas in [-9, 9], of which 400 are above 1: 40 % of those out of m0, but low, and both of a7.h1's at 9."""
    draw = torch.Generator().manual_seed(seed)
    values = -9 + 8 * torch.rand(1, GRAPH.n_edges, generator=draw)
    first = (GRAPH.writer_of == GRAPH.writers.index("m0")).nonzero()[:, 0]
    values[0, first[: 2 * len(first) // 5]] = 1.0 + torch.rand(2 * len(first) // 5, generator=draw)
    values[0, GRAPH.writer_of == GRAPH.writers.index("a7.h1")] = 9.0
    rest = (values[0] < 0).nonzero()[:, 0]
    missing = COUNT - int((values > 0).sum())
    values[0, rest[torch.randperm(len(rest), generator=draw)[:missing]]] = 1 + 8 * torch.rand(missing, generator=draw)
    return Circuit.cut(gates(values), COUNT)


def permuted(circuit: Circuit, where: Tensor, seed: int = 1) -> Circuit:
    """The same log-alphas, shuffled among some edges."""
    places = where[0].nonzero()[:, 0]
    values = circuit.scores.values.clone()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    values[0, places] = values[0, places[order]]
    return Circuit.cut(gates(values), COUNT)


def everything(circuit: Circuit, other: Circuit) -> dict[str, object]:
    """All figures that compare a circuit with another one, or rank its nodes."""
    nodes = node_weights(circuit)
    points = [Point(step, 0.0, one) for step, one in ((1, other), (2, circuit), (4, other))]
    rows = follow(points)
    alike = [row.previous.weighted_jaccard or 0.0 for row in rows if row.previous]
    sides = [Resampled(one.scores, [one.scores] * 10, COUNT) for one in (circuit, other)]
    difference = circuit_difference(sides[0], sides[1])
    node_start = initial_log_alpha(MaskLayout(GRAPH, sites="nodes"), "ranks", circuit.scores, COUNT, 1.0)
    return {
        "ranked": ranked_nodes(circuit),
        "nodes": nodes,
        "conflict": conflict_index(nodes, node_weights(other)),
        "similarity": similarity(circuit, other),
        "shares": circuit.shares.tolist(),
        "layers": circuit_layers(circuit).tolist(),
        "changed": changed_layers(circuit, other).tolist(),
        "composites": {name: kept.tolist() for name, kept in composites(circuit, other, COUNT).items()},
        "rows": rows,
        "shared": StandIns.of(circuit, 39, 0).shared(StandIns.of(other, 39, 1)).to_dict(),
        "velocity": velocities([1, 2, 4], alike, 0.0).tolist(),
        "difference": {label: difference.names(label) for label in LABELS[1:]},
        "distances": [difference.distance, difference.floor, difference.effect],
        "ratio": difference.ratio.nan_to_num(nan=-99).tolist(),
        "strength": sides[0].shares.tolist(),
        "modes": node_modes(sides[0], sides[1], difference),
        "node start": node_start.tolist(),
        "page": [(edge.name, edge.score) for edge in ranked_edges(circuit)],
    }


def test_scores_off_the_circuit_change_nothing() -> None:
    circuit, other = mask_run(), mask_run(seed=3)
    again = permuted(circuit, ~circuit.kept)
    assert torch.equal(again.kept, circuit.kept) and not torch.equal(again.scores.values, circuit.scores.values)
    before, after = everything(circuit, other), everything(again, other)
    assert [name for name in before if before[name] != after[name]] == []
    assert all(value == pytest.approx(1) for value in similarity(circuit, again).values())


def test_a_random_permutation_is_not_alike() -> None:
    """As alike as random circuits of that size, so that the velocity sees it; the raw numbers were .57 alike."""
    circuit = mask_run()
    shuffled = permuted(circuit, torch.ones_like(circuit.kept))
    found = similarity(circuit, shuffled)
    assert found["weighted_jaccard"] < 0.2 and abs(found["corrected_jaccard"]) < 0.1
    rows = follow([Point(1, 0.0, circuit), Point(2, 0.0, shuffled)])
    before = rows[1].previous
    assert before is not None and before.score_distance is not None and before.score_distance > 1.4
    assert Noise.of(type("Spread", (), {"low": 1.0, "n_circuits": 2}), [circuit, shuffled]).distance > 0.8  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [mask_run, lambda: consensus([mask_run(0), mask_run(3)], 0.5)])
def test_composites_of_a_circuit_with_itself_are_itself(made) -> None:
    circuit = made()
    for kept in composites(circuit, circuit, circuit.n_edges).values():
        assert torch.equal(kept, circuit.kept)


def test_composites_hold_edges_of_the_two_circuits_alone() -> None:
    one, two = mask_run(), mask_run(seed=3)
    sets = composites(one, two, COUNT)
    shared = one.kept & two.kept
    assert int(sets["union"].sum()) == int(sets["intersection"].sum()) == COUNT
    assert not bool((sets["union"] & ~(one.kept | two.kept)).any())
    assert not bool((sets["intersection"] & ~(one.kept | two.kept)).any())
    assert not bool((shared & ~sets["intersection"]).any()) and 0 < int(shared.sum()) < COUNT


def test_nodes_with_many_open_edges_come_first() -> None:
    """m0 has most of the circuit's edges, with middling log-alphas; a7.h1 has few edges, with the largest."""
    circuit = mask_run()
    edges = {
        node: int(circuit.reachable[0, GRAPH.writer_of == place].sum()) for place, node in enumerate(GRAPH.writers)
    }
    assert edges["m0"] == max(edges.values()) > 5 * edges["a7.h1"] > 0
    ranked, weights = ranked_nodes(circuit), node_weights(circuit)
    assert ranked[0] == "m0" and ranked.index("a7.h1") > 3
    for node, weight in weights.items():
        assert 0.8 * edges[node] <= weight <= edges[node]
    sums = torch.zeros(GRAPH.n_writers).index_add_(0, GRAPH.writer_of, circuit.scores.values[0])
    by_sum = [GRAPH.writers[place] for place in sums.argsort(descending=True)]
    assert by_sum.index("m0") > 20 and by_sum.index("a7.h1") < 3  # what summing log-alphas says


def parts(sites: str = "edges", objective=kl_divergence) -> tuple[MaskedLoss, References]:
    subject = Subject(tiny_model("gpt2"))
    layout = MaskLayout(subject.graph, sites=sites)  # type: ignore[arg-type]
    return MaskedLoss(MaskedModel(subject, panel=2), layout, objective), References(subject, "interchange")


def attributed(method, objective=kl_divergence, **more) -> EdgeScores:
    loss, references = parts(objective=objective)
    return method(loss, references, [tiny_batch()], **more)


def learned(family, sites: str = "edges", learner=MaskLearner) -> EdgeScores:
    loss, references = parts(sites)
    start = 4 * torch.randn(loss.layout.size, generator=torch.Generator().manual_seed(0))
    return learner(loss, references, start, 0.9, Schedule(10, 0.1), family).scores()


def differing() -> EdgeScores:
    loss, references = parts()
    start = 4 * torch.randn(loss.layout.size, generator=torch.Generator().manual_seed(0))
    learner = DifferenceLearner([loss, loss], [references, references], start, 0.99, Schedule(10, 0.1))
    return learner.found([tiny_batch()]).tuned


METHODS = {
    "eap": ("effect", lambda: attributed(eap, negative_metric)),
    "eap_ig": ("effect", lambda: attributed(eap_ig)),
    "eap_ig_activations": ("effect", lambda: attributed(eap_ig_activations)),
    "clean_corrupted": ("effect", lambda: attributed(clean_corrupted)),
    "relp": ("effect", lambda: attributed(relp, negative_metric)),
    "mask_gradients": ("effect", lambda: attributed(mask_gradients)),
    "exact": ("effect", lambda: attributed(exact, negative_metric)),
    "acdc": ("effect", lambda: attributed(acdc, negative_metric, threshold=1e-3)),
    "information_flow": ("share", lambda: attributed(information_flow)),
    "random_scores": ("share", lambda: attributed(random_scores)),
    "hard_concrete": ("gate", lambda: learned(HardConcrete(0.4))),
    "sigmoid_topk": ("gate", lambda: learned(SigmoidTopK())),
    "uniform_gradient": ("gate", lambda: learned(UniformGradient())),
    "nodes": ("gate", lambda: learned(HardConcrete(0.4), "nodes")),
    "edge_pruning_2024": ("share", lambda: learned(HardConcrete(), "both", EdgePruning2024)),
    "sparse_difference": ("gate", differing),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_its_scores_are(name: str, tmp_path: Path) -> None:
    kind, made = METHODS[name]
    scores = made()
    assert scores.kind == kind and bool(scores.unit) == (kind != "gate")
    assert float(scores.weight.min()) >= 0 and bool((scores.signed.abs() >= scores.weight).all())
    ranked = scores.order.flatten().argsort(descending=True, stable=True)
    assert bool((scores.weight.flatten()[ranked].diff() <= 0).all())  # what ranks higher never weighs less
    before = scores.values.abs() if scores.ranks_by_magnitude else scores.values
    for count in (1, 10, 100):
        circuit = Circuit.cut(scores, count)
        assert torch.equal(circuit.kept, top_k(before, count))
        assert not bool(circuit.weight[~circuit.kept].any())
    circuit.save(tmp_path)
    again = Circuit.load(tmp_path).scores
    assert (again.kind, again.unit, again.meaning) == (scores.kind, scores.unit, scores.meaning)
    torch.testing.assert_close(again.weight, scores.weight, rtol=1e-6, atol=1e-9)
    if name == "nodes":
        return  # of format 1 the method alone is known: gates on nodes look like those on edges
    old = {"method": scores.method, "ranks_by_magnitude": scores.ranks_by_magnitude}
    assert kind_of(old)["kind"] == kind


def test_what_each_kind_weighs_by_hand() -> None:
    graph = Graph(1, 1, 1)
    row = torch.linspace(-3, 4, graph.n_edges)[None]
    effect = EdgeScores(graph, row, "by hand", (), True)
    assert torch.equal(effect.weight, row.abs().double()) and torch.equal(effect.signed, row.double())
    one_sided = EdgeScores(graph, row, "by hand")
    assert torch.equal(one_sided.weight, row.clamp(min=0).double()) and torch.equal(one_sided.signed, row.double())
    family = HardConcrete(0.4)
    gate = family.scores(MaskLayout(graph), row, "by hand", {})
    noise = torch.logit(torch.linspace(5e-6, 1 - 5e-6, 100_001))
    for edge in (0, graph.n_edges // 2, graph.n_edges - 1):
        opened = float((family.sample(row[0, edge], noise) > 0).float().mean())
        assert float(gate.weight[0, edge]) == pytest.approx(opened, abs=1e-4)
    assert torch.equal(gate.signed, gate.weight)
    share = EdgeScores(graph, row.abs() / 4, "by hand", kind="share")
    assert torch.equal(share.weight, share.order.double())
    with pytest.raises(ValueError, match="cannot be negative"):
        EdgeScores(graph, row, "by hand", kind="share")
    with pytest.raises(ValueError, match="kind=log-alpha"):
        EdgeScores(graph, row, "by hand", kind="log-alpha")  # type: ignore[arg-type]


def test_gates_have_no_sign_to_change() -> None:
    """A gate may go from log-alpha -.5 to 5 inside of a circuit; an effect may not."""
    kept = mask_run()
    moved = kept.scores.values.clone()
    edge = int((kept.kept[0] & (moved[0] > 5)).nonzero()[0])
    moved[0, edge] = 0.5
    low = Resampled(gates(moved - 1), [gates(moved - 1)] * 10, COUNT)
    high = Resampled(kept.scores, [kept.scores] * 10, COUNT)
    assert circuit_difference(low, high).counts["modified"] == 0
    assert "modified" not in node_modes(low, high, circuit_difference(low, high)).values()


def header_of(folder: Path) -> dict:
    with safe_open(folder / "circuit.safetensors", "pt") as opened:
        return json.loads(opened.metadata()["circuitlit"])


def rewritten(folder: Path, header: dict) -> None:
    with safe_open(folder / "circuit.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in ("scores", "kept", "reachable")}
    save_file(tensors, folder / "circuit.safetensors", {"circuitlit": json.dumps(header)})


def old_format(folder: Path) -> None:
    """Rewrite a circuit's file as format 1 had it."""
    new = ("kind", "unit", "threshold", "softness")
    rewritten(folder, {key: value for key, value in header_of(folder).items() if key not in new} | {"format": 1})


def test_files_keep_the_kind_and_old_ones_load(tmp_path: Path) -> None:
    circuit = mask_run()
    circuit.save(tmp_path)
    assert header_of(tmp_path)["kind"] == json.loads((tmp_path / "circuit.json").read_text())["kind"] == "gate"
    loaded = Circuit.load(tmp_path)
    assert torch.equal(loaded.weight, circuit.weight)
    old_format(tmp_path)
    inferred = Circuit.load(tmp_path)
    assert inferred.scores.kind == "gate" and torch.equal(inferred.weight, circuit.weight)
    effects = Circuit.cut(EdgeScores(GRAPH, circuit.scores.values, "eap", (), True, unit="nats"), COUNT)
    effects.save(tmp_path)
    old_format(tmp_path)
    assert Circuit.load(tmp_path).scores.kind == "effect"
    assert kind_of({"method": "my learner", "ranks_by_magnitude": False})["kind"] == "gate"
    rewritten(tmp_path, header_of(tmp_path) | {"kind": "nonsense"})
    with pytest.raises(UserError, match="not a readable circuit"):
        Circuit.load(tmp_path)


def test_gates_go_out_as_probabilities(tmp_path: Path) -> None:
    """Readers of the file may rank by magnitude, where a log-alpha of -9 would come first."""
    circuit = mask_run()
    export_circuit(circuit, tmp_path / "x.json", "mib_json", 24)
    edges = json.loads((tmp_path / "x.json").read_text())["edges"].values()
    ranked = sorted(edges, key=lambda edge: -abs(edge["score"]))
    assert all(0 < edge["score"] <= 1 for edge in edges)
    assert all(edge["in_graph"] for edge in ranked[: sum(edge["in_graph"] for edge in edges)])
    back = load_circuit(tmp_path / "x.json")
    assert (back.scores.kind, back.scores.meaning) == ("share", "open probability")
    assert torch.equal(back.kept, circuit.kept)
    torch.testing.assert_close(back.weight, circuit.weight, rtol=1e-6, atol=1e-9)


def test_the_page_says_what_the_number_is() -> None:
    circuit = mask_run()
    scores = [edge.score for edge in ranked_edges(circuit)]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 1 and scores[-1] > 0.8
    assert "probability" in ranking_note(circuit.scores) and "log-alpha" not in ranking_note(circuit.scores)
    effects = EdgeScores(GRAPH, circuit.scores.values, "eap", (), True, unit="nats")
    assert "in nats" in ranking_note(effects) and "its size" in ranking_note(effects)
    assert ranking_note(consensus([circuit]).scores) == "Ranked by the number beside them: share of circuits."
