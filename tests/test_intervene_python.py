"""Interventions and circuits across tasks from Python: called without a configuration, saved and loaded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from test_compare import bench_of

from circuitlit.compare.cross_tasks import Generality, measure_generality
from circuitlit.compare.interventions import Interventions, intervene_on_nodes
from circuitlit.compare.prevention import compare_freezing
from circuitlit.discover import eap, eap_ig
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.finetune import Examples, examples_of_task
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.objective import negative_metric


@pytest.fixture
def benches(local: Path) -> tuple[Workbench, Workbench]:
    """The local model and one of other weights."""
    return bench_of(local), bench_of(local, torch.Generator().manual_seed(0))


def test_nodes_are_intervened_on_from_python(benches: tuple[Workbench, Workbench], tmp_path: Path) -> None:
    bench, other = benches
    circuit = bench.cut(bench.score(Method.of(eap, negative_metric)))
    text = torch.randint(1, 41, (2, 6), generator=torch.Generator().manual_seed(0))
    few = {"candidates": 2, "edges": 2, "steps": (1,), "doses": (0.0, 1.0), "pairs": 4, "control_pairs": 4, "draws": 20}
    nodes = ["m0", "a1.h1"]
    result = intervene_on_nodes(bench, circuit, tuned=other.subject, nodes=nodes, text=text, **few)
    result.save(tmp_path)
    assert Interventions.load(tmp_path) == result
    assert result.chosen == ["m0", "a1.h1"] and result.transfer is not None
    assert set(result.to_frame()["what"]) == {"node", "edge"} and "jsonl" in repr(result)
    refused = (
        ({"doses": (1.0,)}, "doses must hold 0"),
        ({"nodes": ["input"]}, "^nodes must name heads"),
        ({"nodes": ["a1.h1", "a1.h1"]}, "names a1.h1 twice"),  # a head's change would be made twice
        ({"text": text[:1]}, "at least two passages"),  # it would stand in for itself, with a KL of 0
        ({"edges": 0}, "edges and steps must be at least 1"),
        ({"steps": (-1, 1)}, "edges and steps must be at least 1"),
        ({"control_pairs": 0}, "control_pairs at least 2"),
    )
    for wrong, words in refused:
        with pytest.raises(UserError, match=words):
            intervene_on_nodes(bench, circuit, **{"text": text} | few | wrong)


def test_a_set_is_compared_with_random_ones_on_the_same_pairs(benches: tuple[Workbench, Workbench]) -> None:
    """Of all heads the random sets are the set itself: its response to doses is larger on other pairs, not its rank."""
    bench = benches[1]
    circuit = bench.cut(bench.score(Method.of(eap, negative_metric)))
    heads = ["a0.h0", "a0.h1", "a1.h0", "a1.h1"]
    few = {"candidates": 1, "edges": 1, "steps": (1,), "doses": (0.0, 1.0), "pairs": 12, "control_pairs": 8}
    found = intervene_on_nodes(bench, circuit, nodes=heads, draws=20, **few).enhancement
    assert abs(found.slope) > 2 * abs(found.random_slope.value or 0.0)
    assert found.rank_p == 1


def test_circuits_are_measured_across_tasks_from_python(benches: tuple[Workbench, Workbench], tmp_path: Path) -> None:
    bench, other = benches
    assert bench.subject.tokenizer is not None
    methods = {"one": Method.of(eap, negative_metric), "two": Method.of(eap_ig)}
    tasks = {name: (bench, bench.score(method)) for name, method in methods.items()}
    examples = {name: examples_of_task(bench.data.splits, bench.subject.tokenizer) for name in tasks}
    frozen: list[list[str]] = []

    def tune(_base: Subject, _examples: Mapping[str, Examples], _seed: int, nodes: Sequence[str]) -> Subject:
        frozen.append(list(nodes))
        return other.subject

    def prevent(circuits: Mapping[str, Circuit], tune_on: str = "one"):
        return compare_freezing(bench.subject, examples, circuits, tune, tune_on, nodes=1, seeds=(0,))

    result = measure_generality(tasks, other.subject, pairs=4, control_pairs=4, draws=20, revert=1, prevent=prevent)
    result.save(tmp_path)
    assert Generality.load(tmp_path) == result
    assert list(result.to_frame().columns) == ["circuit", "n_edges", "one", "two"]
    assert result.transfer is not None and result.prevention is not None
    assert [len(nodes) for nodes in frozen] == [0, 1, 1]
    for wrong in ({"alpha": 3.0}, {"chance": -1.0}, {"control_pairs": 0}):
        with pytest.raises(UserError, match=r"not a share between 0 and 1|at least 1"):
            measure_generality(tasks, **wrong)
    with pytest.raises(UserError, match="tune_on=three is not among the tasks one, two"):
        prevent({}, "three")
    with pytest.raises(UserError, match="two tasks or more"):
        measure_generality({"one": tasks["one"]})
