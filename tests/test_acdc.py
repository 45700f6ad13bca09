"""Exact patching and ACDC against one edge at a time, and the run that they hold open."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from brute_force import masked_logits
from cli import call, failure, settings
from conftest import covering, tiny_batch, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.discover import MaskedLoss, acdc, exact, mask_gradients
from circuitlit.discover.held_loss import HeldLoss
from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout, top_k
from circuitlit.masked import MaskedModel, References, ablated_run
from circuitlit.masked.resume import HeldRun
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence
from circuitlit.tasks.pair import Batch

SMALL = {
    "gpt2": {"n_layer": 2, "n_head": 2},
    "gpt_neox": {"num_hidden_layers": 2, "num_attention_heads": 2},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gemma2": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
}


def parts(name: str) -> tuple[Subject, MaskedLoss, References]:
    subject = Subject(tiny_model(name, **SMALL.get(name, {})))
    return (
        subject,
        MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence),
        References(subject, "interchange"),
    )


@torch.no_grad()
def brute_loss(subject: Subject, references: References, batch: Batch, flat: Tensor) -> float:
    """The mean objective by the textbook model."""
    logits = masked_logits(subject, batch, MaskLayout(subject.graph).dense(flat)[0])
    return float(kl_divergence(logits, references(batch).teacher, batch).double().mean())


def brute_acdc(subject: Subject, references: References, batch: Batch, threshold: float) -> tuple[Tensor, int]:
    """ACDC one edge at a time, and how many edges were dropped untried."""
    graph = subject.graph
    masks = torch.ones(graph.n_edges, dtype=torch.float64)
    current, untried = brute_loss(subject, references, batch, masks), 0
    for reader, writer in itertools.product(reversed(range(graph.n_readers)), reversed(range(graph.n_writers))):
        if writer >= int(graph.visible[reader]):
            continue
        fed = torch.tensor(list(graph.writers_of_reader[reader]), dtype=torch.long)
        edge = int(graph.offsets[reader]) + writer
        masks[edge] = 0
        if len(fed) and not bool(masks[torch.isin(graph.writer_of, fed)].any()):
            untried += 1
            continue
        value = brute_loss(subject, references, batch, masks)
        if value - current < threshold:
            current = value
        else:
            masks[edge] = 1
    return masks.bool(), untried


def test_held_run_follows_any_change(subject: Subject, batch: Batch) -> None:
    """Readers in any order, rows of any masks, after many changes: always what the masked model gives."""
    model, graph = MaskedModel(subject), subject.graph
    ablated = ablated_run(subject, batch, "interchange")
    held = HeldRun(model, batch.clean, ablated, batch.positions)
    generator = torch.Generator().manual_seed(0)

    def masked(masks: Tensor) -> Tensor:
        with torch.no_grad():
            return model(masks[None], batch.clean, ablated, batch.positions)

    torch.testing.assert_close(held.logits()[0], masked(held.masks), rtol=1e-10, atol=1e-10)
    readers = [*torch.randperm(graph.n_readers, generator=generator)[:8].tolist(), graph.n_readers - 1, 0]
    for reader in readers:
        rows = held.masks[reader].repeat(3, 1)
        visible = int(graph.visible[reader])
        rows[:, :visible] = (torch.rand(3, visible, generator=generator) < 0.4).double()
        expected = []
        for row in rows:
            masks = held.masks.clone()
            masks[reader] = row
            expected.append(masked(masks))
        torch.testing.assert_close(held.logits(reader, rows), torch.stack(expected), rtol=1e-10, atol=1e-10)
        held.commit(reader, rows[1])
        torch.testing.assert_close(held.logits()[0], expected[1], rtol=1e-10, atol=1e-10)
    # One that begins with the masks of that end is the same run.
    other = HeldRun(model, batch.clean, ablated, batch.positions, held.masks)
    torch.testing.assert_close(other.logits(), held.logits(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.deltas, held.deltas, rtol=1e-9, atol=1e-9)
    for reader in readers[:2]:
        rows = 1 - held.masks[reader][None]
        rows[:, int(graph.visible[reader]) :] = 0
        torch.testing.assert_close(other.logits(reader, rows), held.logits(reader, rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_tokens_in_which_no_change_can_be_heard_are_left_out(name: str) -> None:
    """Those of beginnings that both prompts share, and behind the last answer; the logits are the same."""
    subject, batch = Subject(tiny_model(name)), tiny_batch()
    batch.corrupted[:, :3], batch.corrupted[0, 3] = batch.clean[:, :3], batch.clean[0, 3]
    batch.positions[1] = torch.tensor([4, 5])
    references, graph = References(subject, "interchange"), subject.graph
    shared, ablated = references(batch).shared, ablated_run(subject, batch, "interchange")
    short, whole = (
        HeldRun(MaskedModel(subject), batch.clean, ablated, batch.positions, None, known) for known in (shared, None)
    )
    assert short.deltas.shape[1] == 3 + 3 + 4 < whole.deltas.shape[1]
    generator = torch.Generator().manual_seed(0)
    for reader in torch.randperm(graph.n_readers, generator=generator)[:9].tolist():
        rows = torch.zeros(2, graph.n_writers, dtype=torch.float64)
        visible = int(graph.visible[reader])
        rows[:, :visible] = (torch.rand(2, visible, generator=generator) < 0.4).double()
        found, expected = (held.logits(reader, rows) for held in (short, whole))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for held in (short, whole):
            held.commit(reader, rows[1])
    torch.testing.assert_close(short.logits(), whole.logits(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_exact_is_brute_force_for_every_edge(name: str) -> None:
    subject, loss, references = parts(name)
    batch = tiny_batch()
    scores = exact(loss, references, [batch], chunk=5)
    full = torch.ones(subject.graph.n_edges, dtype=torch.float64)
    base = brute_loss(subject, references, batch, full)
    for edge in range(subject.graph.n_edges):
        cut = full.clone()
        cut[edge] = 0
        expected = brute_loss(subject, references, batch, cut) - base
        assert float(scores.values[0, edge]) == pytest.approx(expected, rel=1e-4, abs=1e-6), subject.graph.edge_name(
            edge
        )


@pytest.mark.parametrize("name,threshold", covering(SMALL, [0.003, 0.1]))
def test_acdc_keeps_what_one_edge_at_a_time_keeps(name: str, threshold: float) -> None:
    subject, loss, references = parts(name)
    batch = tiny_batch()
    expected, untried = brute_acdc(subject, references, batch, threshold)
    for chunk in (3, 16):
        scores = acdc(loss, references, [batch], threshold=threshold, chunk=chunk)
        kept = scores.values[0] >= threshold
        assert torch.equal(kept, expected)
        assert scores.details["kept"] == int(kept.sum()) > 0
        assert torch.equal(top_k(scores.order, int(kept.sum()))[0], expected)
    tried = subject.graph.n_edges - untried
    assert int(acdc(loss, references, [batch], threshold=threshold, chunk=1).details["variants"]) == tried  # type: ignore[call-overload]


def test_a_node_that_nobody_hears_is_not_tried() -> None:
    subject, loss, references = parts("gpt2")
    scores = acdc(loss, references, [tiny_batch()], threshold=0.1)
    graph = subject.graph
    kept = scores.values[0] >= 0.1
    silent = 0
    for reader in range(graph.n_readers - 1):
        fed = torch.tensor(list(graph.writers_of_reader[reader]))
        if not bool(kept[torch.isin(graph.writer_of, fed)].any()):
            silent += 1
            assert not bool(scores.values[0, graph.reader_of == reader].any())
    assert silent > 0


def test_batches_and_their_size_change_nothing() -> None:
    _, loss, references = parts("llama")
    whole = tiny_batch(rows=4)
    halves = [
        Batch(**{name: value[part] for name, value in vars(whole).items()}) for part in (slice(0, 1), slice(1, 4))
    ]
    for method in (exact, lambda *args: acdc(*args, threshold=0.05)):
        together, apart = method(loss, references, [whole]), method(loss, references, halves)
        torch.testing.assert_close(together.values, apart.values, rtol=1e-4, atol=1e-6)
        assert together.details.get("kept") == apart.details.get("kept")


def test_an_objective_of_ones_own_may_look_at_what_it_is_given() -> None:
    """At single values, or at some alone, as it may in every other method."""

    def chosen(logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        assert float(logits.std()) > 0
        values = kl_divergence(logits, teacher, batch)
        values[values.isnan()] = 0
        return values

    _, loss, references = parts("gpt2")
    own = MaskedLoss(loss.model, loss.layout, chosen)
    for method, how in ((exact, {}), (acdc, {"threshold": 0.1})):
        one, other = (method(of, references, [tiny_batch()], **how) for of in (loss, own))
        assert torch.equal(one.values, other.values)


def test_count_finds_its_threshold() -> None:
    _, loss, references = parts("gpt2")
    scores = acdc(loss, references, [tiny_batch()], count=20, searches=10)
    assert abs(int(scores.details["kept"]) - 20) <= 2  # type: ignore[call-overload]
    assert int((scores.values >= scores.details["threshold"]).sum()) == scores.details["kept"]


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, loss, references = parts("gpt2")
    for wrong in ({}, {"threshold": 0.1, "count": 3}, {"threshold": 0.0}, {"count": 10**6}):
        with pytest.raises(UserError, match=r"method\.score"):
            acdc(loss, references, [tiny_batch()], **wrong)
    with pytest.raises(UserError, match=r"looked at \d+\.\d% of the"):
        acdc(loss, references, [tiny_batch()], threshold=0.1, seconds=0.0)
    with pytest.raises(UserError, match="no pairs"):
        exact(loss, references, [])
    monkeypatch.setattr(os, "sysconf", lambda name: 64)
    with pytest.raises(UserError, match="3 pairs held open need"):
        exact(loss, references, [tiny_batch()])
    by_role = MaskedLoss(loss.model, MaskLayout(subject.graph, ("other", "end")), kl_divergence)
    on_nodes = MaskedLoss(loss.model, MaskLayout(subject.graph, (), "nodes"), kl_divergence)
    for method, other, setting in (
        (exact, by_role, "roles"),
        (exact, on_nodes, "sites"),
        (mask_gradients, on_nodes, "sites"),
    ):
        with pytest.raises(UserError, match=rf"mask\.{setting}"):
            method(other, references, [tiny_batch()])


@pytest.mark.slow
def test_order_does_not_depend_on_hashing() -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_acdc import parts, tiny_batch, acdc\n"
        "_, loss, references = parts('gpt2')\n"
        "print(acdc(loss, references, [tiny_batch()], threshold=0.05).values.tolist())"
    )
    said = []
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, text=True, check=True
        )
        said.append(done.stdout)
    assert said[0] == said[1] and len(said[0]) > 100


def test_from_the_command_line(local: Path, tmp_path: Path) -> None:
    own = settings(local, tmp_path / "own", "method=acdc", "method.score.threshold=0.05", "sparsity=own")
    call(*[word for word in own if not word.startswith("sparsity.target")], verb="attribute")
    result = json.loads((tmp_path / "own" / "result.json").read_text())
    details = json.loads((tmp_path / "own" / "circuit.json").read_text())["details"]
    assert result["method"] == "acdc" and result["n_edges"] == details["kept"] > 0
    call(*settings(local, tmp_path / "cut", "method=exact", "method.max_batches=1"), verb="attribute")
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["sparsity"] == pytest.approx(0.8, abs=0.01)


def test_own_size_is_for_methods_that_have_one(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "attribute"):
        argv = settings(local, tmp_path / verb, "sparsity=own")
        line = failure(capsys, *[word for word in argv if not word.startswith("sparsity.target")], verb=verb)
        assert "method=acdc" in line


def seconds_per_edge(subject: Subject, batch: Batch, keep: float, layers: tuple[int, ...], chunk: int = 8) -> float:
    """Time of one tried edge, mean over the graph, in circuits that keep a random share of what lies downstream.

    Readers of some layers are timed on the way from the logits down; each layer counts by its edges.
    """
    graph = subject.graph
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(graph), kl_divergence)
    held = HeldLoss(loss, References(subject, "interchange"), [batch])
    generator = torch.Generator().manual_seed(0)
    timed: dict[int, list[float]] = {layer: [] for layer in (*layers, graph.n_layers)}
    places = {0, graph.n_heads, graph.n_heads + graph.n_kv_heads, graph.readers_per_layer - 1}
    for reader in reversed(range(graph.n_readers)):
        layer, place = divmod(reader, graph.readers_per_layer)
        visible, row = int(graph.visible[reader]), held.masks[reader].clone()
        fed = list(graph.writers_of_reader[reader])
        dead = bool(fed) and not bool(held.masks[:, fed].any())
        if layer in timed and place in places:
            rows = row.repeat(min(chunk, visible), 1)
            for number in range(len(rows)):
                rows[number:, visible - 1 - number] = 0
            start = time.perf_counter()
            if not dead:
                held.values(reader, rows)
            timed[layer].append((time.perf_counter() - start) / len(rows))
        if keep < 1:
            row[:visible] = 0 if dead else (torch.rand(visible, generator=generator) < keep).to(row.dtype)
            held.commit(reader, row)
    total = 0.0
    for layer in range(graph.n_layers + 1):
        near = min(timed, key=lambda other: abs(other - layer))
        edges = int(graph.visible[graph.reader_rows(layer)].sum())
        total += edges * sum(timed[near]) / len(timed[near])
    return total / graph.n_edges


@pytest.mark.slow
def test_speed_on_gpt2_small() -> None:
    """Run with -s on an idle machine: seconds an edge, 8 pairs of 15 tokens, two threads, 5 % and all edges kept."""
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        subject, batch = Subject(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2"))), tiny_batch(8, 15, 1)
        layers, forwards = (0, 2, 4, 6, 8, 10, 11), []
        for _ in range(6):
            start = time.perf_counter()
            subject.logits(batch.clean, batch.positions)
            forwards.append(time.perf_counter() - start)
        stock = statistics.median(forwards)
        sparse, whole = (seconds_per_edge(subject, batch, keep, layers) for keep in (0.05, 1.0))
        print(f"\nstock forward {stock:.3f} s; an edge {sparse:.4f} s with 5 % kept, {whole:.4f} s with all kept")
        assert sparse < 0.25 * stock
    finally:
        torch.set_num_threads(1)
