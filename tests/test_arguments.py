"""Arguments of another kind are refused where they are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

import circuitlit
from circuitlit import (
    Ablation,
    CircuitWatch,
    Graph,
    Method,
    Pairs,
    PairsModule,
    UserError,
    Workbench,
    attribute_circuit,
    eap_ig,
    evaluate_circuit,
    find_circuit,
    jsonl,
    load_subject,
    measure_behaviour,
)
from circuitlit.arguments import checks_arguments
from circuitlit.graph import Circuit, EdgeScores

if TYPE_CHECKING:
    from nowhere import Unknown

ROWS = [{"clean": "one two", "corrupted": "six two", "answer": " a", "wrong_answer": " b"}]
ROOT = Path(__file__).parent.parent


@checks_arguments
def told(
    number: float = 0.5,
    count: int = 1,
    names: Sequence[str] = (),
    tables: Mapping[str, Sequence[int]] | None = None,
    kind: Literal["a", "b"] = "a",
    make: Callable[[int], int] | None = None,
    anything: Any = None,
    unknown: Unknown | None = None,
    path: str | Path | None = None,
    tensor: torch.Tensor | None = None,
) -> str:
    """For these tests."""
    return f"{number} {count}"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"number": 1},
        {"number": np.float32(0.5), "count": np.int64(2)},
        {"number": torch.tensor(0.5), "count": torch.tensor(2)},
        {"number": Fraction(1, 2)},
        {"names": ["a"], "tables": {"a": [1], "b": ()}},
        {"make": len, "anything": object(), "unknown": 3, "path": Path("x"), "tensor": torch.ones(2)},
        {"kind": "b"},
    ],
)
def test_what_fits_is_let_pass(given: dict[str, Any]) -> None:
    assert told(**given) == f"{given.get('number', 0.5)} {given.get('count', 1)}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"number": "p95"}, "told: number is of type str, not float"),
        ({"number": None}, "told: number is of type NoneType, not float"),
        ({"count": 1.5}, "told: count is of type float, not int"),
        ({"names": "abc"}, "told: names is of type str, not Sequence[str]"),
        ({"names": ["a", 1]}, "told: names is of type list[str | int], not Sequence[str]"),
        (
            {"tables": {"a": [1], "b": ["x"]}},
            "told: tables is of type dict[str, list], not Mapping[str, Sequence[int]] | None",
        ),
        ({"kind": "c"}, "told: kind=c is none of a, b"),
        ({"make": 3}, "told: make is of type int, not Callable | None"),
        ({"path": 3}, "told: path is of type int, not str | Path | None"),
        ({"tensor": [1.0]}, "told: tensor is of type list[float], not Tensor | None"),
    ],
)
def test_what_does_not_is_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        told(**given)


def test_missing_and_unknown_arguments_are_told_by_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nmber'"):
        told(nmber=1)  # type: ignore[call-arg]


def test_every_function_of_a_verb_checks() -> None:
    table = (ROOT / "README.md").read_text().split("| verb | what it does |")[1].split("## Read on")[0]
    named = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([a-z_]+)`", row.split("|")[-2] if "|" in row else "")
    }
    functions = [getattr(circuitlit, name) for name in sorted(named)]
    assert len(functions) > 30
    assert [f.__name__ for f in functions if not hasattr(f, "__wrapped__")] == ["list_families"]  # which takes nothing


@pytest.fixture(scope="module")
def bench(local: Path) -> Workbench:
    subject = load_subject(local / "model")
    pairs = jsonl(subject.tokenizer, str(local / "pairs.jsonl"), 0)  # type: ignore[arg-type]
    return Workbench.build(subject, PairsModule(pairs, subject.tokenizer, 2, 0), 0.5)  # type: ignore[arg-type]


def test_what_a_notebook_gets_wrong(bench: Workbench) -> None:
    subject, data, circuit = bench.subject, bench.data, bench.cut(bench.score(Method.of(eap_ig, steps=1)))
    cases: list[tuple[Any, tuple[Any, ...], str]] = [
        (Pairs.from_list, ([("one", "six")],), "Pairs.from_list: rows is of type list[tuple], not Sequence["),
        (find_circuit, (subject, ROWS), "pairs is of type list[dict], not Pairs | PairsModule; give Pairs.from_list"),
        (find_circuit, (subject, data, "p95"), "find_circuit: sparsity is of type str, not float"),
        (attribute_circuit, (subject, data, eap_ig), "method is of type function, not Method; give Method.of"),
        (bench.score, ("eap_ig",), "Workbench.score: method is of type str, not Method"),
        (evaluate_circuit, (bench, "runs/x"), "circuit is of type str, not Circuit; give load_circuit"),
        (evaluate_circuit, (subject, circuit), "bench is of type Subject, not Workbench"),
        (
            measure_behaviour,
            (subject, {"own": data.splits}),
            "tasks is of type dict[str, Pairs], not Mapping[str, PairsModule]",
        ),
        (CircuitWatch, (ROWS,), "CircuitWatch: pairs is of type list[dict], not Pairs | Callable; give Pairs"),
        (load_subject, (3,), "load_subject: model is of type int"),
        (partial(load_subject, device="cuad"), (subject.model,), "device=cuad: "),
    ]
    for function, given, said in cases:
        with pytest.raises(UserError, match=re.escape(said)):
            function(*given)


def test_what_nothing_can_be_made_of_is_refused(bench: Workbench) -> None:
    for settings, said in (
        ({"kind": "Mean"}, "kind=Mean is none of interchange, zero"),
        ({"kind": "optimal", "steps": 0}, "steps=0"),
        ({"kind": "optimal", "lr": float("nan")}, "lr=nan"),
    ):
        with pytest.raises(UserError, match=said):
            Ablation(**settings)
    for count in (0, -1):
        with pytest.raises(UserError, match=f"method eap_ig: max_batches={count} is not at least 1"):
            Method("eap_ig", eap_ig, max_batches=count)
    with pytest.raises(UserError, match="eap_ig ranks edges and has no number to keep of its own; give a sparsity"):
        attribute_circuit(bench.subject, bench.data, Method.of(eap_ig, steps=1), None)


def test_a_circuit_of_another_model_is_refused(bench: Workbench) -> None:
    other = Graph(5, 3, 3)
    with pytest.raises(UserError, match="the circuit is of a model with 5 layers of 3 heads, the workbench's has"):
        evaluate_circuit(bench, Circuit.cut(EdgeScores(other, torch.rand(1, other.n_edges), "own"), 5))
    scores = bench.score(Method.of(eap_ig, steps=1))
    assert evaluate_circuit(bench, bench.cut(scores), curve_pairs=0, knockouts=1, parts=1).n_edges == bench.count
