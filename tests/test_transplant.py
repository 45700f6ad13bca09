"""Transplants and doses as identities, controls, corrections and figures of conflict by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model

from circuitlit.compare.capability import capabilities, greedy_order, smallest_prefix
from circuitlit.compare.effects import PairBed, changed_logits, plain_logits, scaled, specificity, without_nodes
from circuitlit.compare.generality import (
    ablation_specificity,
    composites,
    conflict_index,
    conflicting,
    generality,
    shuffled_conflict,
)
from circuitlit.compare.transplant import Transplant, everything
from circuitlit.compare.writes import Writers
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.matched import matched_edges, matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import Statistic, ratio
from circuitlit.evaluate.testing import benjamini_hochberg, holm, monotonicity, paired_p, rank_p, slope
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject, unwrap
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.tasks.pair import Batch

NAMES = ("gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3", "gemma2", "gemma3_text")


def two(name: str) -> tuple[Subject, Subject]:
    return Subject(tiny_model(name)), Subject(tiny_model(name, seed=1))


def same(ours: torch.Tensor, theirs: torch.Tensor, within: float = 0.0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("name", NAMES)
def test_all_nodes_make_the_tuned_model_and_none_the_base(name: str, batch: Batch) -> None:
    base, tuned = two(name)
    move = Transplant(base, tuned)
    ids, at = batch.clean, batch.positions
    before, after = base.logits(ids, at), tuned.logits(ids, at)
    assert float((before - after).abs().max()) > 0.1
    same(move.logits([], ids, at), before)
    same(move.logits(everything(base.graph), ids, at), after, 1e-9)
    with move.weights(everything(base.graph)) as changed:
        same(changed.logits(ids, at), after, 1e-12)
    with move.weights([]) as changed:
        same(changed.logits(ids, at), before)
    same(base.logits(ids, at), before)
    same(tuned.logits(ids, at), after)


@pytest.mark.parametrize("name", NAMES)
def test_dose_one_is_nothing_and_dose_nought_zero_ablation(name: str, batch: Batch) -> None:
    subject = Subject(tiny_model(name))
    writers, nodes = Writers(subject), ["a0.h1", "m1", "a2.h3"]
    bed = PairBed(subject, [batch])
    same(bed.measure(scaled(writers, nodes, 1.0)).metric, bed.full.metric, 1e-6)
    every = changed_logits(writers, batch.clean, nodes, lambda _node, own: own * 1.0)
    same(every, subject.unembed(subject.hidden(batch.clean)), 1e-12)
    zero = TestBed.build(MaskedModel(subject), References(subject, "zero"), [batch])
    cut, none = zero.run(without_nodes(subject.graph, nodes)), bed.measure(scaled(writers, nodes, 0.0))
    same(none.metric, cut.metric, 1e-5)
    same(none.kl, cut.kl, 1e-4)
    assert float((none.metric - bed.full.metric).abs().max()) > 1e-3


def test_an_adapter_is_moved_as_its_product(batch: Batch) -> None:
    base = Subject(tiny_model("llama"))
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    tuned = Subject(unwrap(get_peft_model(tiny_model("llama"), config)))
    move, ids, at = Transplant(base, tuned), batch.clean, batch.positions
    wanted = tuned.logits(ids, at)
    same(move.logits(everything(base.graph), ids, at), wanted, 1e-9)
    with move.weights(everything(base.graph)) as changed:
        same(changed.logits(ids, at), wanted, 1e-9)
    assert any(hasattr(module, "base_layer") for module in tuned.model.modules())
    same(tuned.logits(ids, at), wanted)


def test_keys_and_values_move_only_with_their_whole_group(caplog: pytest.LogCaptureFixture) -> None:
    base, tuned = two("llama")
    move = Transplant(base, tuned)
    half, whole = ["a1.h0"], ["a1.h0", "a1.h1"]
    assert withheld(base.graph, half) == ["a1.kv0"] and withheld(base.graph, whole) == []
    for nodes, moved in ((half, False), (whole, True)):
        with move.weights(nodes) as changed:
            ours, old, new = (s.model.model.layers[1].self_attn for s in (changed, base, tuned))
            same(ours.q_proj.weight[:6], new.q_proj.weight[:6])
            same(ours.q_proj.bias[:6], new.q_proj.bias[:6])
            same(ours.k_proj.weight[:6], (new if moved else old).k_proj.weight[:6])
            same(ours.v_proj.weight[6:], old.v_proj.weight[6:])
            same(ours.o_proj.weight[:, :6], new.o_proj.weight[:, :6])
            same(ours.o_proj.weight[:, 12:], old.o_proj.weight[:, 12:])
    assert "a1.kv0" in caplog.text


def test_what_cannot_be_moved_is_refused() -> None:
    base, tuned = two("gpt2")
    with pytest.raises(UserError, match="one graph"):
        Transplant(base, Subject(tiny_model("gpt2", n_layer=2)))
    with pytest.raises(UserError, match=r"no node 'a9\.h9'"):
        Transplant(base, tuned).logits(["a9.h9"], torch.ones(1, 3, dtype=torch.long), None)


def test_the_set_that_carries_a_gain_lies_in_the_layer_that_was_trained() -> None:
    model, other = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    model.transformer.h[1].load_state_dict(other.transformer.h[1].state_dict())
    base, tuned = Subject(tiny_model("gpt2")), Subject(model)
    move, bed = Transplant(base, tuned), PairBed(base, [tiny_batch(rows=6)])
    after = bed.measure(lambda batch: plain_logits(tuned, batch))

    def moved(nodes: Sequence[str]) -> Outcome:
        with move.weights(nodes) as changed:
            return bed.measure(lambda batch: plain_logits(changed, batch))

    everywhere = everything(base.graph)
    elsewhere = [node for node in everywhere if not node.startswith(("a1.", "m1"))]
    same(moved(elsewhere).metric, bed.full.metric)
    sign = 1.0 if float((after.metric - bed.full.metric).mean()) > 0 else -1.0
    order = greedy_order(bed.full, {node: moved([node]) for node in everywhere}, sign)
    nodes, tried = smallest_prefix(order, bed.full, after, moved, 0.8)
    assert nodes is not None
    carriers = [node for node in nodes if node not in elsewhere]
    assert carriers
    same(moved(carriers).metric, moved(nodes).metric)
    share = tried[len(nodes)]
    assert share is not None and share >= 0.8
    assert all(value is None or value < 0.8 for size, value in tried.items() if size < len(nodes))
    early = [node for node in everywhere if node in ("input", "m0") or node.startswith("a0.")]
    ids, at = bed.batches[0].clean, bed.batches[0].positions
    same(move.logits(early, ids, at), base.logits(ids, at), 1e-9)


def answered(subject: Subject, other: Subject, rows: int = 40) -> Batch:
    """Prompts on which two models say different words; the first one's is right, the other's wrong."""
    batch = tiny_batch(rows=400, answers=1)
    right, wrong = (plain_logits(s, batch)[:, 0].argmax(-1) for s in (subject, other))
    chosen = (right != wrong).nonzero()[:rows, 0]
    assert len(chosen) == rows
    picked = Batch(**{name: value[chosen] for name, value in vars(batch).items()})
    return replace(picked, answer=right[chosen, None], wrong=wrong[chosen])


def test_a_change_that_helps_one_task_and_hurts_another_is_gained_and_degraded() -> None:
    base, model = Subject(tiny_model("gpt2")), tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight.mul_(-3)
    tuned = Subject(model)
    beds = {"new": PairBed(base, [answered(tuned, base)]), "old": PairBed(base, [answered(base, tuned)])}

    def verdicts(one: Subject, other: Subject) -> list[str]:
        outcomes = {
            name: tuple(bed.measure(lambda batch, s=s: plain_logits(s, batch)) for s in (one, other))
            for name, bed in beds.items()
        }
        found = capabilities(outcomes, chance=0.02, min_effect=0.05)  # type: ignore[arg-type]
        return [found[name].verdict for name in beds]

    assert verdicts(base, tuned) == ["gained", "degraded"]
    assert verdicts(tuned, base) == ["degraded", "gained"]
    assert verdicts(base, base) == verdicts(tuned, tuned) == ["unchanged", "unchanged"]


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == benjamini_hochberg([]) == []
    assert paired_p(torch.zeros(5), None) == 1.0 and paired_p(torch.ones(5), None) == 2**-4  # signs alone
    assert paired_p(torch.tensor([1.0, 2.0, 3.0]), None) == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt 3, 2 degrees
    assert rank_p(3.0, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(3 / 5)
    assert slope([0, 1, 2], [1, 3, 5]) == pytest.approx(2) and monotonicity([0, 1, 2], [0, 1, 9]) == pytest.approx(1)
    assert monotonicity([0, 1, 2], [1, 1, 1]) == 0 and monotonicity([0, 1, 2], [3, 2, 1]) == pytest.approx(-1)


def test_specificity_and_generality_by_hand() -> None:
    def fixed(value: float) -> Statistic:
        return ratio(torch.full((4,), value), torch.ones(4), None)

    found = specificity(fixed(0.9), [fixed(0.2), fixed(0.4)])
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6))
    assert generality([[0.8, 0.4], [0.2, 1.0]]) == pytest.approx(0.3 / 0.9)
    assert ablation_specificity([[0.9, 0.3], [0.1, 0.7]]) == pytest.approx(((0.9 - 0.1) + (0.7 - 0.3)) / 2)
    assert generality([[None, 0.4], [0.2, 1.0]]) is None
    assert generality([[-0.1, -0.2], [-0.2, -0.1]]) is None
    graph = Graph(1, 1, 1)
    rest = [0.0] * (graph.n_edges - 4)
    one = Circuit.cut(EdgeScores(graph, torch.tensor([[4.0, 3.0, 0.0, 1.0, *rest]]), "by hand"), 2)
    other = Circuit.cut(EdgeScores(graph, torch.tensor([[0.0, 3.0, 4.0, 1.0, *rest]]), "by hand"), 2)
    sets = composites(one, other, 2)
    assert sets["union"][0, :4].tolist() == [True, False, True, False]
    assert sets["intersection"][0, :4].tolist() == [True, True, False, False]  # the shared edge, and the strongest


def test_conflict_by_hand() -> None:
    importance = {"a0.h0": 2.0, "a0.h1": -2.0, "m0": 0.0, "m1": 4.0}
    assert conflict_index(importance, importance) == pytest.approx(1)
    assert conflict_index(importance, {"m0": 3.0}) == 0
    change = {"a0.h0": 1.0, "m1": 1.0}
    assert conflict_index(importance, change) == pytest.approx(0.25 + 0.5)
    assert conflicting(importance, change, 4) == ["m1", "a0.h0"]
    assert set(shuffled_conflict(importance, change, 50)) == {0.25, 0.75}
    assert conflict_index(importance, {}) == 0


def test_random_sets_match_in_size_kind_and_layer() -> None:
    graph = Graph(6, 4, 4)
    nodes = ["a1.h0", "a1.h2", "a3.h3", "m2"]
    sets = matched_nodes(graph, nodes, 10)
    assert len({tuple(members) for members in sets}) == 10
    for members in sets:
        assert len(set(members)) == 4 and not set(members) & set(nodes)
        assert sorted(node.split(".")[0] for node in members if node[0] == "a") == ["a1", "a1", "a3"]
        assert sum(node[0] == "m" for node in members) == 1
    assert mean_overlap(nodes, sets) == 0
    further = matched_nodes(graph, nodes, 200)  # there are 12 in these very layers
    assert len({tuple(members) for members in further}) == 200 and mean_overlap(nodes, further) == 0
    assert len(matched_nodes(graph, ["m2"], 50)) == 5
    most = [node for node in graph.nodes if node != "a0.h0"]
    assert mean_overlap(most, matched_nodes(graph, most, 5)) > 0.9
    edges = [graph.edge_index("a0.h1->a3.h0<q>"), graph.edge_index("m0->m4")]
    for members in matched_edges(graph, edges, 20):
        names = sorted(map(graph.edge_name, members))
        assert names[0].startswith("a") and names[0].endswith("->a3.h0<q>") and names[1].endswith("->m4")
        assert not set(members) & set(edges)
