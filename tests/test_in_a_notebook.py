"""What a notebook asks of a result and its circuit, on tiny models in float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import circuitlit
from circuitlit import (
    Ablation,
    Circuit,
    EdgeScores,
    FoundCircuit,
    Graph,
    Method,
    Pairs,
    Schedule,
    TestBed,
    UserError,
    attribute_circuit,
    eap_ig,
    find_circuit,
    kl_divergence,
    load_subject,
    plot_circuit,
    random_circuit,
    reachable_edges,
)
from circuitlit.discover import exact, mask_gradients
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.live import Live
from circuitlit.evaluate.verdict import Bars
from circuitlit.objective import logit_difference
from circuitlit.report.circuit_figure import KINDS
from circuitlit.tasks.pair import Batch

WORDS = [f"w{number}" for number in range(VOCAB - 1)]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}
BARS = Bars(controls=2, max_kl_share=1000.0)


def pairs_of_words() -> Pairs:
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(24):
        length = 3 + number % 4  # prompts of several lengths share a batch
        clean, corrupted = (" ".join(draw.sample(WORDS, length)) for _ in range(2))
        answer, wrong = draw.sample(WORDS, 2)
        split = ("train", "val", "test")[number % 3]
        texts = {"clean": clean, "corrupted": corrupted, "answer": f" {answer}", "wrong_answer": f" {wrong}"}
        rows.append({**texts, "split": split})
    return Pairs.from_list(rows, name="words")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[unk]", *WORDS])}, unk_token="[unk]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unk]")


def live_circuit(name: str, kept: torch.Tensor | float | None = None, ablation: Ablation | None = None) -> Live:
    """Some edges of a tiny model, half of them at random where none are given."""
    bench = prepare_bench(load_subject(tiny_model(name), tokenizer()), pairs_of_words(), 0.5, ablation)
    if not isinstance(kept, torch.Tensor):
        edges = random_circuit(bench.subject.graph, bench.count, 0)
        kept = edges if kept is None else torch.full_like(edges, bool(kept))
    values = torch.linspace(-1, 1, bench.subject.graph.n_edges, dtype=torch.float64)[None]
    return Live(Circuit.of(EdgeScores(bench.subject.graph, values, "test"), kept), bench)


def greedy(live: Live, prompt: str, count: int) -> str:
    """What the stock model goes on with."""
    ids = torch.tensor([tokenizer()(prompt)["input_ids"]])
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": count}
    made: Any = live.bench.subject.model.generate(ids, **settings)  # type: ignore[operator]
    return " " + tokenizer().decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["interchange", "zero", "mean"])
def test_logits_are_those_of_the_evaluation(name: str, kind: Any) -> None:
    live = live_circuit(name, ablation=Ablation(kind))
    pairs = live.bench.data.splits.test
    bed = TestBed.of(live.bench, live.bench.data.test)
    expected, full = (
        torch.cat([logits[:, 0] for logits, _, _ in bed.logits(kept)])
        for kept in (live.circuit.kept, torch.ones_like(live.circuit.kept))
    )
    clean, corrupted = [pair.clean for pair in pairs], [str(pair.corrupted) for pair in pairs]
    found = live.logits(clean, corrupted)
    assert found.dtype == torch.float64 and found.shape == (8, VOCAB)
    torch.testing.assert_close(found, expected, **TIGHT)
    torch.testing.assert_close(live.logits(clean), expected, **TIGHT)  # the pairs know the corrupted prompts
    torch.testing.assert_close(live.logits(clean[3]), expected[3:4], **TIGHT)
    assert float((expected - full).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_with_all_edges_the_model_itself_goes_on(name: str) -> None:
    live = live_circuit(name, 1.0)
    for pair in live.bench.data.splits.test[:3]:
        assert live.generate(pair.clean, max_new_tokens=6) == greedy(live, pair.clean, 6)
    assert len(live.generate("w1 w2", "w3 w4", 5).split()) == 5


def test_without_edges_the_corrupted_prompt_goes_on() -> None:
    live = live_circuit("gpt2", 0.0)
    for pair in live.bench.data.splits.test[:3]:
        assert live.generate(pair.clean, max_new_tokens=6) == greedy(live, str(pair.corrupted), 6)
        assert live.generate(pair.clean, max_new_tokens=6) != greedy(live, pair.clean, 6)


def test_the_models_token_for_an_end_ends_what_is_said() -> None:
    live = live_circuit("gpt2", 1.0)
    prompt = live.bench.data.splits.test[0].clean
    said = live.generate(prompt, max_new_tokens=6).split()
    config = live.bench.subject.model.generation_config
    for end in (tokenizer().convert_tokens_to_ids(said[2]), [tokenizer().convert_tokens_to_ids(said[2]), 0]):
        config.eos_token_id = end
        stopped = live.generate(prompt, max_new_tokens=6)
        assert stopped.split() == said[: said.index(said[2]) + 1] and stopped == greedy(live, prompt, 6)


def test_prompts_that_do_not_fit_are_refused() -> None:
    live = live_circuit("gpt2")
    with pytest.raises(UserError, match="no pair has the prompt 'w1 w2'; give corrupted"):
        live.generate("w1 w2")
    with pytest.raises(UserError, match="prompt 1 has 2 tokens, its corrupted one 1; match them"):
        live.logits(["w1", "w1 w2"], ["w3", "w3"])
    with pytest.raises(UserError, match="2 prompts and 1 corrupted ones"):
        live.logits(["w1", "w1"], "w3")
    with pytest.raises(UserError, match="prompt 0 is empty"):
        live.logits("", "")
    for split in ("new_words", "tset"):
        with pytest.raises(UserError, match=f"no {split} pairs"):
            live.measure(kl_divergence, split)
    with pytest.raises(UserError, match="there is no prompt"):
        live.logits([])
    zero = live_circuit("gpt2", ablation=Ablation("zero"))
    assert zero.generate("w1 w2", max_new_tokens=2) == zero.generate("w1 w2", "w3 w4", 2)


@pytest.mark.parametrize("roles", [(), ("other", "end")])
def test_nodes_edges_and_frame_are_those_of_the_masks(roles: tuple[str, ...]) -> None:
    graph = Graph(3, 4, 2)
    generator = torch.Generator().manual_seed(0)
    shape = (max(1, len(roles)), graph.n_edges)
    values = torch.randn(shape, generator=generator)
    kept = torch.rand(shape, generator=generator) < 0.15
    circuit = Circuit.of(EdgeScores(graph, values, "test", roles, ranks_by_magnitude=True), kept)
    heard = reachable_edges(graph, kept)
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    assert 0 < int(heard.sum()) < int(kept.sum())
    assert circuit.edges() == [name for edge, name in enumerate(names) if heard[:, edge].any()]
    writers = {name.split("->")[0] for name in circuit.edges()}
    assert circuit.nodes() == [node for node in graph.nodes if node in writers]
    frame = circuit.to_frame()
    rows = [(names[edge], roles[row] if roles else None) for row, edge in heard.nonzero().tolist()]
    assert sorted(map(str, zip(frame["edge"], frame["role"] if roles else [None] * len(frame), strict=True))) == sorted(
        map(str, rows)
    )
    assert (frame["writer"] + "->" + frame["reader"]).tolist() == frame["edge"].tolist()
    assert frame["weight"].is_monotonic_decreasing and (frame["weight"] == frame["score"].abs()).all()
    for row in frame.head(5).to_dict("records"):
        copy = roles.index(row["role"]) if roles else 0
        assert row["score"] == pytest.approx(float(values[copy, graph.edge_index(row["edge"])]))
    assert Circuit.of(circuit.scores, torch.zeros_like(kept)).to_frame().empty


@pytest.fixture(scope="module")
def found() -> FoundCircuit:
    subject = load_subject(tiny_model("llama"), tokenizer())
    return attribute_circuit(subject, pairs_of_words(), Method.of(eap_ig, steps=2), 0.8, bars=BARS)


def test_a_metric_of_ones_own_is_measured_as_the_results_own_are(found: FoundCircuit) -> None:
    kl = found.measure(kl_divergence)
    assert found.kl is not None and list(kl.index) == ["circuit", "full", "corrupted"]
    assert kl.loc["circuit"].to_dict() == pytest.approx(found.kl.to_dict())
    assert kl.loc["full", "value"] == pytest.approx(0, abs=1e-6)

    def lead(logits: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
        return logit_difference(logits, batch)

    own = found.measure(lead)
    for name, one in (("circuit", found), ("full", found.full), ("corrupted", found.corrupted)):
        assert one is not None and one.logit_diff is not None
        assert own.loc[name, "value"] == pytest.approx(one.logit_diff.value, abs=1e-5)
    assert len(found.measure(lead, "val").columns) == 5


def test_a_mean_is_no_objective(found: FoundCircuit) -> None:
    """EAP's scores had been a batch's size too small, and its last, smaller batch had weighed as much as the others."""

    def mean(logits: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
        return kl_divergence(logits, teacher, batch).mean()

    bench = found.live.bench
    said = r"mean gives a tensor of shape \[\] for \d+ pairs; let it give each pair's number"
    for function in (eap_ig, mask_gradients, exact):
        with pytest.raises(UserError, match=said):
            bench.score(Method.of(function, mean))
    with pytest.raises(UserError, match=said):
        found.measure(mean)
    with pytest.raises(UserError, match=said):
        bench.ablated(Ablation("optimal", objective=mean, steps=1))


def test_masks_are_trained_on_an_objective_of_ones_own() -> None:
    seen: list[torch.Tensor] = []

    def twice(logits: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch.index)
        return 2 * kl_divergence(logits, teacher, batch)

    def losses(**more: Any) -> list[float]:
        subject = load_subject(tiny_model("gpt2"), tokenizer())
        own = find_circuit(subject, pairs_of_words(), 0.8, schedule=Schedule(3, 0.01), bars=BARS, **more)
        return [row["loss"] for row in own.live.curves]

    plain, doubled = losses(), losses(objective=twice)
    assert seen and doubled[0] == pytest.approx(2 * plain[0], rel=1e-5)


def test_a_plot_shows_the_top_edges_and_names_their_nodes(found: FoundCircuit, tmp_path: Path) -> None:
    circuit = found.live.circuit
    for drawn in (10, 10_000):
        figure = found.plot(drawn)
        lines = [trace for trace in figure.data if trace.meta in KINDS]
        assert sum(trace.x.count(None) for trace in lines) == min(drawn, circuit.n_reachable)
        (nodes,) = [trace for trace in figure.data if trace.mode == "markers+text"]
        top = circuit.to_frame().head(drawn)
        readers = {str(reader).split("<")[0] for reader in top["reader"]}
        heads = {name.replace(".h", ".kv") for name in readers}
        assert set(top["writer"]) <= set(nodes.text) <= set(top["writer"]) | readers | heads
        assert f"the top 10 of {circuit.n_reachable:,} edges" in figure.layout.title.text or drawn > 10
    assert plot_circuit(circuit).layout.title.text == f"all {circuit.n_reachable:,} edges"
    found.save(tmp_path)
    with pytest.raises(UserError, match="not bound to a model"):
        FoundCircuit.load(tmp_path).plot()


def test_what_a_notebook_shows_by_itself_is_short(found: FoundCircuit) -> None:
    circuit, bench = found.live.circuit, found.live.bench
    sizes = f"n_edges={circuit.n_edges}, n_edges_total={circuit.kept.numel()}, n_edges_reachable={circuit.n_reachable}"
    assert repr(circuit) == f"Circuit(method='eap_ig', {sizes})"
    assert repr(bench.data) == "PairsModule(Pairs(name='words', train=8, val=8, test=8, new_words=0))"
    for one in (circuit, circuit.scores, bench, bench.subject, bench.data.splits, found, found.live):
        assert len(repr(one)) < 1500 and "tensor" not in repr(one) and "(0): " not in repr(one)
    assert circuitlit.plot_circuit is plot_circuit
