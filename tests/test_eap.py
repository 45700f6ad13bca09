"""Gradient attribution against brute force, node gradients, mask gradients and completeness, in float64."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brute_force import masked_logits, writer_outputs
from cli import call, settings
from conftest import tiny_batch, tiny_model
from torch import Tensor

from circuitlit.discover import (
    MaskedLoss,
    clean_corrupted,
    eap,
    eap_ig,
    eap_ig_activations,
    information_flow,
    random_scores,
    relp,
)
from circuitlit.discover.methods.eap_ig import path_points
from circuitlit.discover.reader_gradients import trace
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores, MaskLayout
from circuitlit.masked import Ablated, MaskedModel, References, mean_writers, run_writers
from circuitlit.model import Subject, record, replace_writers
from circuitlit.model.relevance import relevance_rules
from circuitlit.objective import kl_divergence, negative_metric
from circuitlit.tasks.pair import LACKING, Batch

ARCHITECTURES = ("gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "qwen3")
GEMMA = ("gemma2", "gemma3_text")
METHODS = (eap, eap_ig, clean_corrupted, relp, information_flow)


def surprise(logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Negative log-probability of the answer, mean over its tokens; unlike the package's it stays in float64."""
    per_token = -logits.log_softmax(-1).gather(-1, batch.answer[..., None])[..., 0]
    return (per_token * batch.answer_mask).sum(-1) / batch.answer_mask.sum(-1)


def linear(logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """A loss that is linear in the logits."""
    return -logits.gather(-1, batch.answer[..., None])[..., 0].sum(-1)


def parts(
    name: str, objective=surprise, kind="interchange", roles: tuple[str, ...] = (), model=None
) -> tuple[MaskedLoss, References]:
    subject = Subject(model or tiny_model(name))
    mean = mean_writers(subject, [tiny_batch(seed=9)]) if kind == "mean" else None
    loss = MaskedLoss(MaskedModel(subject, panel=2), MaskLayout(subject.graph, roles), objective)
    return loss, References(subject, kind, mean)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance)


def brute_scores(loss: MaskedLoss, batch: Batch, point: float) -> Tensor:
    """Minus the gradient of dense masks at all ones, with embeddings this near to the clean ones."""
    subject, graph = loss.model.subject, loss.model.graph
    clean, cut = writer_outputs(subject, batch.clean), writer_outputs(subject, batch.corrupted)
    moves = [b - a for a, b in zip(clean, cut, strict=True)]
    dense = torch.ones(graph.n_readers, graph.n_writers, dtype=torch.float64, requires_grad=True)
    logits = masked_logits(subject, batch, dense, clean[0] + (1 - point) * moves[0], moves)
    (grad,) = torch.autograd.grad(surprise(logits, torch.empty(0), batch).mean(), dense)
    return -grad.flatten()[graph.dense_index]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *GEMMA])
def test_input_methods_equal_brute_force_per_head(name: str) -> None:
    loss, references = parts(name)
    batch = tiny_batch(rows=2, length=5)
    brute = [brute_scores(loss, batch, point) for point in (0, 1 / 3, 2 / 3, 1)]
    expected = [
        (eap(loss, references, [batch]), brute[3]),
        (eap_ig(loss, references, [batch], steps=3, rule="left"), torch.stack(brute[:3]).mean(0)),
        (eap_ig(loss, references, [batch], steps=3, rule="right"), torch.stack(brute[1:]).mean(0)),
        (clean_corrupted(loss, references, [batch]), (brute[0] + brute[3]) / 2),
    ]
    for scores, values in expected:
        close(scores.values[0], values)
        assert float(values.abs().max()) > 1e-2


def test_points_of_the_rules() -> None:
    assert path_points(2, "left") == [0.0, 0.5]
    assert path_points(2, "right") == [0.5, 1.0]
    assert path_points(2, "midpoint") == [0.25, 0.75]
    with pytest.raises(UserError, match=r"method\.score\.steps=0"):
        path_points(0, "left")
    with pytest.raises(UserError, match=r"method\.score\.rule=middle"):
        path_points(2, "middle")


