"""Heads: patterns against the stock eager attention, planted heads, path patching against hooks, the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import WORDS, call, failure
from conftest import CONFIGS, tiny_batch, tiny_model
from path_patching import frozen_run, patched_logits
from planted import TOKENS, permutations, planted
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.heads import (
    Effects,
    Heads,
    HeadScores,
    NamePlaces,
    PatchBed,
    causal_check,
    copy_suppression_scores,
    copying_scores,
    effect_share,
    greater_than_check,
    heads_in_circuit,
    heads_replaced,
    ioi_algorithm,
    path_effects,
    path_patch,
    position_signal,
    repeat_scores,
    repeated_tokens,
    roles_in_circuit,
    successor_lists,
    successor_scores,
)
from circuitlit.heads.attention import run_streams
from circuitlit.heads.causal import matched_heads, metric_of_pairs, repeat_loss
from circuitlit.heads.copy_suppression import suppressed_part
from circuitlit.heads.effects import head_reader, head_writers
from circuitlit.heads.greater_than import heads_into_mlps, mlps_to_logits
from circuitlit.heads.intervals import ratio_estimate
from circuitlit.heads.path_patching import path_patch_logits
from circuitlit.heads.tail import run_tail
from circuitlit.heads.text import read_passages, sample_passages
from circuitlit.masked import run_writers
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.objective import task_metric
from circuitlit.run.year_check import year_check
from circuitlit.tasks.pair import Batch

PLAIN = [name for name in CONFIGS if not name.startswith("gemma")]
ARCHITECTURES = ["gpt2", "gpt_neox", "llama", "qwen3"]


def test_heads_behind_a_norm_are_refused() -> None:
    with pytest.raises(UserError, match="behind the attention"):
        Heads(Subject(tiny_model("gemma2")))


@pytest.mark.parametrize("name", PLAIN)
def test_patterns_are_those_of_the_stock_eager_attention(name: str) -> None:
    subject = Subject(tiny_model(name))
    ids = tiny_batch().clean
    subject.model.set_attn_implementation("eager")
    expected = subject.model(ids, output_attentions=True).attentions
    for layer, pattern in enumerate(Heads(subject).patterns(ids)):
        torch.testing.assert_close(pattern, expected[layer].double(), atol=1e-6, rtol=0)  # eager softmax is float32
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


@pytest.mark.parametrize("name", PLAIN)
def test_the_tail_from_any_block_is_the_stock_forward(name: str) -> None:
    heads = Heads(Subject(tiny_model(name)))
    streams = run_streams(heads.subject, tiny_batch().clean)
    for first, stream in enumerate(streams):
        torch.testing.assert_close(run_tail(heads, first, stream), streams[-1], atol=1e-10, rtol=0)


CASES = [
    (["a0.h1"], ["logits"]),
    (["a0.h0"], ["a2.h1<q>"]),
    (["a0.h3", "a1.h2"], ["a1.h0<q>", "a2.h3<q>", "a2.h1<k>", "logits"]),
    (["a1.h1"], ["a2.h0<v>", "m2"]),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("senders,receivers", [*CASES, (["input", "m0"], ["a1.h0<v>", "a2.h0<q>", "m1"])])
def test_path_patching_is_that_of_hooks(
    name: str, senders: list[str], receivers: list[str], through_mlps: bool
) -> None:
    subject, batch = Subject(tiny_model(name)), tiny_batch()
    if through_mlps and "m0" in senders:
        return
    bed, graph = PatchBed.build(subject, [batch]), subject.graph
    logits = patched_logits(subject, batch.clean, batch.corrupted, senders, receivers, through_mlps)
    expected = torch.take_along_dim(logits, batch.positions[..., None], 1)
    writers, readers = [graph.writers.index(s) for s in senders], [graph.readers.index(r) for r in receivers]
    (got,) = path_patch_logits(bed, writers, readers, through_mlps)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    assert (got - subject.logits(batch.clean, batch.positions)).abs().max() > 1e-3
    torch.testing.assert_close(path_patch(bed, writers, readers, through_mlps), task_metric(got, batch))


@pytest.mark.parametrize("name", PLAIN)
def test_patching_everything_gives_the_corrupted_run(name: str) -> None:
    subject = Subject(tiny_model(name))
    batch, graph = tiny_batch(), subject.graph
    bed = PatchBed.build(subject, [batch])
    corrupted = subject.logits(batch.corrupted, batch.positions)
    for receivers in ([graph.n_readers - 1], list(range(graph.n_readers))):
        (logits,) = path_patch_logits(bed, list(range(graph.n_writers)), receivers)
        torch.testing.assert_close(logits, corrupted, atol=1e-10, rtol=0)
    torch.testing.assert_close(bed.scale, bed.metric - task_metric(corrupted, batch))
    nothing = path_patch(bed, [], [graph.n_readers - 1])
    torch.testing.assert_close(nothing, bed.metric)


def test_effects_are_normalised_and_leave_out_what_receivers_do_not_see() -> None:
    subject = Subject(tiny_model("llama"))
    graph, bed = subject.graph, PatchBed.build(subject, [tiny_batch()])
    readers = [head_reader(graph, 1, head, "v") for head in (2, 3)]
    assert readers[0] == readers[1] == graph.readers.index("a1.h1<v>")
    effects = path_effects(bed, head_writers(graph), readers[:1])
    assert [graph.writers[writer] for writer in effects.writers] == [f"a0.h{head}" for head in range(4)]
    grid = effects.grid(graph)
    assert bool(grid[1:].isnan().all()) and bool(grid[0].isfinite().all())
    expected = (path_patch(bed, [graph.writers.index("a0.h2")], readers[:1]) - bed.metric).mean() / bed.scale.mean()
    assert float(grid[0, 2]) == pytest.approx(float(expected), rel=1e-5)
    estimate = effects.estimate(graph.writers.index("a0.h2"))
    assert estimate.value == pytest.approx(float(expected), rel=1e-5)


def test_a_constant_ratio_has_no_interval() -> None:
    values = torch.tensor([1.0, 2.0, 5.0])
    estimate = ratio_estimate(-0.5 * values, values)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-0.5, -0.5, -0.5))


@pytest.fixture(scope="module")
def by_hand() -> Heads:
    return Heads(planted())


def test_planted_heads_that_look_back(by_hand: Heads) -> None:
    scores = repeat_scores(by_hand, permutations(16), TOKENS - 1, rows=5)
    for name, head in (("previous_token", (0, 0)), ("duplicate_token", (0, 1)), ("induction", (1, 0))):
        assert float(scores[name][head]) == pytest.approx(1, abs=1e-3)
    assert float(scores["duplicate_token"][1, 1]) == pytest.approx(0.5, abs=1e-3)  # itself and the first one
    for name, grid in scores.items():
        assert sorted(grid.flatten().tolist())[-2] <= (0.51 if name == "duplicate_token" else 0.2), name


def test_planted_heads_that_write(by_hand: Heads) -> None:
    ids = permutations(4)
    scores = copying_scores(by_hand, ids, torch.ones_like(ids, dtype=torch.bool))
    expected = torch.zeros(2, 3)
    assert torch.equal(scores["copying"], expected.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(1.0)))
    assert float(scores["negative_copying"][1, 1]) == float(scores["negative_copying"].sum()) == 1
    everything = [(list(range(TOKENS)), [(i, (i + 1) % TOKENS) for i in range(TOKENS)])]
    successor = successor_scores(by_hand, everything)
    assert float(successor[1, 2]) == 1 and float(successor.flatten()[:-1].max()) < 0.2
    assert bool(successor_scores(by_hand, []).isnan().all())


def test_planted_copy_suppression(by_hand: Heads) -> None:
    every = [(layer, head) for layer in range(2) for head in range(3)]
    scores = copy_suppression_scores(by_hand, permutations(8), every)
    assert float(scores[1, 1]) > 0.9
    assert float(scores.flatten()[[0, 1, 2, 3, 5]].abs().max()) < 0.05
    assert bool(copy_suppression_scores(by_hand, permutations(2), every[:1]).flatten()[1:].isnan().all())


def test_the_suppressed_part_by_hand() -> None:
    outputs = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
    directions = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert torch.equal(suppressed_part(outputs, directions), torch.tensor([[[0.0, -2.0], [0.0, 0.0]]]))


def test_ablating_the_planted_induction_head_undoes_repetition(by_hand: Heads) -> None:
    subject, ids = by_hand.subject, permutations(16)
    generator = torch.Generator().manual_seed(1)
    fresh = torch.randint(TOKENS, ids.shape, generator=generator)
    for kind in ("interchange", "mean", "zero"):
        loss = repeat_loss(subject, ids, fresh, TOKENS - 1, kind)
        check = causal_check(loss, subject.graph, [(1, 0)], draws=8)
        assert check.effect.low > 0 and check.difference.low > 0 and check.rank == pytest.approx(1 / 9)
        assert check.intact.value == pytest.approx(float(loss(()).mean()))
        low, high = check.random.low, check.random.high
        assert low <= check.random.value <= high < check.effect.value
    assert not subject.model.transformer.h[1].attn.c_proj._forward_pre_hooks


def test_random_heads_are_of_the_same_layers_or_near_them() -> None:
    graph = Graph(5, 8, 8)
    heads = [(0, 1), (4, 0), (4, 3)]
    for drawn in matched_heads(graph, heads, 20, seed=0):
        assert sorted(layer for layer, _ in drawn) == [0, 4, 4] and not set(drawn) & set(heads)
    spared = [(4, h) for h in range(1, 7)]
    sets = matched_heads(graph, heads, 20, seed=0, spared=spared)
    for drawn in sets:  # the last layer has one left: the draws are of it and the layer before
        assert not set(drawn) & {*heads, *spared} and {layer for layer, _ in drawn[1:]} <= {3, 4}
    assert len({tuple(drawn) for drawn in sets}) > 10
    crowded = [(2, h) for h in range(7)]
    assert all(len(set(drawn)) == 7 for drawn in matched_heads(graph, crowded, 5, seed=0))
    with pytest.raises(UserError, match=r"lower heads\.top"):
        matched_heads(Graph(1, 4, 4), [(0, 0), (0, 1), (0, 2)], 1, seed=0)


def test_ablating_all_heads_of_pairs_is_a_run_with_those_heads() -> None:
    subject, batch = Subject(tiny_model("gpt2")), tiny_batch()
    bed = PatchBed.build(subject, [batch])
    heads = [(1, 2), (2, 0)]
    source = run_writers(subject, batch.corrupted).heads.unflatten(-1, (4, -1))
    with heads_replaced(subject, {(i, h): source[:, i, :, h] for i, h in heads}):
        expected = task_metric(subject.logits(batch.clean, batch.positions), batch)
    torch.testing.assert_close(metric_of_pairs(bed, "interchange")(heads), expected)
    torch.testing.assert_close(metric_of_pairs(bed, "mean")(()), bed.metric)
    assert (metric_of_pairs(bed, "mean")(heads) - expected).abs().max() > 1e-3


def test_shares_by_hand() -> None:
    deltas = torch.tensor([[-2.0, -4.0], [1.0, 1.0], [0.5, -0.5], [-9.0, -9.0]])  # means -3, 1, 0, -9
    effects = Effects((5, 6, 7, 8), deltas, torch.ones(2))
    share = effect_share(effects, chosen=[5, 8], pool=[5, 6, 7])
    assert share.heads == 1 and share.share.value == pytest.approx(3 / 4)
    assert share.share.low is not None and share.share.low >= 2 / 3.5 - 1e-9  # only the first pair: 2 of 2 + 1 + .5
    assert share.random.value == pytest.approx(1 / 3, abs=0.05)
    assert (share.random.low, share.random.high) == pytest.approx((0, 0.75))
    assert effect_share(effects, [5, 6, 7], [5, 6, 7]).share.value == 1
    assert effect_share(effects, [], [5, 6]).share.value == 0


def named_batch() -> Batch:
    """Three pairs with roles: io 1, s1 2, s2 3; not at the same places in every row."""
    batch = tiny_batch()
    batch.roles = torch.tensor([[0, 1, 2, 0, 3, 0, 4], [0, 2, 1, 0, 3, 0, 4], [1, 0, 2, 3, 0, 0, 4]])
    batch.clean[torch.arange(3), torch.tensor([4, 4, 3])] = batch.clean[torch.arange(3), torch.tensor([2, 1, 2])]
    batch.positions, batch.answer = batch.positions[:, 1:], batch.answer[:, :1]
    batch.answer_mask = batch.answer_mask[:, :1]
    return batch


ROLES = ("other", "io", "s1", "s2", "end")


def test_name_places_and_swapped_names() -> None:
    batch = named_batch()
    places = NamePlaces.of(batch, ROLES)
    assert (places.io.tolist(), places.s1.tolist(), places.s2.tolist()) == ([1, 2, 0], [2, 1, 2], [4, 4, 3])
    assert places.end.tolist() == [6, 6, 6]
    swapped = places.swapped(batch)
    assert swapped[0].tolist() == batch.clean[0, [0, 2, 1, 3, 4, 5, 6]].tolist()
    assert torch.equal(swapped.sort(1).values, batch.clean.sort(1).values)
    assert torch.equal(places.mask(batch), (batch.roles > 0) & (batch.roles < 4))
    with pytest.raises(UserError, match="take task=ioi"):
        NamePlaces.of(batch, ("other", "end"))


def test_the_position_signal_is_what_hooks_say() -> None:
    subject, batch = Subject(tiny_model("llama")), named_batch()
    places = NamePlaces.of(batch, ROLES)
    swapped = places.swapped(batch)
    bed = PatchBed.build(subject, [batch]).with_other([swapped])
    sender, movers = subject.graph.writers.index("a0.h1"), [(1, 2), (2, 3)]
    signal = position_signal(bed, [places], sender, movers)
    receivers = ["a1.h2<q>", "a2.h3<q>"]
    logits = patched_logits(subject, batch.clean, swapped, ["a0.h1"], receivers, False)
    change = task_metric(torch.take_along_dim(logits, batch.positions[..., None], 1), batch) - bed.metric
    assert signal.metric == pytest.approx(float(change.mean()), abs=1e-5)
    seen = frozen_run(subject, batch.clean, swapped, ["a0.h1"], False)
    rows, shifts = torch.arange(3), []
    for layer, head in movers:
        clean = bed.streams[0][layer]
        patched = bed.heads.pattern(layer, clean, seen[f"a{layer}"])[:, head]
        moved = patched - bed.heads.pattern(layer, clean)[:, head]
        shifts.append([moved[rows, places.end, key] for key in (places.io, places.s1)])
    io, s1 = (float(torch.cat([shift[i] for shift in shifts]).mean()) for i in (0, 1))
    assert (signal.to_io, signal.to_s1) == pytest.approx((io, s1), abs=1e-9)
    assert abs(io) > 1e-4 and signal.inhibits == (signal.metric < 0 and io < 0 and s1 > 0)


def test_the_algorithm_names_heads_by_their_scores_and_effects() -> None:
    subject, batch = Subject(tiny_model("gpt2")), named_batch()
    bed, places = PatchBed.build(subject, [batch]), [NamePlaces.of(batch, ROLES)]
    ones = torch.ones(3, 4)
    scores = {"copying": ones, "negative_copying": 0 * ones, "induction": ones, "duplicate_token": 0 * ones}
    found = ioi_algorithm(bed, places, scores)
    direct, to = found.grids["direct_effect"], {n: found.grids[f"attention_to_{n}"] for n in ("io", "s1", "s2")}
    expected = (direct < 0) & (to["io"] > to["s1"]) & (to["io"] > to["s2"])
    assert found.roles["name_mover"] == [(int(i), int(j)) for i, j in expected.nonzero()] != []
    assert found.roles["negative_name_mover"] == found.roles["copy_suppression"] == []
    size = direct.abs()
    assert found.shares["B"].share.value == pytest.approx(float(size[expected].sum() / size.sum()))
    assert found.roles["induction"] == []  # no score exceeds the mean of equal scores
    half = torch.zeros(3, 4, dtype=torch.bool)
    half[1:] = True
    inside = ioi_algorithm(bed, places, scores, pool=half).shares["B"]
    assert inside.share.value == pytest.approx(float(size[expected & half].sum() / size[half].sum()))


def test_greater_than_on_planted_heads(by_hand: Heads) -> None:
    subject = by_hand.subject
    clean = torch.tensor([[0, 3, 7, 1, 3], [0, 9, 4, 2, 9]])  # the induction head looks at 7 and at 4
    rest = {"contrast": torch.zeros(2).long(), "wrong": -torch.ones(2).long(), "roles": torch.zeros(2, 5).long()}
    batch = Batch(
        index=torch.arange(2),
        clean=clean,
        corrupted=clean,
        lengths=torch.tensor([5, 5]),
        positions=torch.tensor([[4], [4]]),
        answer=torch.tensor([[8], [5]]),
        answer_mask=torch.ones(2, 1, dtype=torch.bool),
        choices=torch.tensor([[8, 9, 10, 6, 7], [5, 6, 9, 4, 0]]),
        signs=torch.tensor([[1, 1, 1, -1, -1], [1, 1, 1, -1, 0]]),
        **rest,
    )
    year = torch.tensor([2, 2])
    found = greater_than_check(subject, batch, year, [(1, 0)], [0], draws=4)
    assert found.looks.value == found.says_year.value == 1
    assert greater_than_check(subject, batch, year, [(0, 0)], [0], draws=4).looks.value == 0
    logits = subject.unembed(subject.model.transformer.ln_f(run_writers(subject, clean).mlps[:, 0, 4]))
    first = logits[0, [8, 9, 10]].mean() - logits[0, [6, 7]].mean()
    second = logits[1, [5, 6, 9]].mean() - logits[1, 4]
    assert found.later.value == pytest.approx(float(first + second) / 2, rel=1e-5)
    batch.roles = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]])
    bed, roles, graph = PatchBed.build(subject, [batch]), ("other", "yy"), subject.graph
    kept = torch.zeros(1, graph.n_edges)
    kept[0, [graph.edge_index(name) for name in ("input->a0.h0<v>", "a0.h0->m0", "m0->logits")]] = 1
    circuit = Circuit.cut(EdgeScores(graph, kept, "hand"), 3)
    checked = year_check(bed, roles, circuit, 4, 0)
    assert checked is not None and (checked["heads"], checked["mlps"]) == (["a0.h0"], ["m0"])
    assert checked["looks"]["value"] == 0 and checked["later"]["value"] == pytest.approx(found.later.value)
    assert year_check(bed, ("other",), circuit, 4, 0) is None
    batch.choices[0, 4] = 5
    digits = year_check(PatchBed.build(subject, [batch]), roles, circuit, 4, 0)
    assert digits is not None and "splits years" in digits["reason"]
    assert found.later.value > 0  # row 1 ends with 9, one of its later years, and the MLP passes the token on


def small_circuit() -> Circuit:
    graph = Graph(2, 2, 2)
    names = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits", "input->a0.h1<v>", "a1.h0->logits"]
    kept = torch.zeros(1, graph.n_edges)
    kept[0, [graph.edge_index(name) for name in names]] = 1
    return Circuit.cut(EdgeScores(graph, kept, "hand"), len(names))


def test_roles_of_a_circuits_heads(tmp_path: Path) -> None:
    circuit = small_circuit()
    assert heads_in_circuit(circuit).nonzero().tolist() == [[0, 0]]  # the others lead nowhere or come from nowhere
    assert mlps_to_logits(circuit) == [1] and heads_into_mlps(circuit, [1]) == [(0, 0)]
    grids = {"induction": torch.tensor([[0.7, 0.9], [0.1, torch.nan]]), "copying": torch.full((2, 2), 0.05)}
    scores = HeadScores(circuit.graph, grids, {"model": "hand"})
    found = roles_in_circuit(scores, circuit, {"induction": 0.4, "copying": 0.1, "successor": 0.5})
    assert found == {"induction": [("a0.h0", pytest.approx(0.7))], "copying": []}
    assert scores.top("induction", 5) == [(0, 1), (0, 0), (1, 0)]
    scores.save(tmp_path)
    loaded = HeadScores.load(tmp_path)
    assert loaded.graph == scores.graph and loaded.details == scores.details
    for name, grid in grids.items():
        torch.testing.assert_close(loaded.scores[name], grid, equal_nan=True)
    assert json.loads((tmp_path / "heads.json").read_text())["scores"]["induction"]["a0.h1"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="different models"):
        roles_in_circuit(HeadScores(Graph(1, 2, 2), {}), circuit, {})
    (tmp_path / "heads.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="no readable head scores"):
        HeadScores.load(tmp_path)


def test_repeated_tokens() -> None:
    ids = repeated_tokens(5000, 16, 10, seed=3, bos=7)
    assert ids.shape == (16, 21) and bool((ids[:, 0] == 7).all()) and torch.equal(ids[:, 1:11], ids[:, 11:])
    assert int(ids[:, 1:].min()) >= 100 and torch.equal(ids, repeated_tokens(5000, 16, 10, seed=3, bos=7))
    with pytest.raises(UserError, match="at least 16"):
        repeated_tokens(5000, 2, 10, seed=0)


def test_passages_and_successor_lists(local: Path, tmp_path: Path) -> None:
    subject = load_subject("local", "local", str(local / "model"))
    ids = sample_passages(subject, 5, 9, seed=1, rows=3)
    assert ids.shape == (5, 9) and torch.equal(ids, sample_passages(subject, 5, 9, seed=1, rows=3))
    assert not torch.equal(ids, sample_passages(subject, 5, 9, seed=2, rows=3))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": " ".join(WORDS[:12])}) + "\n")
    (tmp_path / "a.txt").write_text(" ".join(WORDS[:12]) + "\n\nw1 w2\n\n" + " ".join(WORDS[5:17]))
    expected = torch.arange(1, 11)
    assert torch.equal(read_passages(tmp_path / "a.jsonl", subject, 3, 10)[0], expected)
    assert torch.equal(read_passages(tmp_path / "a.txt", subject, 3, 10), torch.stack([expected, expected + 5]))
    with pytest.raises(UserError, match="no passage has 50 tokens"):
        read_passages(tmp_path / "a.txt", subject, 3, 50)
    assert subject.tokenizer is not None and successor_lists(subject.tokenizer) == []


def test_successor_lists_keep_single_tokens_and_wrap_days() -> None:
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    known = ["[unk]", *map(chr, range(ord("A"), ord("Z") + 1)), *map(str, range(1, 10)), *days]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[unk]"))
    lists = successor_lists(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unk]"))
    assert len(lists) == 3  # no spelling with a space, none in small letters, no number of two digits
    found = {tuple(known[token] for token in tokens): pairs for tokens, pairs in lists}
    assert found[tuple(days)] == [(i, (i + 1) % 7) for i in range(7)]
    assert found[tuple(known[1:27])] == [(i, i + 1) for i in range(25)]
    assert found[tuple("123456789")] == [(i, i + 1) for i in range(8)]


def named_pairs(folder: Path) -> Path:
    """Pairs of five words with the roles of IOI."""
    rows = []
    for i in range(24):
        io, s, other = WORDS[i % 8], WORDS[8 + i % 8], WORDS[20 + i % 12]
        clean, corrupted = f"{io} {s} w39 {other} {s} w38", f"w16 w17 w39 {other} w18 w38"
        roles = {"io": [0, len(io)], "s1": s, "s2": [clean.rindex(s), clean.rindex(s) + len(s)]}
        row = {"clean": clean, "corrupted": corrupted, "answer": f" {io}", "wrong_answer": f" {s}", "roles": roles}
        rows.append(row | {"split": ("train", "val", "test")[i % 3]})
    path = folder / "named.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def arguments(local: Path, out: Path, *more: str) -> list[str]:
    return [
        "model=local",
        f"model.path={local}/model",
        "task=jsonl",
        f"task.build.path={local}/pairs.jsonl",
        f"hydra.run.dir={out}",
        "heads.top=1",
        "heads.repeats.length=6",
        "heads.causal.draws=3",
        "heads.passages={count: 3, length: 8, used: 2}",
        *more,
    ]


def test_the_verb_leaves_scores_figure_and_checks(local: Path, tmp_path: Path) -> None:
    named = named_pairs(tmp_path)
    out = tmp_path / "out"
    call(*arguments(local, out, f"task.build.path={named}", "heads.thresholds.copying=-1"), verb="heads")
    assert {"heads.json", "heads.safetensors", "heads.html", "text.jsonl"} <= {p.name for p in out.iterdir()}
    found = json.loads((out / "heads.json").read_text())
    scores = HeadScores.load(out)
    assert scores.details["n_pairs"] == 8 and scores.scores["induction"].shape == (2, 2)
    assert set(found["details"]["causal"]) >= {"induction", "previous_token", "duplicate_token"}
    assert found["details"]["ioi_algorithm"]["shares"]["B"]["share"]["value"] is not None
    texts = [json.loads(line) for line in (out / "text.jsonl").read_text().splitlines()]
    assert len(texts) == 3 and {len(text["ids"]) for text in texts} == {8}
    page = (out / "heads.html").read_text()
    assert "Plotly.newPlot" in page and "previous token" in page and 'src="http' not in page


def test_the_verb_on_another_task_with_a_text_and_a_circuit(local: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(WORDS[i : i + 9]) for i in range(4)))
    circuit = small_circuit()
    circuit.save(tmp_path)
    more = ["heads.scores=[copying,copy_suppression]", f"text={tmp_path}/text.txt", f"heads.circuit={tmp_path}"]
    call(*arguments(local, tmp_path / "out", *more), verb="heads")
    details = HeadScores.load(tmp_path / "out").details
    assert details["circuit"]["heads"] == ["a0.h0"] and "ioi_algorithm" not in details  # type: ignore[index]


@pytest.mark.parametrize(
    "wrong,says",
    [
        ("heads.scores=[indction]", "heads.scores: 'indction' is unknown; choose from repeats"),
        ("heads.causal.ablation=resample", "heads.causal.ablation: 'resample' is unknown; choose from interchange"),
        ("heads.algorithm.parts=A", "heads.algorithm.parts: 'A' is unknown; choose from B, C, D"),
        ("heads.top=3", "heads.top=3 is more than half of the model's heads"),
        ("heads.pairs=0", "heads.pairs=0 is not a whole number"),
        ("heads.repeats.sequences=2", "take at least 16 sequences"),
        ("text=nowhere.txt", "text=nowhere.txt does not exist"),
        ("heads.circuit=nowhere", "not a readable circuit"),
    ],
)
def test_wrong_settings_end_in_one_line(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, says: str
) -> None:
    assert says in failure(capsys, *arguments(local, tmp_path / "out", wrong), verb="heads")
    assert not list((tmp_path / "out").glob("heads.*[!g]"))
