"""Gates, the constraint, attribution's completeness, and a planted circuit that both methods find."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model

from circuitlit.discover import (
    HardConcrete,
    MaskedLoss,
    MaskLearner,
    Schedule,
    SigmoidTopK,
    acdc,
    exact,
    initial_log_alpha,
    mask_gradients,
)
from circuitlit.discover.gates import logistic_noise
from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.select import edge_budget
from circuitlit.masked import MaskedModel, References, mean_writers
from circuitlit.masked.ablation import Kind
from circuitlit.model import Subject
from circuitlit.objective import answer_cross_entropy, kl_divergence


def parts(name: str = "llama", objective=kl_divergence) -> tuple[Subject, MaskedLoss, References]:
    subject = Subject(tiny_model(name))
    loss = MaskedLoss(MaskedModel(subject, panel=2), MaskLayout(subject.graph), objective)
    return subject, loss, References(subject, "interchange")


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: Schedule(0, 0.3), "steps=0"),
        (lambda: Schedule(9, 0.3, fall="lin"), "fall=lin"),
        (lambda: Schedule(9, 0.3, hard=2), "hard=2"),
        (lambda: Schedule(9, 0.3, start_sparsity=95), "start_sparsity=95"),
        (lambda: Schedule(9, 0.3, sizes=(0, 1)), "sizes="),
        (lambda: HardConcrete(low=0.0), "low=0.0 below 0"),
        (lambda: exact(None, None, [], chunk=-1), "chunk=-1"),
        (lambda: acdc(None, None, [], threshold=0.1, chunk=0), "chunk=0"),
        (lambda: mask_gradients(None, None, [], steps=2, draws=5), "draws=5"),
        (lambda: mask_gradients(None, None, [], steps=0), "steps=0"),
    ],
)
def test_settings_out_of_their_range_are_refused(build, said: str) -> None:
    """Python's callers have no command line that checks; some of these ran for ever, or scored every edge 0."""
    with pytest.raises(UserError, match=re.escape(said)):
        build()


def test_gate_probability_is_the_frequency() -> None:
    gates = HardConcrete()
    log_alpha = torch.linspace(-4, 4, 9)
    noise = logistic_noise(9 * 20_000, 0, 0, 0, torch.device("cpu"))
    for scale in (1.0, 0.3):
        opened = gates.sample(log_alpha.repeat(20_000), noise, scale) > 0
        open_share = opened.view(20_000, 9).float().mean(0)
        torch.testing.assert_close(open_share, gates.open_probability(log_alpha, scale), atol=0.015, rtol=0)