@pytest.mark.parametrize("kind", ["interchange", "zero", "mean"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_eap_is_minus_the_mask_gradient_at_all_ones(name: str, kind: str) -> None:
    roles = ("other", "name", "rest")
    loss, references = parts(name, kind=kind, roles=roles)
    batches = [tiny_batch(rows=3), tiny_batch(rows=1, seed=1)]
    masks = torch.ones(loss.layout.size, dtype=torch.float64, requires_grad=True)
    value = sum(loss(masks, batch, references(batch)) * len(batch) / 4 for batch in batches)
    (grad,) = torch.autograd.grad(value, masks)  # type: ignore[arg-type]
    scores = eap(loss, references, batches)
    close(scores.values.flatten(), -grad)
    assert scores.roles == roles and scores.ranks_by_magnitude


def test_eap_predicts_what_a_small_ablation_does() -> None:
    """Finite difference of the loss as one edge's mask leaves 1, for edges of every kind."""
    loss, references = parts("llama")
    batch, graph = tiny_batch(), loss.model.graph
    reference, scores = references(batch), eap(loss, references, [tiny_batch()])
    for edge in ("input->a0.h1<q>", "a0.h2->a1.h1<k>", "m0->a2.h0<v>", "a1.h0->m1", "m2->logits"):
        place, change = graph.edge_index(edge), 1e-5
        ends = []
        for sign in (1, -1):
            masks = torch.ones(loss.layout.size, dtype=torch.float64)
            masks[place] -= sign * change
            ends.append(float(loss(masks, batch, reference)))
        assert (ends[0] - ends[1]) / (2 * change) == pytest.approx(float(scores.values[0, place]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_node_score_is_the_sum_of_its_outgoing_edges(name: str) -> None:
    """Gradients at the writers' own outputs, which no reader's norm or projection takes part in."""
    loss, references = parts(name)
    batch, subject, graph = tiny_batch(), loss.model.subject, loss.model.graph
    anchor = subject.embed(batch.clean).detach().requires_grad_()
    with replace_writers(subject, anchor), record(subject) as run:
        value = surprise(subject.logits(batch.clean, batch.positions), torch.empty(0), batch).mean()
    grads = torch.autograd.grad(value, [anchor, *run.heads, *run.mlps])
    cut = references(batch).ablated
    expected = [((cut.embed - anchor) * grads[0]).sum()[None]]
    for layer in range(graph.n_layers):
        heads = (cut.heads[:, layer] - run.heads[layer]) * grads[1 + layer]
        mlp = (cut.mlps[:, layer] - run.mlps[layer]) * grads[1 + graph.n_layers + layer]
        expected += [heads.unflatten(-1, (graph.n_heads, -1)).sum((0, 1, 3)), mlp.sum()[None]]
    edges = eap(loss, references, [batch]).values[0]
    nodes = torch.zeros(graph.n_writers, dtype=edges.dtype).index_add(0, graph.writer_of, edges)
    close(nodes, torch.cat(expected).detach())
    mlps = [graph.writers.index(f"m{layer}") for layer in range(graph.n_layers)]
    assert float(nodes[mlps].abs().min()) > 1e-3


def out_of(scores: EdgeScores, *writers: str) -> float:
    graph = scores.graph
    wanted = torch.tensor([graph.writers.index(name) for name in writers])
    return float(scores.values[0, torch.isin(graph.writer_of, wanted)].sum())


@pytest.mark.parametrize("kind", ["interchange", "zero", "mean"])
def test_integrated_inputs_are_complete(kind: str) -> None:
    loss, references = parts("gpt2", kind=kind)
    batch, subject = tiny_batch(), loss.model.subject
    reference = references(batch)
    with replace_writers(subject, reference.ablated.embed):
        ablated = surprise(subject.logits(batch.clean, batch.positions), reference.teacher, batch).mean()
    clean = surprise(subject.logits(batch.clean, batch.positions), reference.teacher, batch).mean()
    if kind == "interchange":
        corrupted = subject.logits(batch.corrupted, batch.positions)
        close(ablated, surprise(corrupted, reference.teacher, batch).mean())
    scores = eap_ig(loss, references, [batch], steps=100)
    assert abs(float(ablated - clean)) > 0.01
    assert out_of(scores, "input") == pytest.approx(float(ablated - clean), rel=0.01)


@pytest.mark.parametrize("kind", ["interchange", "mean"])
def test_integrated_activations_are_complete_group_by_group(kind: str) -> None:
    loss, references = parts("gpt2", kind=kind)
    batch, subject = tiny_batch(rows=2, length=5), loss.model.subject
    reference = references(batch)
    cut = reference.ablated
    scores = eap_ig_activations(loss, references, [batch], steps=24, own_paths=True)

    def value(**replaced) -> Tensor:
        with replace_writers(subject, **replaced):
            return surprise(subject.logits(batch.clean, batch.positions), reference.teacher, batch).mean()

    heads = [f"a1.h{head}" for head in range(4)]
    assert out_of(scores, "input") == pytest.approx(float(value(embed=cut.embed) - value()), rel=0.02)
    assert out_of(scores, *heads) == pytest.approx(float(value(heads={1: cut.heads[:, 1]}) - value()), rel=0.02)
    assert out_of(scores, "m0") == pytest.approx(float(value(mlps={0: cut.mlps[:, 0]}) - value()), rel=0.02)


def test_all_paths_are_the_mean_over_groups() -> None:
    """Gradients from the group's own inputs too: each path alone, by hand."""
    loss, references = parts("gpt2")
    batch = tiny_batch(rows=2, length=5)
    reference, subject = references(batch), loss.model.subject
    clean, cut = run_writers(subject, batch.clean), reference.ablated
    half = Ablated(*((a + b) / 2 for a, b in zip(vars(clean).values(), vars(cut).values(), strict=True)))
    sets = [{"embed": half.embed}]
    for layer in range(3):
        sets += [{"heads": {layer: half.heads[:, layer]}}, {"mlps": {layer: half.mlps[:, layer]}}]  # type: ignore
    traced = [trace(loss, batch, reference.teacher, **replaced) for replaced in sets]  # type: ignore[arg-type]
    mean = torch.stack([t.gradients for t in traced]).mean(0)
    into_own = loss.model.graph.readers.index("m2")
    assert float(traced[-1].gradients[into_own].abs().max()) > 1e-4
    outputs, moved = writer_outputs(subject, batch.clean), writer_outputs(subject, batch.corrupted)
    graph = loss.model.graph
    moves = torch.stack([b - a for a, b in zip(outputs, moved, strict=True)]).flatten(1, 2)
    expected = torch.einsum("rtd,wtd->rw", mean, moves).flatten()[graph.dense_index] / len(batch)
    close(eap_ig_activations(loss, references, [batch], steps=1).values[0], expected)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma3_text"])
def test_relevance_keeps_the_forward_and_is_conserved(name: str) -> None:
    """Without biases and positions, a linear loss is the sum of its inputs' relevance."""
    model = tiny_model(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or "wpe" in key:
                parameter.zero_()
    for module in model.modules():
        for eps in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, eps, None), float):
                setattr(module, eps, 1e-20)
    loss, references = parts(name, linear, "zero", model=model)
    batch, subject = tiny_batch(), loss.model.subject
    stock = subject.logits(batch.clean, batch.positions)
    with relevance_rules(subject, constant_patterns=True):
        close(subject.logits(batch.clean, batch.positions), stock)
    close(subject.logits(batch.clean, batch.positions), stock, 0)
    scores = relp(loss, references, [batch], constant_patterns=True)
    value = float(linear(stock, stock, batch).mean())
    assert abs(value) > 1e-2
    assert out_of(scores, "input") == pytest.approx(-value, rel=1e-6)
    readers = scores.graph.readers
    into_patterns = torch.tensor([readers[r].endswith(("<q>", "<k>")) for r in scores.graph.reader_of])
    assert not scores.values[0, into_patterns].any()
    assert relp(loss, references, [batch]).values[0, into_patterns].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_relevance_keeps_a_perturbed_models_logits(name: str) -> None:
    subject, batch = Subject(tiny_model(name)), tiny_batch()
    stock = subject.logits(batch.clean, batch.positions)
    with pytest.raises(RuntimeError, match="on purpose"), relevance_rules(subject, constant_patterns=False):
        close(subject.logits(batch.clean, batch.positions), stock)
        raise RuntimeError("on purpose")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_information_flow_by_hand() -> None:
    """Proximities written out for one reader; shares of one reader add up to 1."""
    loss, references = parts("gpt_neox")
    batch, graph = tiny_batch(rows=2, length=5), loss.model.graph
    scores = information_flow(loss, references, [batch]).values[0]
    sums = torch.zeros(graph.n_readers, dtype=scores.dtype).index_add(0, graph.reader_of, scores)
    close(sums, torch.ones(graph.n_readers))
    outputs = writer_outputs(loss.model.subject, batch.clean)
    before = graph.writers_before(1)
    seen = torch.stack(outputs[:before]).sum(0)
    seen = seen + loss.model.subject.model.gpt_neox.layers[0].attention.dense.bias  # of the stream, but of no writer
    near = torch.stack([(seen.abs().sum(-1) - (seen - z).abs().sum(-1)).clamp(min=0) for z in outputs[:before]])
    expected = (near / near.sum(0)).mean((1, 2))
    for reader in ("a1.h0<q>", "a1.h3<v>", "m1"):
        row = graph.readers.index(reader)
        close(scores[int(graph.offsets[row]) : int(graph.offsets[row]) + before], expected)


def padded(batch: Batch, more: int) -> Batch:
    grown = {"clean": batch.clean, "corrupted": batch.corrupted, "roles": batch.roles}
    extra = torch.full((len(batch), more), 7)
    return Batch(**{**vars(batch), **{name: torch.cat([ids, extra], 1) for name, ids in grown.items()}})


def rows(batch: Batch, index: list[int]) -> Batch:
    return Batch(**{name: value[index] for name, value in vars(batch).items()})


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_batches_order_and_padding_change_nothing(method) -> None:
    loss, references = parts("qwen3")
    batch = tiny_batch(rows=5)
    whole = method(loss, references, [batch]).values
    apart = method(loss, references, [rows(batch, [4, 1, 0]), rows(batch, [3, 2])]).values
    close(apart, whole)
    close(method(loss, references, [padded(batch, 3)]).values, whole)
    with pytest.raises(ValueError, match="at least one batch"):
        method(loss, references, [])


def test_random_scores_depend_on_their_seed_alone() -> None:
    loss, references = parts("gpt2")
    one, same, other = (random_scores(loss, references, [], seed=seed).values for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.min()) >= 0 and float(one.max()) < 1


def test_a_norm_behind_the_attention_is_refused_where_it_is_not_seen() -> None:
    loss, references = parts("gemma2")
    with pytest.raises(UserError, match="behind the attention"):
        eap_ig_activations(loss, references, [tiny_batch()])


@pytest.mark.parametrize("method", [eap, relp])
def test_objectives_without_gradient_at_the_clean_run_are_refused(method) -> None:
    loss, references = parts("gpt2", kl_divergence)
    with pytest.raises(UserError, match=r"kl_divergence has none; leave method\.objective"):
        method(loss, references, [tiny_batch()])
    assert float(eap_ig(loss, references, [tiny_batch()]).values.abs().max()) > 1e-2


def test_pairs_without_a_wrong_answer_are_named() -> None:
    loss, references = parts("gpt2", negative_metric)
    batch = tiny_batch()
    batch.wrong[1] = LACKING
    with pytest.raises(UserError, match="negative_metric is not finite on some pairs"):
        eap(loss, references, [batch])


def digest() -> str:
    """Bytes of the EAP and information-flow scores of a tiny model, for the test below."""
    loss, references = parts("gpt2")
    made = [method(loss, references, [tiny_batch()]).values.numpy().tobytes() for method in (eap, information_flow)]
    return hashlib.sha256(b"".join(made)).hexdigest()


@pytest.mark.slow
def test_hash_seed_changes_nothing() -> None:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONHASHSEED": "3", "PYTHONPATH": os.pathsep.join([here, str(Path(here).parent)])}
    command = [sys.executable, "-c", "import test_eap; print(test_eap.digest())"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == digest()


@pytest.mark.parametrize(
    "name",
    ["eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "relp", "information_flow", "random_scores"],
)
def test_every_method_from_the_command_line(name: str, local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, f"method={name}", "logger=none"), verb="attribute")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == name
    assert result["n_edges"] > 0 and result["kl"]["value"] is not None
