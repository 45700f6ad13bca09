"""Families of gates, masks on nodes, drawn sizes, and the published recipe against a plain reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch, tiny_model
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from circuitlit.discover import (
    EdgePruning2024,
    HardConcrete,
    MaskedLoss,
    MaskLearner,
    Schedule,
    SigmoidTopK,
    UniformGradient,
    initial_log_alpha,
)
from circuitlit.discover.gates import Gates, logistic_noise
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.layout import sum_by_writer
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence

CPU = torch.device("cpu")
FAMILIES = [HardConcrete(), SigmoidTopK(), UniformGradient()]


def parts(sites: str = "edges", name: str = "gpt2") -> tuple[MaskedLoss, References]:
    subject = Subject(tiny_model(name))
    layout = MaskLayout(subject.graph, sites=sites)  # type: ignore[arg-type]
    return MaskedLoss(MaskedModel(subject, panel=2), layout, kl_divergence), References(subject, "interchange")


@pytest.mark.parametrize("gates", FAMILIES, ids=lambda g: g.name)
@pytest.mark.parametrize("sites", ["edges", "nodes", "both"])
@pytest.mark.parametrize("share", [0.3, 0.02])
def test_every_family_holds_its_size_on_every_layout(gates: Gates, sites: str, share: float) -> None:
    loss, _ = parts(sites)
    layout = loss.layout
    log_alpha = 3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    shifted = log_alpha + gates.shift_to(log_alpha, share, 0.7, layout.share)
    assert float(layout.share(gates.open_probability(shifted, 0.7))) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("gates", FAMILIES, ids=lambda g: g.name)
def test_held_gradient_knows_the_shift_on_joint_masks(gates: Gates) -> None:
    layout = parts("both")[0].layout
    draw = torch.Generator().manual_seed(0)
    log_alpha = torch.randn(layout.size, dtype=torch.float64, generator=draw)
    weight = torch.randn(layout.size, dtype=torch.float64, generator=draw)
    log_alpha = log_alpha + gates.shift_to(log_alpha, 0.2, 1.0, layout.share)
    leaf = log_alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad((weight * gates.held(leaf, 1.0, layout.share)).sum(), leaf)
    for index in (0, layout.size - 1):
        ends = []
        for sign in (1, -1):
            moved = log_alpha.clone()
            moved[index] += sign * 1e-5
            ends.append((weight * (moved + gates.shift_to(moved, 0.2, 1.0, layout.share))).sum())
        torch.testing.assert_close(grad[index], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-7)


def test_uniform_gradient_is_an_unbiased_gradient() -> None:
    """For one mask and any loss f, the mean gradient is that of t f(1) + (1 - t) f(0), and the mean mask is t."""
    gates, count = UniformGradient(), 400_000
    for number in (-1.0, 0.5, 2.0):
        log_alpha = torch.full((count,), number, requires_grad=True)
        masks = gates.sample(log_alpha, logistic_noise(count, 0, 0, 0, CPU))
        (grad,) = torch.autograd.grad((masks**3 - 2 * masks).sum(), log_alpha)
        chance = torch.tensor(number).sigmoid()
        assert float(masks.detach().mean()) == pytest.approx(float(chance), abs=4e-3)
        assert float(grad.mean()) == pytest.approx(float(-chance * (1 - chance)), abs=4e-3)
        assert float(masks.detach().min()) >= 0 and float(masks.detach().max()) <= 1


def test_drawn_sizes_fill_their_range_and_depend_on_the_key_alone() -> None:
    schedule = Schedule(100, 0.1, sizes=(0.01, 1.0))
    shares = torch.tensor([schedule.open_share(step, 0.95, seed=3) for step in range(400)])
    assert 0.01 <= float(shares.min()) < 0.011 and 0.9 < float(shares.max()) <= 1
    assert float(shares.log().mean()) == pytest.approx(float(torch.tensor(0.1).log()), abs=0.15)
    assert schedule.open_share(7, 0.5, seed=3) == schedule.open_share(7, 0.95, seed=3)
    assert schedule.open_share(7, 0.95, seed=3) != schedule.open_share(7, 0.95, seed=4)


def test_node_masks_give_an_edge_its_writers_score() -> None:
    loss, references = parts("nodes")
    layout, graph = loss.layout, loss.layout.graph
    assert layout.size == graph.n_writers
    numbers = torch.arange(layout.size) / 8
    learner = MaskLearner(loss, references, numbers, 0.5, Schedule(10, 0.1), SigmoidTopK())
    assert torch.equal(learner.scores().values[0], numbers[graph.writer_of])
    learner.masked_loss(tiny_batch(), 0, 0).backward()
    assert learner.log_alpha.grad is not None and bool((learner.log_alpha.grad != 0).all())


def test_joint_masks_need_both_open() -> None:
    loss, references = parts("both")
    layout, graph = loss.layout, loss.layout.graph
    flat = torch.cat([torch.full((graph.n_edges,), 5.0), torch.arange(float(graph.n_writers))])
    learner = MaskLearner(loss, references, flat, 0.5, Schedule(10, 0.1))
    assert torch.equal(learner.scores().values[0], graph.writer_of.float().clamp(max=5))
    assert torch.equal(layout.edges(flat)[0], 5 * graph.writer_of.float())


def test_node_masks_start_from_the_sum_of_their_edges() -> None:
    graph = parts()[0].layout.graph
    layout = MaskLayout(graph, sites="nodes")
    values = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(1))
    scores = EdgeScores(graph, values, "test", ranks_by_magnitude=True)
    sums = sum_by_writer(graph, values)[0]
    by_hand = torch.stack([values[0, graph.writer_of == writer].sum() for writer in range(graph.n_writers)])
    torch.testing.assert_close(sums, by_hand)
    ranks = initial_log_alpha(layout, "ranks", scores, 20, 2.0)
    assert torch.equal(ranks.argsort(), sums.abs().argsort())
    start = initial_log_alpha(layout, "confident", scores, 60, 2.0)
    degree = sum_by_writer(graph, torch.ones(1, graph.n_edges))[0]
    opened = start > 0
    assert float(degree[opened].sum()) >= 60 > float(degree[opened].sum() - degree[opened].max())
    assert float(sums[opened].abs().min()) >= float(sums[~opened].abs().max())
    joint = initial_log_alpha(MaskLayout(graph, sites="both"), "confident", scores, 60, 2.0)
    assert int((joint[: graph.n_edges] > 0).sum()) == 60 and bool((joint[graph.n_edges :] == 2).all())


@pytest.mark.long
@pytest.mark.parametrize("gates", FAMILIES, ids=lambda g: g.name)
def test_every_family_finds_the_edges_that_matter(gates: Gates) -> None:
    """Only one head and one MLP write anything; twelve edges are to be kept."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            for head in range(4):
                if (layer, head) != (0, 2):
                    block.attn.c_proj.weight[head * 6 : (head + 1) * 6] = 0
            if layer != 1:
                block.mlp.c_proj.weight.zero_()
    subject = Subject(model)
    graph = subject.graph
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(graph), kl_divergence)
    references = References(subject, "interchange")
    sizes = (0.02, 1.0) if isinstance(gates, SigmoidTopK) else None
    schedule = Schedule(60, 0.3, start_sparsity=0.3, warmup=0.5, sizes=sizes)
    learner = MaskLearner(loss, references, torch.zeros(graph.n_edges), 0.9, schedule, gates, 1, True)
    optimizer = learner.configure_optimizers()["optimizer"]
    for step in range(60):
        optimizer.zero_grad()
        learner.masked_loss(tiny_batch(rows=8, seed=step % 4), step, 0).backward()
        optimizer.step()
    kept = Circuit.cut(learner.scores(), 12).kept[0]
    busy = [name.split("->")[0] in ("input", "a0.h2", "m1") for name in map(graph.edge_name, range(graph.n_edges))]
    assert int((kept & torch.tensor(busy)).sum()) >= 10
    assert learner.scores().method == gates.name


