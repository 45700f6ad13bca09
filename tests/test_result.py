"""What a run concludes on held-out pairs: verdicts that could fail, on pairs that cover every sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_batch, tiny_model

from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, random_circuit
from circuitlit.evaluate.found import FAILED, OK, SMOKE, UNMEASURABLE, FoundCircuit
from circuitlit.evaluate.verdict import Bars, verdict
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.tasks.encoded import EncodedPairs, Row

FEW = {"p": 1 / 21, "p_holm": 2 / 21, "n_circuits": 20}


def result_with(**changed: Any) -> FoundCircuit:
    """The parts of a result that a verdict reads."""
    control = {"p": 1 / 41, "p_holm": 2 / 41, "n_circuits": 40}
    made = {"n_pairs": 200, "kl": {"value": 0.2, "low": 0.1, "high": 0.3}, "corrupted": {"kl": {"value": 4.0}}}
    head = {"status": "OK", "task": "t", "model": "m", "method": "x", "ablation": "zero", "seed": 0, "n_edges_total": 9}
    made = {**head, **made, "random": control, "shuffled": control, **changed}
    return FoundCircuit.from_dict({"schema": {"name": "circuit", "version": 3}, **made})


@pytest.mark.parametrize(
    ("changed", "settings", "status", "said"),
    [
        ({}, {}, OK, None),
        ({}, {"max_kl_share": 0.01}, FAILED, "exceeds 0.040"),
        ({"n_pairs": 1}, {}, UNMEASURABLE, "1 test pairs are too few"),
        ({}, {"smoke": True}, SMOKE, "says nothing about the model"),
        ({"shuffled": {"p": 0.3, "p_holm": 0.6, "n_circuits": 40}}, {}, FAILED, "shuffled circuits beyond chance"),
        ({"random": FEW}, {}, UNMEASURABLE, "20 random circuits are too"),
        ({"random": FEW, "shuffled": {"p": 0.9, "p_holm": 0.9, "n_circuits": 20}}, {}, FAILED, "that of shuffled"),
        ({"random": {"n_circuits": 40, "n_alike": 40}}, {}, UNMEASURABLE, "no other circuit has this size"),
        ({"shuffled": {"n_circuits": 40, "n_alike": 23}}, {}, UNMEASURABLE, "23 of 40 shuffled circuits are this one"),
    ],
)
def test_a_verdict_needs_evidence(changed: dict, settings: dict, status: str, said: str | None) -> None:
    found, reason = verdict(result_with(**changed), Bars(**settings))
    assert found == status and (reason is None if said is None else said in str(reason))


def test_bars_that_judge_nothing_are_refused() -> None:
    for settings in ({"controls": 0}, {"controls": -1}, {"max_kl_share": float("nan")}):
        with pytest.raises(UserError, match="take at least one control and a share that is a number"):
            Bars(**settings)


def test_few_pairs_are_enough_where_they_are_all_there_are() -> None:
    assert verdict(result_with(n_pairs=4), Bars(), exhaustive=True)[0] == OK


def test_the_first_pairs_cover_every_sentence() -> None:
    row = Row((1, 2), (3, 4), (5,), 1, 0, -1, (0, 1))
    groups = (0,) * 30 + (1,) * 5 + (2, 3)  # in blocks, as a file may have them
    pairs = EncodedPairs([row] * 37, ("other", "end"), groups)
    order = pairs.spread()
    assert sorted(order) == list(range(37)) and pairs.n_groups == 4
    assert {groups[pair] for pair in order[:4]} == {0, 1, 2, 3}
    assert [groups[pair] for pair in order[4:6]] in ([0, 1], [1, 0]) and pairs.spread(6) == order[:6]


def test_the_first_pairs_run_alone_and_as_among_all() -> None:
    subject = Subject(tiny_model("llama"))
    batches = [tiny_batch(rows=3, seed=seed) for seed in range(3)]
    bed = TestBed.build(MaskedModel(subject), References(subject, "interchange"), batches)
    kept = random_circuit(subject.graph, 20, 0)
    rows: list[int] = []
    original = bed.model.forward
    bed.model.forward = lambda masks, clean, *rest, **more: (
        rows.append(len(clean)) or original(masks, clean, *rest, **more)
    )
    few = bed.run(kept, pairs=4)
    assert rows == [3, 1]
    torch.testing.assert_close(few.kl, bed.run(kept).head(4).kl, atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_are_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = torch.nan
    subject = Subject(model)
    with pytest.raises(UserError, match="logits are not finite on 3 of 3 pairs; load it in a wider dtype"):
        TestBed.build(MaskedModel(subject), References(subject, "interchange"), [tiny_batch()])
