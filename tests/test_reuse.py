"""Reuse of nodes between two models: identities of CKA, cosine, attention divergence and swaps; turnover by chance."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_batch, tiny_model
from test_compare import linear_subject, scored

from circuitlit.compare import circuit_difference, node_modes
from circuitlit.compare.likeness import centred_cosine, cka, js_divergence, likenesses
from circuitlit.compare.reuse import reuse
from circuitlit.compare.turnover import turnover
from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.tasks import Batch


def with_metric(rows: int = 24) -> Batch:
    batch = tiny_batch(rows=rows, answers=1)
    batch.wrong[:] = (batch.answer[:, 0] + 1) % 50
    return batch


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
    found = reuse(base, Subject(tiny_model(name)), [with_metric()], nodes)
    for node in found.values():
        assert node.likeness.cka == pytest.approx(1) and node.likeness.cosine == pytest.approx(1)
        assert node.likeness.alike and (node.likeness.attention is None or node.likeness.attention < 1e-9)
        assert node.swap is not None and node.verdict == "same"
        assert node.swap.forward.value == node.swap.backward.value == pytest.approx(1, abs=1e-9)
    assert sum(node.likeness.attention is not None for node in found.values()) == 12


def test_another_random_model_is_no_more_alike_than_mismatched_heads() -> None:
    base, other = Subject(tiny_model("gpt2")), Subject(tiny_model("gpt2", seed=5))
    batch = with_metric()
    batch.clean[:] = torch.randint(1, 50, batch.clean.shape, generator=torch.Generator().manual_seed(3))
    found = [node for node in likenesses(base, other, [batch]).values() if node.attention is not None]
    assert sum(bool(node.alike) for node in found) <= 3  # of 12; one in twenty expected
    mine = likenesses(base, Subject(tiny_model("gpt2")), [batch]).values()
    assert all(node.alike for node in mine)


def test_a_changed_head_cannot_be_swapped_and_an_enhanced_one_fits_back() -> None:
    base, model = Subject(tiny_model("gpt2")), tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].attn.c_proj.weight[6:12].mul_(-1)
    batch, tuned = with_metric(), Subject(model)
    found = reuse(base, tuned, [batch], ["a0.h0", "a2.h1"], 0.01)
    assert found["a0.h0"].verdict == "same"
    turned = found["a2.h1"]
    assert turned.likeness.cka == pytest.approx(1) and turned.likeness.cosine == pytest.approx(-1)
    assert turned.swap is not None and turned.verdict == "like another"
    assert not (turned.swap.replaces and turned.swap.fits_back)


def test_a_failed_swap_makes_edges_and_node_modified() -> None:
    base, tuned = (scored(linear_subject(scale), 10**6) for scale in (1.0, 3.0))
    difference = circuit_difference(base, tuned, altered=["a0.h1"])
    graph = difference.graph
    out = graph.writer_of == graph.writers.index("a0.h1")
    assert torch.equal(difference.edges("modified"), out)
    assert node_modes(base, tuned, difference, altered=["a0.h1"])["a0.h1"] == "modified"
    assert node_modes(base, tuned, difference, irreplaceable=["a0.h1"])["a0.h1"] == "enhanced"
    assert node_modes(base, base, difference, irreplaceable=["a0.h2"])["a0.h2"] == "modified"


def test_turnover_of_a_model_with_itself_and_with_another() -> None:
    base = scored(Subject(tiny_model("gpt2", n_layer=2)), 40)
    same = turnover(base, base)
    for part in (same.nodes, same.edges):
        assert part.jaccard == part.corrected == 1 and part.kept.value == pytest.approx(1)
    assert same.advantage.value == pytest.approx(0) and same.verdict == "nodes and edges change alike"
    other = turnover(base, scored(Subject(tiny_model("gpt2", seed=3, n_layer=2)), 40))
    assert other.edges.kept.high is not None and other.edges.kept.high < 1
    assert other.edges.corrected < same.edges.corrected and 0 < other.nodes.chance < 1