class Published:
    """The published recipe written down plainly: `n` edge masks, then node masks, one flat list."""

    def __init__(self, start: Tensor, n: int, steps: int, target: float) -> None:
        self.alpha, self.n, self.steps, self.target = start.clone().requires_grad_(), n, steps, target
        self.l1, self.l2 = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
        groups = [{"params": [self.alpha], "lr": 0.8}, {"params": [self.l1, self.l2], "lr": 0.8, "maximize": True}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01)

    def step(self, number: int, kl, noise: Tensor) -> float:
        warm = 5
        rate = number / warm if number < warm else (self.steps - number) / (self.steps - warm)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.8 * rate
        uniform = noise.sigmoid()
        s = torch.sigmoid((torch.log(uniform) - torch.log(1 - uniform) + self.alpha) / (2 / 3))
        z = torch.clamp(s * 1.2 - 0.1, 0, 1)
        sparsity = 1 - z[: self.n].sum() / self.n
        gap = sparsity - self.target * min(1.0, number / (0.8 * self.steps))
        value = kl(z) + self.l1 * gap + self.l2 * gap**2
        self.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_([self.alpha, self.l1, self.l2], 1.0)
        self.optimizer.step()
        return float(value.detach())


class Noting(EdgePruning2024):
    """Remembers the loss of every step."""

    seen: list[float]

    def on_fit_start(self) -> None:
        self.seen = []

    def training_step(self, batch, batch_idx):
        value = self.masked_loss(batch, self.global_step, 0)
        self.seen.append(float(value.detach()))
        return value