def test_gate_probability_at_published_values() -> None:
    """Louizos et al.'s constants: P(z > 0) at log-alpha 10, 0, -2, -10."""
    probability = HardConcrete(2 / 3).open_probability(torch.tensor([10.0, 0.0, -2.0, -10.0]))
    torch.testing.assert_close(probability, torch.tensor([0.99999, 0.832, 0.401, 0.0002]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("share", [0.5, 0.05, 0.001])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_shift_holds_the_constraint_exactly(share: float, scale: float) -> None:
    gates = HardConcrete()
    log_alpha = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 5
    shifted = log_alpha + gates.shift_to(log_alpha, share, scale)
    assert float(gates.open_probability(shifted, scale).mean()) == pytest.approx(share, rel=1e-4)
    assert torch.equal(shifted.argsort(), log_alpha.argsort())


def test_held_gradient_is_that_of_shift_after_step() -> None:
    gates = HardConcrete()
    log_alpha = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_alpha = log_alpha + gates.shift_to(log_alpha, 0.3)
    weight = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = log_alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad((weight * gates.held(leaf)).sum(), leaf)
    for index in (0, 17, 49):
        ends = []
        for sign in (1, -1):
            moved = log_alpha.clone()
            moved[index] += sign * 1e-5
            ends.append((weight * (moved + gates.shift_to(moved, 0.3))).sum())
        torch.testing.assert_close(grad[index], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_noise_depends_on_its_key_alone() -> None:
    cpu = torch.device("cpu")
    one = logistic_noise(100, 7, 3, 1, cpu)
    torch.rand(5)
    assert torch.equal(one, logistic_noise(100, 7, 3, 1, cpu))
    for other in ((8, 3, 1), (7, 4, 1), (7, 3, 2), (3, 7, 1)):
        assert not torch.equal(one, logistic_noise(100, *other, cpu))


def test_schedule_keeps_its_promises() -> None:
    schedule = Schedule(100, 0.1, lr_warmup=10, start_sparsity=0.5, warmup=0.5, harden=0.5, final_noise=0.1)
    assert schedule.open_share(0, 0.95) == pytest.approx(0.5)
    assert schedule.open_share(25, 0.95) == pytest.approx((0.5 * 0.05) ** 0.5)
    assert schedule.open_share(50, 0.95) == schedule.open_share(99, 0.95) == pytest.approx(0.05)
    assert schedule.open_share(0, 0.3) == pytest.approx(0.7)  # never asks for fewer edges than the target
    linear = replace(schedule, fall="linear")
    shares = [linear.open_share(step, 0.95) for step in (0, 10, 25, 50, 99)]
    assert shares == pytest.approx([0.5, 0.41, 0.275, 0.05, 0.05])
    assert (schedule.noise(0), schedule.noise(50)) == (1.0, 1.0)
    assert schedule.noise(100) == pytest.approx(0.1)
    assert schedule.lr_factor(0) == pytest.approx(0.1)
    assert schedule.lr_factor(10) == pytest.approx(1.0)


@pytest.mark.long
def test_attribution_adds_up_to_the_loss_it_explains() -> None:
    """The fundamental theorem along the mask path: the scores sum to loss(no edge) - loss(all edges)."""
    _, loss, references = parts("gpt2")
    batch = tiny_batch()
    reference = references(batch)
    size = loss.layout.size
    ends = [loss(torch.full((size,), value, dtype=torch.float64), batch, reference) for value in (0.0, 1.0)]
    scores = mask_gradients(loss, references, [batch], steps=200)
    assert float(scores.values.double().sum()) == pytest.approx(float((ends[0] - ends[1]).detach()), rel=1e-3)
    assert scores.ranks_by_magnitude


def test_kl_gradient_vanishes_at_all_ones() -> None:
    _, loss, references = parts()
    batch = tiny_batch()
    masks = torch.ones(loss.layout.size, dtype=torch.float64, requires_grad=True)
    value = loss(masks, batch, references(batch))
    (grad,) = torch.autograd.grad(value, masks)
    assert abs(float(value.detach())) < 1e-6
    assert float(grad.abs().max()) < 1e-5


def test_visiting_points_in_turn_visits_them_equally() -> None:
    _, loss, references = parts()
    batches = [tiny_batch(seed=seed) for seed in range(5)]
    same = [batches[0]] * 5
    once = mask_gradients(loss, references, same[:1], steps=5)
    in_turn = mask_gradients(loss, references, same, steps=5, draws=1)
    torch.testing.assert_close(once.values, in_turn.values, rtol=1e-4, atol=1e-6)


def test_cached_references_equal_fresh_ones() -> None:
    subject, _, fresh = parts()
    batch = tiny_batch(rows=4)
    cached = References(subject, "interchange", budget=1e9)
    assert cached.fill([batch], 4)
    some = type(batch)(**{name: value[[2, 0]] for name, value in vars(batch).items()})
    for made, expected in zip((cached(some),), (fresh(some),), strict=True):
        torch.testing.assert_close(made.teacher, expected.teacher)
        torch.testing.assert_close(made.ablated.heads, expected.ablated.heads)
    assert not References(subject, "interchange", budget=10.0, host=10.0).fill([batch], 4)
    at_host = References(subject, "interchange", budget=10.0, host=1e9)
    assert at_host.fill([batch], 4) and at_host.cached
    assert torch.equal(at_host(some).teacher, cached(some).teacher)
    assert torch.equal(at_host(some).ablated.mlps, cached(some).ablated.mlps)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_constants_need_no_forward_once_the_full_model_s_answers_are_kept(kind: Kind) -> None:
    subject, batch = Subject(tiny_model("gpt2")), tiny_batch(rows=4)
    some = type(batch)(**{name: value[[2, 0]] for name, value in vars(batch).items()})
    mean = mean_writers(subject, [batch]) if kind == "mean" else None
    known, expected = References(subject, "interchange", budget=1e9), References(subject, kind, mean)(some)
    own = References(subject, kind, mean, budget=1e9)
    assert known.fill([batch], 4) and own.fill([batch], 4)
    other, runs = known.with_constants(kind, mean), []
    other(some)  # zeros are made once
    hook = subject.model.register_forward_pre_hook(lambda *_: runs.append(1))
    blocks = subject.anatomy.blocks(subject.model)[0].register_forward_pre_hook(lambda *_: runs.append(1))
    for references in (own, other):
        made = references(some)
        assert torch.equal(made.teacher, expected.teacher) and not runs
        for name, value in vars(expected.ablated).items():
            assert torch.equal(getattr(made.ablated, name), value)
    hook.remove()
    blocks.remove()
    assert not References(subject, kind, mean, budget=10.0, host=10.0).fill([batch], 4)


def test_initial_masks() -> None:
    graph = Subject(tiny_model("gpt2")).graph
    scores = EdgeScores(graph, torch.arange(float(graph.n_edges))[None] - 100, "test", ranks_by_magnitude=True)
    layout = MaskLayout(graph)
    confident = initial_log_alpha(layout, "confident", scores, 10, 4.0)
    assert int((confident == 4).sum()) == 10 and int((confident == -4).sum()) == graph.n_edges - 10
    ranks = initial_log_alpha(layout, "ranks", scores, 10, 4.0)
    assert float(ranks[100]) == -4 and float(ranks.max()) == 4
    assert int(ranks.argmax()) == int(scores.order.argmax())
    with pytest.raises(UserError, match=r"mask\.init_from"):
        initial_log_alpha(layout, "ranks", None, 10, 4.0)
    with pytest.raises(UserError, match="make scores of this model"):
        initial_log_alpha(MaskLayout(graph, ("other", "end")), "ranks", scores, 2, 4.0)


def train(
    loss: MaskedLoss, references: References, start: torch.Tensor, steps: int, target: float, hard: float = 0.0
) -> MaskLearner:
    schedule = Schedule(steps, 0.3, start_sparsity=0.3, warmup=0.5, harden=0.5, final_noise=0.1, hard=hard)
    learner = MaskLearner(loss, references, start, target, schedule, seed=1, constraint_gradient=True)
    made = learner.configure_optimizers()
    for step in range(steps):
        value = learner.masked_loss(tiny_batch(rows=8, seed=step % 4), step, 0)
        made["optimizer"].zero_grad()
        value.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return learner


@pytest.mark.long
def test_hard_steps_run_the_circuit_that_is_cut() -> None:
    _, loss, references = parts()
    count = round(0.2 * loss.layout.n_edges)
    start = torch.randn(loss.layout.size, generator=torch.Generator().manual_seed(0))
    for hard, same in ((0.3, True), (0.0, False)):
        learner = train(loss, references, start, 20, 0.8, hard)
        masks = learner.trained_masks()
        cut = Circuit.cut(learner.scores(), count=count).kept
        assert torch.equal(masks, cut.to(masks)) is same
        assert (int(((masks > 0) & (masks < 1)).sum()) == 0) is same


def test_the_schedule_ends_on_the_size_of_the_cut() -> None:
    """Rounding of the fall could move half an edge, and of a graph with few edges none was left."""
    for edges, kept in ((46, 16.5), (46, 19.5), (32_491, 196.5)):
        target = 1 - kept / edges
        share = Schedule(100, 0.3, start_sparsity=0.3, warmup=0.5).open_share(99, target)
        assert share == 1 - target and round(share * edges) == edge_budget(target, edges)
    _, loss, references = parts()
    start = torch.randn(loss.layout.size, generator=torch.Generator().manual_seed(0))
    assert float(train(loss, references, start, 20, 0.999, 0.3).trained_masks().sum()) == 1


def test_the_shift_to_a_cut_keeps_the_very_count_though_gates_lie_close() -> None:
    gates = HardConcrete()
    log_alpha = torch.randn(1000, generator=torch.Generator().manual_seed(0)).sort().values
    log_alpha[900] = log_alpha[899] + 1e-6
    shifted = log_alpha + gates.shift_to_cut(log_alpha, 0.1)
    assert int((shifted > gates.threshold).sum()) == 100
    weighted = gates.shift_to_cut(log_alpha, 0.3, lambda chance: (chance * torch.tensor([2.0, 0.0]).repeat(500)).mean())
    assert int((log_alpha[::2] + weighted > gates.threshold).sum()) == 150


def test_a_hard_mask_is_0_or_1_and_has_the_slope_of_the_soft_one() -> None:
    log_alpha = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    for gates in (HardConcrete(), SigmoidTopK()):
        hard, soft = gates.hard(log_alpha, 0.4), gates.open_probability(log_alpha, 0.4)
        assert torch.equal(hard, (log_alpha > gates.threshold).to(hard))
        slopes = [torch.autograd.grad(values.sum(), log_alpha)[0] for values in (hard, soft)]
        torch.testing.assert_close(*slopes)


@pytest.mark.long
def test_learning_recovers_a_planted_circuit() -> None:
    """Only one head and one MLP of the model write anything: no other writer's edge can matter."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            width = model.config.n_embd // model.config.n_head
            for head in range(model.config.n_head):
                if (layer, head) != (0, 2):
                    block.attn.c_proj.weight[head * width : (head + 1) * width] = 0
            if layer != 1:
                block.mlp.c_proj.weight.zero_()
    subject = Subject(model)
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence)
    references = References(subject, "interchange")
    graph = subject.graph
    busy = {"input", "a0.h2", "m1"}
    matters = [name.split("->")[0] in busy for name in map(graph.edge_name, range(graph.n_edges))]
    learner = train(loss, references, torch.zeros(graph.n_edges), 60, 0.9)
    circuit = Circuit.cut(learner.scores(), 12)
    attributed = Circuit.cut(mask_gradients(loss, references, [tiny_batch(rows=8)]), 12)
    for found in (circuit, attributed):
        kept = [bool(k) for k in found.kept[0]]
        assert sum(k and m for k, m in zip(kept, matters, strict=True)) >= 11


def test_learning_lowers_the_loss_at_its_sparsity() -> None:
    subject, loss, references = parts("llama", answer_cross_entropy)
    start = torch.zeros(subject.graph.n_edges)
    batch = tiny_batch(rows=8, seed=0)

    def hard(log_alpha: torch.Tensor) -> float:
        scores = EdgeScores(subject.graph, log_alpha[None], "test")
        kept = Circuit.cut(scores, subject.graph.n_edges // 5).kept[0].double()
        return float(loss(kept, batch, references(batch)))

    learner = train(loss, references, start, 40, 0.8)
    noise = torch.randn(subject.graph.n_edges, generator=torch.Generator().manual_seed(0))
    assert hard(learner.log_alpha.detach()) < hard(noise) - 0.2
    share = learner.gates.open_probability(learner.log_alpha.detach(), learner.schedule.noise(39)).mean()
    assert float(share) == pytest.approx(0.2, abs=0.05)
