"""Areas by hand, completeness and minimality by brute force, the search for the smallest circuit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model

from circuitlit.evaluate import (
    TestBed,
    completeness,
    edge_minimality,
    node_minimality,
    random_circuit,
    size_curve,
    smallest_circuit,
)
from circuitlit.evaluate.curves import SIZES, anchored, cmd, cpr
from circuitlit.evaluate.smallest import smallest_size
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject


@pytest.fixture(scope="module")
def bed() -> TestBed:
    subject = Subject(tiny_model("gpt2"))
    batches = [tiny_batch(rows=3, seed=seed) for seed in range(2)]
    return TestBed.build(MaskedModel(subject), References(subject, "interchange"), batches)


def scores_of(bed: TestBed, seed: int = 0) -> EdgeScores:
    graph = bed.model.graph
    values = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(seed))
    return EdgeScores(graph, values, "test", ranks_by_magnitude=True)


def test_areas_by_hand() -> None:
    f, x = torch.tensor([0.0, 0.5, 1.5]), torch.tensor([0.1, 0.3, 1.0])
    assert float(cpr(f, x)) == pytest.approx(0.2 * 0.25 + 0.7 * 1.0)
    assert float(cmd(f, x)) == pytest.approx(0.2 * 0.75 + 0.7 * 0.5)
    anchors = torch.tensor([0.0, *x.tolist(), 1.0])
    assert anchored(f).tolist() == [0.0, 0.0, 0.5, 1.5, 1.0]
    assert float(cpr(anchored(f), anchors)) == pytest.approx(0.75)
    assert float(cmd(anchored(f), anchors)) == pytest.approx(0.1 + 0.15 + 0.35)


def test_a_random_ranking_has_the_areas_that_mib_reports() -> None:
    """Faithfulness 0 at all sizes but the full graph: only the last trapezoid counts."""
    f = torch.zeros(10, dtype=torch.float64)
    f[-1] = 1
    x = torch.tensor(SIZES, dtype=torch.float64)
    assert float(cpr(f, x)) == pytest.approx(0.25)
    assert float(cmd(f, x)) == pytest.approx(0.749)


def test_curve_is_mibs_formula_on_the_cut_circuits(bed: TestBed) -> None:
    scores = scores_of(bed)
    sizes = (0.05, 0.2, 0.5, 1.0)
    curve = size_curve(bed, scores, sizes)
    top, bottom = bed.full.logit_diff.mean(), bed.corrupted.logit_diff.mean()
    order = scores.values[0].abs().argsort(descending=True)
    total = scores.graph.n_edges
    faithfulness = []
    for size in sizes:
        kept = torch.zeros(1, total, dtype=torch.bool)
        kept[0, order[: int(size * total)]] = True
        faithfulness.append(float((bed.run(kept).logit_diff.mean() - bottom) / (top - bottom)))
    assert [point.faithfulness.value for point in curve.points] == pytest.approx(faithfulness, rel=1e-4)
    areas = [
        sum((sizes[i + 1] - sizes[i]) * (g(faithfulness[i]) + g(faithfulness[i + 1])) / 2 for i in range(3))
        for g in (lambda f: f, lambda f: abs(1 - f))
    ]
    assert (curve.cpr.value, curve.cmd.value) == pytest.approx(tuple(areas), rel=1e-4)
    assert curve.n_edges == tuple(int(size * total) for size in sizes)
    assert curve.points[-1].faithfulness.value == pytest.approx(1, abs=1e-5)
    assert curve.cpr.low is not None and curve.cpr.low <= areas[0] <= (curve.cpr.high or 0)
    signed = size_curve(bed, replace(scores, ranks_by_magnitude=False), sizes, pairs=4)
    assert (signed.ranking, signed.n_pairs) == ("signed", 4) and signed.cpr.value != curve.cpr.value


def test_completeness_by_brute_force(bed: TestBed) -> None:
    circuit = Circuit.cut(scores_of(bed), 60)
    found = completeness(bed, circuit, knockouts=3)
    rest = bed.run(~circuit.reachable)
    top, bottom = bed.full.logit_diff.mean(), bed.corrupted.logit_diff.mean()
    assert found.completeness.value == pytest.approx(float(1 - (rest.logit_diff.mean() - bottom) / (top - bottom)))
    assert found.complement.kl.value == pytest.approx(float(rest.kl.mean()))
    low, high = found.completeness.low, found.completeness.high
    assert low is not None and high is not None and low <= found.completeness.value <= high  # type: ignore[operator]
    assert found.n_knockouts == 3 and found.knockout_gap is not None and found.knockout_gap.value is not None


def test_the_whole_model_is_complete(bed: TestBed) -> None:
    graph = bed.model.graph
    everything = Circuit.cut(EdgeScores(graph, torch.ones(1, graph.n_edges), "all"), graph.n_edges)
    found = completeness(bed, everything, knockouts=4)
    assert found.completeness.value == pytest.approx(1, abs=1e-5)
    assert found.knockout_gap is not None and found.knockout_gap.value == pytest.approx(0, abs=1e-6)


def test_minimality_by_brute_force(bed: TestBed) -> None:
    circuit = Circuit.cut(scores_of(bed), 80)
    graph = circuit.graph
    whole = bed.run(circuit.kept)
    nodes = sorted({int(graph.writer_of[e]) for e in circuit.reachable[0].nonzero()[:, 0]} - {0})
    increases = {}
    for node in nodes:
        kept = circuit.kept.clone()
        for edge in range(graph.n_edges):
            if graph.edge_name(edge).startswith(f"{graph.writers[node]}->"):
                kept[0, edge] = False
        increases[graph.writers[node]] = float((bed.run(kept).kl - whole.kl).mean())
    found = node_minimality(bed, circuit)
    assert (found.n_parts, found.n_candidates) == (len(nodes), len(nodes))
    assert found.kl_increase.value == pytest.approx(sum(increases.values()) / len(nodes))
    assert found.idle_share == sum(increase <= 0 for increase in increases.values()) / len(nodes)
    worst = max(increases, key=lambda name: increases[name])
    assert found.worst[0][0] == worst and found.worst[0][1] == pytest.approx(increases[worst])


def test_edges_that_nothing_reaches_are_no_parts(bed: TestBed) -> None:
    circuit = Circuit.cut(scores_of(bed), 60)
    assert circuit.n_reachable < circuit.n_edges
    found = edge_minimality(bed, circuit, parts=5, pairs=4)
    assert (found.n_parts, found.n_candidates, found.n_pairs) == (5, circuit.n_reachable, 4)
    dead = circuit.kept & ~circuit.reachable
    empty = replace(circuit, kept=dead, reachable=torch.zeros_like(dead))
    assert edge_minimality(bed, empty).kl_increase.value is None


@pytest.mark.parametrize("target,expected", [(0.2, 10), (0.5, 30), (0.95, 90)])
def test_smallest_of_a_steady_curve(target: float, expected: int) -> None:
    steps = {10: 0.2, 30: 0.5, 90: 1.0}
    found = smallest_size(lambda n: max([v for s, v in steps.items() if n >= s], default=0.0), 200, target)
    assert (found.status, found.n_edges) == ("OK", expected)
    assert len(found.tried) < 60


def test_smallest_with_a_bump_and_a_dip() -> None:
    """Passes at 45 to 52 (a bump), fails at 53 to 69 (a dip), passes from 70 on; the doubling lands behind the dip."""

    def f(n: int) -> float:
        return 1.0 if 45 <= n <= 52 or n >= 70 else 0.0

    assert smallest_size(f, 1000, 0.9).n_edges == 45
    found = smallest_size(f, 1000, 0.9)
    looked = dict(found.tried)
    assert looked[45] == 1.0 and looked[44] == 0.0


def test_smallest_fails_with_the_best() -> None:
    found = smallest_size(lambda n: 1 - abs(n - 16) / 100, 40, 1.5)
    assert (found.status, found.n_edges, found.value) == ("FAILED", 16, 1.0)
    missing = smallest_size(lambda n: math.nan, 40, 0.5)
    assert missing.status == "FAILED" and missing.value is None


def test_smallest_asks_for_each_size_once() -> None:
    asked: list[int] = []

    def f(n: int) -> float:
        asked.append(n)
        return n / 500

    assert smallest_size(f, 500, 0.61).n_edges == 305
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("raw", [False, True])
def test_smallest_circuit_of_a_model(bed: TestBed, raw: bool) -> None:
    found, circuit = smallest_circuit(bed, scores_of(bed), 0.9, raw)
    assert found.status == "OK" and circuit.n_edges == found.n_edges
    own, top = bed.run(circuit.kept).logit_diff.mean(), bed.full.logit_diff.mean()
    bottom = 0.0 if raw else bed.corrupted.logit_diff.mean()
    assert float((own - bottom) / (top - bottom)) == pytest.approx(found.value, rel=1e-4)
    assert found.value is not None and found.value >= 0.9


def test_knockouts_are_the_same_for_equal_seeds(bed: TestBed) -> None:
    graph = bed.model.graph
    circuit = Circuit.of(scores_of(bed), random_circuit(graph, 100, 0))
    first, again = (completeness(bed, circuit, knockouts=2, seed=3) for _ in range(2))
    assert first == again