def test_the_published_recipe_step_for_step() -> None:
    loss, references = parts("both", "llama")
    batch = tiny_batch(rows=4)
    steps = 20
    schedule = Schedule(steps, 0.8, lr_warmup=5, start_sparsity=0.0, warmup=0.8)
    gates = HardConcrete(2 / 3)
    learner = Noting(loss, references, torch.zeros(1), 0.9, schedule, gates, seed=4, edge_target=1.1)
    plain = Published(learner.log_alpha.detach(), loss.layout.n_edge_masks, steps, 1.1)
    assert float(learner.log_alpha.detach().mean()) == pytest.approx(10, abs=0.01)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=steps, enable_model_summary=False, **settings).fit(  # type: ignore[arg-type]
        learner, DataLoader([0] * steps, batch_size=1, collate_fn=lambda _: batch)
    )
    reference = references(batch)
    for number in range(steps):
        noise = logistic_noise(loss.layout.size, 4, number, 0, CPU)
        value = plain.step(number, lambda z: loss(z, batch, reference), noise)
        assert learner.seen[number] == pytest.approx(value, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(learner.log_alpha.detach(), plain.alpha.detach(), rtol=1e-4, atol=1e-4)
    pair = torch.stack([plain.l1.detach(), plain.l2.detach()])
    torch.testing.assert_close(learner.multipliers.detach()[:2], pair, rtol=1e-4, atol=1e-5)
    assert float(pair.abs().min()) > 0 and bool((learner.multipliers.detach()[2:] == 0).all())


def test_the_published_binarisation() -> None:
    """A quota of zeros in each tensor, then one threshold that keeps as many as the soft masks add up to."""
    loss, references = parts("both")
    gates = HardConcrete(2 / 3)
    learner = EdgePruning2024(loss, references, torch.zeros(1), 0.9, Schedule(10, 0.8), gates)
    edges = loss.layout.n_edge_masks
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        learner.log_alpha[:edges] = 3 * torch.randn(edges, generator=draw)
        learner.log_alpha[edges:] = 10.0
    scores = learner.scores()
    soft = torch.sigmoid(learner.log_alpha.detach()[:edges] / (2 / 3) * 0.8)
    closed = 1 - gates.open_probability(learner.log_alpha.detach()[:edges]).clamp(1e-6, 1 - 1e-6)
    graph = loss.layout.graph
    last = graph.reader_of == graph.n_readers - 1  # the logits' readers are a tensor of their own
    zeros = int(closed[last].sum().round())
    assert int((scores.values[0][last] == 0).sum()) == zeros
    assert set(soft[last].argsort()[:zeros].tolist()) == set((scores.values[0][last] == 0).nonzero().flatten().tolist())
    published = scores.details["published_count"]
    assert published == pytest.approx(float((scores.values > 0).float().mul(scores.values).sum()), abs=1.5)


@pytest.mark.long
@pytest.mark.parametrize(
    "more,method",
    [
        (["mask=sigmoid_topk"], "sigmoid_topk"),
        (["mask=uniform_gradient"], "uniform_gradient"),
        (["compat=edge_pruning_2024", "mask.schedule.lr_warmup=2", "data.batch_size=4"], "edge_pruning_2024"),
        (["mask.sites=nodes"], "hard_concrete"),
        (["mask.sites=both", "mask.roles=true"], "hard_concrete"),
    ],
    ids=str,
)
def test_learners_from_the_command_line(more: list[str], method: str, local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none", *more))
    result = json.loads((tmp_path / "result.json").read_text())
    circuit = Circuit.load(tmp_path)
    assert result["method"] == circuit.scores.method == method
    assert result["n_edges"] == circuit.n_edges == round(0.2 * circuit.kept.numel())
