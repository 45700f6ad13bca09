"""The tuning story, ranks by layer, and tuning of a circuit alone, on tiny models."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cli import call, failure, move_weights, settings, swap_prompts, write_local
from conftest import tiny_model
from transformers import AutoModelForCausalLM

from circuitlit.compare.layers import (
    changed_layers,
    circuit_layers,
    layer_nodes,
    spread_over_layers,
    top_layers,
    union_layers,
)
from circuitlit.compare.rank_patterns import RankedTuning, RankMakers, RankSettings, _summary, compare_rank_patterns
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.finetune import adapted, examples_of_task, lora
from circuitlit.finetune.guided_ranks import gradient_probe, rank_patterns, spread_ranks
from circuitlit.finetune.only import train_only
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.report.guided import _verdict, write_guided
from circuitlit.report.suggestions import suggestions
from circuitlit.run import story
from circuitlit.tasks import jsonl
from circuitlit.timeline.story import TuningStory
from circuitlit.timeline.telling import Once

STORY = [
    "method=eap",
    "callbacks=none",
    "logger=none",
    "tune.steps=24",
    "tune.checkpoints=[0,1,3,6,12,24]",
    "tune.score=metric",
    "tune.probe_every=0",
    "+story.ways=[{name:lora,with:['adapter=lora','adapter.lr=2e-2']},"
    "{name:full,with:['adapter=none','adapter.lr=5e-3']}]",
    "+story.circuit_pairs=6",
    "+story.probe_pairs=6",
    "+story.test_pairs=12",
    "+story.smallest=false",
    "+story.passages={count:4,length:8}",
    "+story.layers=[1]",
    "+story.draws=20",
    "+story.pairs=12",
    "+story.text=null",
    "+story.with={intervene:{candidates:2,edges:2,steps:[1],doses:[0,1],pairs:6,control_pairs:6,size:2},"
    "evolve:{resamples:2}}",
]


@pytest.mark.slow
def test_a_story_is_told(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, *STORY), verb="finetune")
    story = json.loads((tmp_path / "story.json").read_text())
    assert list(story["ways"]) == ["lora", "full"] and story["between"]["ways"] == ["lora", "full"]
    for name, way in story["ways"].items():
        assert [row["step"] for row in way["timeline"]["rows"]] == [0, 1, 3, 6, 12, 24]
        whole, *rows = way["layers"]
        assert whole["layers"] == [0, 1] and {row["ranking"] for row in rows} == {
            "circuit difference",
            "base circuit",
            "weight change",
        }
        if name == "lora":  # nothing is trained outside the layers
            assert whole["gain_share"]["value"] == pytest.approx(1, abs=1e-3)
        for part in ("tune/result.json", "evolve/evolve.html", "compare/compare.html", "intervene/intervene.html"):
            assert (tmp_path / name / part).is_file()
        assert way["held_out"]["accuracy_tuned"] == way["tuning"]["held_out"]["accuracy_tuned"]
    page, result = (tmp_path / "story.html").read_text(), TuningStory.load(tmp_path)
    assert all(heading in page for heading, _ in suggestions(result)) and "What to freeze" in page
    turnovers = [way["difference"]["turnover"] for way in story["ways"].values()]
    assert page.count("base and tuned model: Jaccard") == 2 and all(one["gap"]["p_holm"] > 0 for one in turnovers)
    assert (story["status"] == "FAILED") == any(way["tuning"]["reason"] for way in story["ways"].values())
    # A story that was stopped goes on: what is there is not made again.
    (tmp_path / "parts" / "full_nodes.json").unlink()
    call(*settings(local, tmp_path, *STORY), verb="finetune")
    again = json.loads((tmp_path / "story.json").read_text())
    assert list(again["seconds_by_phase"]) == ["full_nodes"]
    assert again["ways"] == story["ways"] and again["between"] == story["between"]


@pytest.mark.long
def test_a_story_is_kept_for_the_same_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, told = write_local(tmp_path / "local"), []

    def tell(*_: object, once: Once, **__: object) -> None:
        once("part", "a part", lambda: told.append("anew") or {"found": 1}, dict[str, int])
        raise UserError("enough")

    monkeypatch.setattr(story, "tell_story", tell)
    for times, change in ((1, None), (1, None), (2, move_weights), (2, None)):
        _ = change and change(local / "model")
        with pytest.raises(SystemExit):
            call(*settings(local, tmp_path / "out", *STORY), verb="finetune")
        assert len(told) == times


def test_layers_of_edges_by_hand() -> None:
    graph = Graph(2, 1, 1)
    edges = torch.zeros(graph.n_edges, dtype=torch.float64)
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    edges[names.index("input->a0.h0<q>")] = 1.0  # the reader's layer gets it all
    edges[names.index("a0.h0->m1")] = 2.0  # half each
    edges[names.index("m1->logits")] = 3.0  # the writer's layer
    edges[names.index("input->logits")] = 9.0  # in no layer
    assert spread_over_layers(graph, edges).tolist() == pytest.approx([2 / 6, 4 / 6])
    scores = EdgeScores(graph, -edges[None].float(), "by hand", ranks_by_magnitude=True)
    circuit = Circuit.cut(scores, 4)
    assert circuit_layers(circuit).tolist() == pytest.approx([2 / 6, 4 / 6])
    assert changed_layers(circuit, circuit).tolist() == [0, 0]
    assert top_layers(torch.tensor([0.2, 0.5, 0.3]), 2) == [1, 2] and layer_nodes(graph, [1]) == ["a1.h0", "m1"]


def test_ranks_add_up_and_follow_the_shares() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        shares = torch.rand(12, generator=draw) ** 4
        ranks = spread_ranks(shares, 8)
        assert sum(ranks) == 96 and min(ranks) >= 1 and max(ranks) <= 32
        order = shares.argsort().tolist()
        assert all(ranks[a] <= ranks[b] for a, b in pairwise(order))
    assert spread_ranks([0.0, 0.0, 0.0], 4) == [4, 4, 4] and spread_ranks([1.0, 0.0, 0.0], 4) == [10, 1, 1]
    assert spread_ranks([1.0] + [0.0] * 9, 4) == [16, 3, 3, 3, 3, 3, 3, 2, 2, 2]


def test_ranks_by_layer_train_as_many_parameters_as_uniform_ones() -> None:
    counts = {}
    for name, ranks in {"uniform": [4, 4, 4], "spread": [9, 2, 1]}.items():
        subject = Subject(tiny_model("llama"))
        pattern, alphas = rank_patterns(subject.anatomy, ranks, 2.0)
        config = lora(subject.model, 1, r=4, alpha=8, rank_pattern=pattern, alpha_pattern=alphas)
        model = adapted(subject.model, config)
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        got = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
        assert all(m.r["default"] == ranks[int(n.split("layers.")[1][0])] for n, m in got.items())
        assert {m.scaling["default"] for m in got.values()} == {2.0}
    assert counts["uniform"] == counts["spread"]


def test_layers_of_a_union_of_circuits_by_hand() -> None:
    """An edge of both circuits weighs the mean of its two shares, one of a single circuit its own."""
    graph = Graph(2, 1, 1)

    def circuit(**weights: float) -> Circuit:
        values = torch.zeros(1, graph.n_edges)
        for name, weight in weights.items():
            values[0, graph.edge_index({"low": "input->m0", "high": "m1->logits", "both": "input->m1"}[name])] = weight
        return Circuit.cut(EdgeScores(graph, values, "by hand"), len(weights))

    one, other = circuit(low=1.0, both=3.0), circuit(high=1.0, both=1.0)
    union = union_layers([one, other])  # two edges: both, (3/4 + 1/2) / 2, and high, 1/2
    torch.testing.assert_close(union, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(union_layers([one, one]), circuit_layers(one))


def test_the_gradient_probe_sees_where_the_gradient_is(local: Path) -> None:
    subject = load_subject(local / "model", name="tiny")
    examples = examples_of_task(jsonl(subject.tokenizer, str(local / "pairs.jsonl"), seed=0), subject.tokenizer)
    batch = examples["train"].collate(range(8))
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    config = lora(subject.model, 1, r=2)
    shares = gradient_probe(subject, [batch], config)
    assert float(shares.sum()) == pytest.approx(1) and bool((shares > 0).all())
    after = subject.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


def test_only_the_circuits_weights_move(local: Path, tmp_path: Path) -> None:
    subject = load_subject(local / "model", name="tiny")
    graph = subject.graph
    kept = torch.zeros(1, graph.n_edges, dtype=torch.bool)
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    for edge in ("input->a1.h0<v>", "a1.h0->logits", "input->m0", "m0->logits"):
        kept[0, names.index(edge)] = True
    (tmp_path / "circuit").mkdir()
    Circuit.of(EdgeScores(graph, kept.float(), "by hand"), kept).save(tmp_path / "circuit")
    more = ["tune.steps=3", f"tune.circuit={tmp_path}/circuit", "adapter.lr=1e-2", "callbacks=none", "logger=none"]
    call(*settings(local, tmp_path / "run", *more), verb="finetune")
    folders = (local / "model", tmp_path / "run" / "tuned")
    base, tuned = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    stem = "transformer.h."
    assert moved == {f"{stem}1.attn.c_attn.weight", f"{stem}1.attn.c_attn.bias", f"{stem}1.attn.c_proj.weight"} | {
        f"{stem}0.mlp.{part}" for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")
    } | {f"{stem}0.ln_2.weight", f"{stem}0.ln_2.bias"}
    out = (base[f"{stem}1.attn.c_proj.weight"] != tuned[f"{stem}1.attn.c_proj.weight"]).any(1)
    assert out.tolist() == [True] * 8 + [False] * 8
    subject.model.requires_grad_(False)
    assert train_only(subject, ["m1"]) == sum(p.numel() for p in subject.model.transformer.h[1].mlp.parameters()) + 32


def shifted_by_seed(seeds: list[int]) -> RankComparison:
    """Ways that differ by what each seed adds to all pairs, and by little else."""
    shifts = {"uniform": (0.0, 0.0), "gradient_probe": (0.3, 0.1)}

    def tune(way: str, seed: int, ranks: list[int] | None) -> RankedTuning:
        metric = [shifts[way][seed] + 0.01 * (pair % 3) for pair in range(40)]
        group, zeros = [pair // 10 for pair in range(40)], [0.0] * 40
        return RankedTuning(
            task="t", model="m", steps=1, ranks=ranks, n_trained=10, accuracy=zeros, metric=metric, group=group
        )

    makers = RankMakers(2, tune, lambda *_: pytest.fail("no circuit is needed"), lambda *_: torch.tensor([1.0, 2.0]))
    return compare_rank_patterns(makers, RankSettings(list(shifts), rank=2, seeds=seeds), score="metric")


def test_ways_are_told_apart_beyond_seeds_or_not_at_all(tmp_path: Path) -> None:
    one, two = shifted_by_seed([0]), shifted_by_seed([0, 1])
    for result in (one, two):
        assert result.ways["gradient_probe"].minus["uniform"].low > 0  # over pairs and these seeds alone
        page = write_guided(result, tmp_path).read_text()
        assert "better than uniform" not in page.replace("no better than uniform", "")
        assert ("none: one seed" in page) == (result is not two) == ("there is no verdict" in page)
        assert ("held-out pairs and seeds" in page) == (result is two)
    assert two.ways["gradient_probe"].minus["uniform"].bounds[0] < 0
    assert _verdict(Estimate(1.0, 0.5, 1.5, 0.1, 1.9), True) == "better than uniform"
    assert _verdict(Estimate(-1.0, -1.5, -0.5, -1.9, -0.1), True) == "worse than uniform"


@pytest.mark.long
def test_verdicts_hold_for_all_ways_together() -> None:
    """Of five ways that are no better than uniform ranks, some looked better or worse in a fifth of all comparisons."""
    ways, wrong = ["uniform", "gradient_probe", "base_circuit", "circuit_difference", "random_layers"], 0
    for number in range(200):
        draw = torch.Generator().manual_seed(number)
        runs = {}
        for way in ways:
            seeds = [(torch.randn(30, generator=draw) + torch.randn(1, generator=draw)).tolist() for _ in range(6)]
            facts = {"task": "t", "model": "m", "steps": 1, "ranks": [1], "n_trained": 10}
            runs[way] = [RankedTuning(**facts, accuracy=own, metric=own, group=list(range(30))) for own in seeds]
        found = [_summary(way, runs, "metric").minus["uniform"] for way in ways[1:]]
        wrong += any(_verdict(one, True) != "no better than uniform" for one in found)
    assert wrong <= 18  # binomial: more than 18 of 200 has a chance of .005 at a rate of .05


@pytest.mark.slow
def test_the_verb_spreads_ranks_and_compares(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["tune.steps=4", "guided.rank=2", "guided.seeds=[0,1]", "guided.circuit_pairs=8", "tune.score=metric"]
    more += ["method=eap", "logger=none", "callbacks=none"]
    ways = "guided.ways=[uniform,circuit_difference,base_circuit,random_layers]"
    call(*settings(local, tmp_path, *more, ways), verb="guided")
    result = json.loads((tmp_path / "guided.json").read_text())
    assert list(result["ways"]) == list(result["settings"]["ways"])
    for name, way in result["ways"].items():
        assert way["of_uniform"] == 1
        assert len(way["by_seed"]) == 2 and ("uniform" in way["minus"]) == (name != "uniform")
    assert all(sum(ranks) == 4 for ranks in result["ranks"].values())
    assert "no better than uniform" in (tmp_path / "guided.html").read_text() or any(
        abs(way["minus"]["uniform"]["low"]) > 0 for name, way in result["ways"].items() if name != "uniform"
    )
    tuned = tmp_path / "uniform-seed0" / "guided.json"
    more.append("guided.ways=[uniform]")
    for setting, same in (("guided.circuit_pairs=9", True), ("adapter.lr=1e-3", False), ("data.batch_size=2", False)):
        before = tuned.stat().st_mtime_ns
        more.append(setting)
        call(*settings(local, tmp_path, *more), verb="guided")
        assert (tuned.stat().st_mtime_ns == before) == same, setting
    more[-3:] = ["guided.ways=[uniform,adalora]", "guided.adalora_lr=0.02"]
    call(*settings(local, tmp_path, *more, "adapter.lr=1e-3"), verb="guided")
    tuned_with = [json.loads((tmp_path / f"{way}-seed0" / "result.json").read_text()) for way in ("uniform", "adalora")]
    assert [float(run["provenance"]["adapter"]["lr"]) for run in tuned_with] == [1e-3, 0.02]
    assert "must begin with uniform" in failure(
        capsys, *settings(local, tmp_path / "no", *more, "guided.ways=[adalora]"), verb="guided"
    )


@pytest.mark.long
def test_a_tuning_is_kept_only_for_the_same_weights_and_pairs(tmp_path: Path) -> None:
    local, out = write_local(tmp_path / "local"), tmp_path / "out"
    more = ["tune.steps=1", "guided.rank=2", "guided.seeds=[0]", "tune.score=metric", "guided.ways=[uniform]"]
    stamps = []
    for change in (None, None, swap_prompts, move_weights):
        if change is not None:
            change(local / ("model" if change is move_weights else "pairs.jsonl"))
        call(*settings(local, out, *more, "logger=none", "callbacks=none"), verb="guided")
        stamps.append((out / "uniform-seed0" / "guided.json").stat().st_mtime_ns)
    assert stamps[0] == stamps[1] < stamps[2] < stamps[3]


@pytest.mark.long
def test_ranks_from_the_union_of_two_parts_circuits(local: Path, tmp_path: Path) -> None:
    more = ["tune.steps=2", "guided.rank=2", "guided.seeds=[0]", "guided.circuit_pairs=8", "tune.score=metric"]
    parts = 'guided.subtasks=["task.build.seed=1 task.min_accuracy=0","task.build.seed=2 task.min_accuracy=0"]'
    ways = "guided.ways=[uniform,union_circuit,random_layers]"
    call(*settings(local, tmp_path, *more, "method=eap", "logger=none", "callbacks=none", ways, parts), verb="guided")
    found = json.loads((tmp_path / "guided.json").read_text())
    assert list(found["ways"]) == ["uniform", "union_circuit", "random_layers"]
    assert sum(found["ranks"]["union_circuit"]) == sum(found["ranks"]["uniform"])
    assert {way["n_trained"] for way in found["ways"].values()} == {found["ways"]["uniform"]["n_trained"]}
