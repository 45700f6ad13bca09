"""Reuse of nodes between two models: identities of CKA, cosine, attention divergence and swaps; turnover by chance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model
from test_compare import linear_subject, scored

from circuitlit.compare import circuit_difference, node_modes
from circuitlit.compare.likeness import centred_cosine, cka, js_divergence, likenesses
from circuitlit.compare.reuse import Reuse, ReuseSummary, Swap, effect_left, swap_nodes
from circuitlit.compare.turnover import Circuits, turnover
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.testing import with_holm
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.report.overlap import overlap_rows, overlap_sentence
from circuitlit.report.reuse import reuse_sentence
from circuitlit.tasks import Batch


def with_metric(able: Subject | None = None, rows: int = 24) -> Batch:
    """Pairs with wrong answers; with a model, answers are what it says, so that it can do the task."""
    batch = tiny_batch(rows=rows, answers=1)
    if able is not None:
        batch.answer[:] = able.logits(batch.clean, batch.positions).argmax(-1)
    batch.wrong[:] = (batch.answer[:, 0] + 1) % 50
    return batch


def outcome(metric: torch.Tensor) -> Outcome:
    nothing = torch.zeros_like(metric)
    return Outcome(nothing, metric, torch.full_like(metric, torch.nan), nothing, nothing)


def rotation(d: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]


def test_cka_by_identities() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 6, dtype=torch.float64)
    turned = 3 * x @ rotation(6) + 1
    assert float(cka(x[None], x[None])) == pytest.approx(1, abs=1e-12)
    assert float(cka(x[None], turned[None])) == pytest.approx(1, abs=1e-12)
    assert centred_cosine(x, x + 5) == pytest.approx(1) and centred_cosine(x, -x) == pytest.approx(-1)
    assert abs(centred_cosine(x, turned)) < 0.5  # why both are reported: CKA does not see a rotation
    chance = torch.randn(200, 2, 12, 50, dtype=torch.float64)  # fewer tokens than dimensions: the biased CKA is near 1
    found = [float(cka(one[None], two[None])) for one, two in chance]
    assert abs(sum(found) / len(found)) < 0.03
    assert bool(cka(torch.ones(1, 8, 3), torch.ones(1, 8, 3)).isnan())
    with pytest.raises(UserError, match="too few"):
        cka(torch.ones(1, 3, 3), torch.ones(1, 3, 3))


def test_hsic_is_the_mean_over_distinct_tokens() -> None:
    from itertools import permutations

    from circuitlit.compare.likeness import hsic

    torch.manual_seed(0)
    k, m = ((x + x.T) for x in torch.randn(2, 5, 5, dtype=torch.float64))
    terms = [k[i, j] * m[i, j] + k[i, j] * m[p, q] - 2 * k[i, j] * m[i, p] for i, j, p, q in permutations(range(5), 4)]
    assert float(hsic(k[None], m[None])) == pytest.approx(float(sum(terms)) / len(terms))


def test_divergence_of_attention_by_hand() -> None:
    one, two = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[0.5, 0.5]]])
    found = js_divergence(one, two)[0]
    middle = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - 0.5 * math.log(2)
    assert found.tolist() == pytest.approx([math.log(2), 0.0, middle])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_model_reuses_all_of_itself(name: str) -> None:
    base = Subject(tiny_model(name))
    nodes = base.graph.writers[1:]
    found = swap_nodes(base, Subject(tiny_model(name)), [with_metric(base)], nodes)
    assert found.effect.value is not None and found.effect.value > 1
    for node in found.nodes:
        assert node.cka == pytest.approx(1) and node.cosine == pytest.approx(1)
        assert node.alike and (node.attention is None or node.attention < 1e-9)
        assert node.swap is not None and node.verdict == "same"
        assert node.swap.forward.value == node.swap.backward.value == pytest.approx(1, abs=1e-9)
    assert sum(node.attention is not None for node in found.nodes) == 12


def test_another_random_model_is_no_more_alike_than_mismatched_heads() -> None:
    base, other = Subject(tiny_model("gpt2")), Subject(tiny_model("gpt2", seed=5))
    batch = with_metric()
    batch.clean[:] = torch.randint(1, 50, batch.clean.shape, generator=torch.Generator().manual_seed(3))
    found = [node for node in likenesses(base, other, [batch]).values() if node.attention is not None]
    assert sum(bool(node.alike) for node in found) <= 3  # of 12; one in twenty expected
    mine = likenesses(base, Subject(tiny_model("gpt2")), [batch]).values()
    assert all(node.alike for node in mine)


def test_a_changed_head_cannot_be_swapped_and_an_enhanced_one_fits_back() -> None:
    models = [tiny_model("gpt2"), tiny_model("gpt2")]
    with torch.no_grad():
        models[1].transformer.h[2].attn.c_proj.weight[6:12].mul_(-1)
    base, tuned = map(Subject, models)
    found = swap_nodes(base, tuned, [with_metric(base, 150)], ["a0.h0", "a2.h1"], 0.01)
    found = {node.node: node for node in found.nodes}
    assert found["a0.h0"].verdict == "same"
    turned = found["a2.h1"]
    assert turned.cka == pytest.approx(1) and turned.cosine == pytest.approx(-1)
    assert turned.swap is not None and turned.verdict == "like another"
    assert not (turned.swap.replaces and turned.swap.fits_back)


def swaps_of(pairs: int, harm: float, spread: float, draws: int = 100) -> list[bool | None]:
    """Verdicts on swaps in a base that cannot do the task (metric 0 +- 1), of a task with an effect of 4 +- 1.

    The swap costs `harm` of the effect on average, `spread` logits differently from pair to pair.
    """
    draw, verdicts = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        base, effect, change = (torch.randn(pairs, generator=draw, dtype=torch.float64) for _ in range(3))
        left = effect_left(outcome(base), outcome(base - 4 * harm + spread * change), 4 + effect)
        verdicts.append(Swap.of(left, left, left, 0.05).fits)
    return verdicts


def test_a_swap_is_judged_by_the_tasks_effect_and_only_with_enough_pairs() -> None:
    harmless, harmful = swaps_of(16, 0.0, 0.1), swaps_of(16, 0.5, 0.1)
    assert harmless.count(True) == harmful.count(False) == 100
    barely = swaps_of(16, 0.05, 0.4)  # right on the margin
    assert barely.count(None) >= 90
    assert swaps_of(1, 0.5, 0.1) == swaps_of(1, 0.0, 0.1) == [None] * 100
    assert swaps_of(2, 0.1, 0.4).count(False) <= 5
    cannot = torch.randn(16, generator=torch.Generator().manual_seed(1))
    assert effect_left(outcome(cannot), outcome(cannot), cannot - cannot.mean()).value is None


def test_swaps_where_only_the_tuned_model_does_the_task() -> None:
    base, model = Subject(tiny_model("gpt2")), tiny_model("gpt2")
    batch = with_metric()
    swapped = torch.arange(len(batch)) % 2 == 0  # the base prefers neither side
    batch.answer[swapped, 0], batch.wrong[swapped] = batch.wrong[swapped], batch.answer[swapped, 0]
    learnt = list(model.transformer.h[2].mlp.parameters())
    optimizer = torch.optim.Adam(learnt, lr=0.02)
    for _ in range(60):
        logits = model(batch.clean).logits[torch.arange(len(batch)), batch.positions[:, 0]]
        torch.nn.functional.cross_entropy(logits, batch.answer[:, 0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.mul_(1.01)  # heads hardly change
    tuned = Subject(model)
    heads = [name for name in base.graph.nodes if name[0] == "a"]
    found = swap_nodes(base, tuned, [batch], [*heads, "m2"])
    assert found.able == "tuned" and (found.effect.value or 0) > 3
    nodes = {node.node: node for node in found.nodes}
    verdicts = [nodes[head].verdict for head in heads]
    assert set(verdicts) <= {"same", "uncertain"} and verdicts.count("same") >= 10, verdicts
    assert "effect in the tuned model" in reuse_sentence(found)
    nothing = Reuse(able="base", effect=Estimate(0.1, -0.2, 0.3), summary=ReuseSummary.of([]), nodes=[])
    assert "Neither model clearly does the task" in reuse_sentence(nothing)
    learner = nodes["m2"].swap
    assert learner is not None and learner.replaces is False and learner.telling
    assert nodes["m2"].verdict == "changed" or nodes["m2"].verdict == "like another"


def test_an_undecided_swap_makes_edges_and_node_uncertain() -> None:
    base, tuned = (scored(one, one.graph.n_edges) for one in map(linear_subject, (1.0, 3.0)))
    difference = circuit_difference(base, tuned, fits_back={"a0.h1": None})
    out = difference.graph.writer_of == difference.graph.writers.index("a0.h1")
    assert bool(difference.edges("uncertain")[out].all())
    assert node_modes(base, tuned, difference, fits_back={"a0.h1": None})["a0.h1"] == "uncertain"
    assert node_modes(base, tuned, difference, replaces={"a0.h1": None})["a0.h1"] == "enhanced"
    assert node_modes(base, base, difference, replaces={"a0.h2": None})["a0.h2"] == "uncertain"


def test_a_failed_swap_makes_edges_and_node_modified() -> None:
    base, tuned = (scored(one, one.graph.n_edges) for one in map(linear_subject, (1.0, 3.0)))
    difference = circuit_difference(base, tuned, fits_back={"a0.h1": False})
    graph = difference.graph
    out = graph.writer_of == graph.writers.index("a0.h1")
    assert torch.equal(difference.edges("modified"), out)
    assert node_modes(base, tuned, difference, fits_back={"a0.h1": False})["a0.h1"] == "modified"
    assert node_modes(base, tuned, difference, replaces={"a0.h1": False})["a0.h1"] == "enhanced"
    assert node_modes(base, base, difference, replaces={"a0.h2": False})["a0.h2"] == "modified"


@pytest.mark.long
def test_turnover_of_a_model_with_itself_and_with_another() -> None:
    base = Circuits.of(scored(Subject(tiny_model("gpt2", n_layer=4)), 40), 39)
    same = turnover(base, base)
    assert same.nodes.retained.value == pytest.approx(1) and same.edges.retained.value == pytest.approx(1)
    assert same.nodes.jaccard == same.edges.jaccard == 1 and same.gap.rank_p == 1
    other = turnover(base, Circuits.of(scored(Subject(tiny_model("gpt2", seed=3, n_layer=4)), 40), 39, 1))
    assert other.edges.retained.high is not None and other.edges.retained.high < 1
    assert other.edges.corrected < 1 and 0 < other.nodes.expected < 1


def test_that_nodes_stay_is_only_said_where_the_test_says_so() -> None:
    base = Circuits.of(scored(Subject(tiny_model("gpt2", n_layer=2)), 40), 39)
    result = with_holm(turnover(base, base))
    assert result.gap.p_holm == 1 and "stay while edges change" not in overlap_sentence(result)
    assert "is not supported" in overlap_sentence(result)
    part = replace(result.gap, p_holm=0.001, between=0.5, within=0.2)
    assert "Nodes stay while edges change" in overlap_sentence(replace(result, gap=part))
    moved = replace(part, between=0.2, within=0.5)
    said = overlap_sentence(replace(result, gap=moved))
    assert "says nothing of tuning" in said and "Nodes stay" not in said
    assert "of tuning" not in overlap_sentence(replace(result, gap=replace(moved, within=0.1)))
    rows = overlap_rows(replace(result, nodes=replace(result.nodes, p_holm=0.2)))
    assert rows[0][-1] == rows[2][-1] == "nothing beyond chance"
