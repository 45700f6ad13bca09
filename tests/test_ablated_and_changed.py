"""A circuit under four ablations and on changed pairs: the ends, changed prompts read by eye, planted shifts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_tokenizers import tokenizer  # noqa: F401
from transformers import PreTrainedTokenizerBase

from circuitlit import (
    Ablation,
    Circuit,
    EdgeScores,
    Pair,
    Pairs,
    UserError,
    Workbench,
    ioi,
    load_subject,
    measure_ablations,
    measure_generalisation,
)
from circuitlit.evaluate.ablations import Ablations
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.generalisation import Generalisation
from circuitlit.tasks.variants import corruptions, encode_some, longer


@pytest.fixture(scope="module")
def bench(local: Path) -> Workbench:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    return prepare_bench(load_subject(local / "model"), Pairs.from_list(rows), 0.5)


def some(bench: Workbench, count: int) -> Circuit:
    graph = bench.subject.graph
    scores = torch.rand(1, graph.n_edges, generator=torch.Generator().manual_seed(0))
    return Circuit.cut(EdgeScores(graph, scores, "random"), count)


def test_ends_of_all_ablations(bench: Workbench, tmp_path: Path) -> None:
    """All edges are the full model whatever stands in; shares are those of the KLs."""
    n_edges = bench.subject.graph.n_edges
    whole = measure_ablations(bench, some(bench, n_edges), steps=2)
    assert [one.kind for one in whole.kinds] == ["interchange", "zero", "mean", "optimal"] and whole.n_pairs == 12
    for one in whole.kinds:
        assert one.kl is not None and one.kl.value == pytest.approx(0, abs=1e-5)
        assert one.faithfulness is not None and one.faithfulness.value == pytest.approx(1, abs=1e-4)
        assert one.exact_match is not None and one.exact_match.value == 1
    half = measure_ablations(bench, some(bench, n_edges // 2), steps=2)
    for one in half.kinds:
        assert one.kl and one.empty_kl and one.share
        assert one.share.value == pytest.approx((one.kl.value or 0) / (one.empty_kl.value or 0))
    least, most = half.ends or (None, None)
    shares = {one.kind: one.share.value for one in half.kinds if one.share}
    assert least and most and least.kind == min(shares, key=shares.__getitem__) and len(set(shares.values())) == 4
    assert most.kind == max(shares, key=shares.__getitem__)
    assert Ablations.load(half.save(tmp_path)) == half and len(half.to_frame()) == 4
    with pytest.raises(UserError, match="are not some of"):
        measure_ablations(bench, some(bench, 5), kinds=["none"])  # type: ignore[list-item]


def test_the_own_ablation_is_that_of_the_workbench(bench: Workbench) -> None:
    """Made anew, the constants are the same."""
    again = replace(bench, references=bench.ablated(Ablation("mean")))
    circuit = some(bench, 20)
    one = measure_ablations(bench, circuit, kinds=["mean"]).kinds
    assert one == measure_ablations(again, circuit, kinds=["mean"]).kinds


def test_ends_of_all_changes(bench: Workbench, tmp_path: Path) -> None:
    """The empty circuit has the share and the ratio 1 wherever, the full model the share 0."""
    graph = bench.subject.graph
    idle = Circuit.cut(some(bench, 1).scores, 1)
    nothing = measure_generalisation(bench, replace(idle, kept=torch.zeros_like(idle.kept)), front="w1 w2 w3")
    assert [axis.name for axis in nothing.axes] == ["sentences", "words", "length", "corruption: another prompt"]
    measured = [axis for axis in nothing.axes if axis.reason is None]
    assert len(measured) == 3 and nothing.axes[1].reason == "not measured: task own has no such pairs"
    for axis in measured:
        assert axis.share and axis.ratio and axis.n_pairs == 12
        assert axis.share.value == pytest.approx(1, abs=1e-5) and axis.ratio.value == pytest.approx(1, abs=1e-5)
    whole = measure_generalisation(bench, some(bench, graph.n_edges), front="w1 w2 w3")
    assert all(axis.share and axis.share.value == pytest.approx(0, abs=1e-5) for axis in whole.axes if not axis.reason)
    half = measure_generalisation(bench, some(bench, graph.n_edges // 2), front="w1 w2 w3")
    for axis in half.axes[2:]:
        assert axis.ratio and axis.ratio.value and axis.ratio.low and axis.ratio.high and axis.share
        assert 0 < axis.ratio.low <= axis.ratio.value <= axis.ratio.high
        assert axis.ratio.value == pytest.approx((axis.share.value or 0) / (half.base.value or 1))
    assert half.worst in half.axes
    assert Generalisation.load(half.save(tmp_path)) == half and len(half.to_frame()) == 4


def test_changed_prompts(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    splits = ioi(tokenizer, 20, 5, 40, seed=0)
    made = corruptions("ioi", splits.test, tokenizer)
    assert set(made) == {"another prompt", "the giver is the receiver", "another giver"}
    names = ("the giver is the receiver", "another giver", "another prompt")
    for pair, same, other, prompt in zip(splits.test, *(made[name] for name in names), strict=True):
        io, giver = pair.answer.strip(), (pair.wrong_answer or "").strip()
        assert same.corrupted == pair.clean[::-1].replace(giver[::-1], io[::-1], 1)[::-1]
        words = prompt.corrupted if prompt else "", other.corrupted
        assert io not in words[0] and words[1].count(io) == 1 and words[1].count(giver) == 1
    kept, encoded = encode_some([*made["another giver"], None], tokenizer, splits.role_names)
    assert len(kept) == len(encoded) == 40
    pair = longer(splits.test[0], "It rained.")
    assert (
        pair.clean == f"It rained. {splits.test[0].clean}"
        and pair.corrupted == f"It rained. {splits.test[0].corrupted}"
    )
    assert {(role, pair.clean[start:end]) for role, start, end in pair.roles} == {
        (role, splits.test[0].clean[start:end]) for role, start, end in splits.test[0].roles
    }
    assert encode_some([Pair("a b", "a b", " c"), None], tokenizer, ("other", "end"))[0] == []


def test_a_change_that_means_by_position_do_not_allow_leaves_the_others(bench: Workbench) -> None:
    """They know no position beyond the longest training prompt."""
    by_position = replace(bench, references=bench.ablated(Ablation("mean", positional=True)))
    found = measure_generalisation(by_position, some(bench, 20), front="w1 w2 w3")
    sentences, words, length = found.axes
    assert sentences.ratio and sentences.ratio.value and words.reason
    assert length.name == "length" and "take one mean for all positions" in (length.reason or "")
