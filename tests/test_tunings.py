"""Ways to tune compared at one score: which checkpoints, figures by hand, and the verb on three runs."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from test_compare import bench_of
from transformers import AutoModelForCausalLM

from circuitlit.compare import tunings, ways, weight_changes
from circuitlit.compare.likeness import attention_change, likenesses
from circuitlit.compare.matched_checkpoints import checkpoint_scores, common_level, nearest_step, run_names
from circuitlit.compare.tunings import ScoreFigures, TuningComparison, compare_tunings
from circuitlit.compare.ways import way_overlap
from circuitlit.compare.weight_figures import Reach, fewest, node_changes
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import TESTS
from circuitlit.evaluate.testing import with_holm
from circuitlit.graph import EdgeScores, Graph
from circuitlit.model import Subject
from circuitlit.objective import negative_metric
from circuitlit.report.tunings import way_sentences


def test_checkpoints_are_matched_on_the_score_that_all_reach() -> None:
    series = {"a": {0: 0.1, 5: 0.5, 10: 0.9}, "b": {0: 0.62, 5: 0.4, 10: 0.6}}
    assert common_level(series) == 0.62
    assert [nearest_step(name, series[name], 0.62) for name in "ab"] == [5, 10]
    with pytest.raises(UserError, match="no checkpoint but that of step 0"):
        nearest_step("c", {0: 0.1}, 0.5)


def test_figures_of_a_change_by_hand() -> None:
    assert fewest({0: 0.1, 1: 0.6, 2: 0.3}, 0.8) == [1, 2] and fewest({0: 0.0, 1: 0.0}, 0.8) == []
    base, model = Subject(tiny_model("llama")), tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.1)
    figures = Reach.of(list(weight_changes(base, Subject(model))))
    assert (figures.modules, figures.layers, figures.layers_80) == (1, 1, [1])
    assert figures.effective_rank == pytest.approx(1, abs=1e-6) and figures.gini == pytest.approx(2 / 3)
    none = Reach.of(list(weight_changes(base, base)))
    assert (none.relative, none.unchanged, none.modules, none.layers_80) == (0, 1, 0, [])
    graph = Graph(1, 1, 1)
    one = torch.zeros(1, graph.n_edges)
    one[0, 2] = -3.0
    found = ScoreFigures.of(EdgeScores(graph, one, "by hand"))
    assert found.intensity == pytest.approx(3 / graph.n_edges) and found.entropy == 0
    even = ScoreFigures.of(EdgeScores(graph, torch.ones(1, graph.n_edges), "by hand"))
    assert even.entropy == pytest.approx(1) and even.kurtosis is None


def test_attention_of_a_pair_is_the_mean_over_its_heads() -> None:
    base, other, batch = Subject(tiny_model("llama")), Subject(tiny_model("llama", seed=2)), tiny_batch()
    found = attention_change(base, other, [batch])
    heads = [node.attention for node in likenesses(base, other, [batch]).values() if node.attention is not None]
    assert found is not None and float(found.mean()) == pytest.approx(sum(heads) / len(heads))
    same = attention_change(base, Subject(tiny_model("llama")), [batch])
    assert same is not None and float(same.abs().max()) < 1e-12


def run_folders(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Folders of runs with three checkpoints, each run with higher scores than the one before."""
    runs = {name: folder / name for name in names}
    for number, run in enumerate(runs.values()):
        (run / "checkpoints").mkdir(parents=True)
        rows = [{"step": step, "metrics": {"metric": step / 10 + number}} for step in (0, 5, 10)]
        (run / "checkpoints" / "checkpoints.json").write_text(json.dumps({"checkpoints": rows}))
    return runs


def test_runs_are_compared_from_python(local: Path, tmp_path: Path) -> None:
    base, runs = bench_of(local), run_folders(tmp_path, ["one", "other"])
    loaded: list[str] = []

    def load(name: str, folder: Path) -> Workbench:
        loaded.append(f"{name}/{folder.name}")
        return bench_of(local, torch.Generator().manual_seed(len(loaded)))

    text = torch.arange(12).view(2, 6)
    result = compare_tunings(base, runs, load, Method.of(eap, negative_metric), text)
    assert loaded == ["one/step_000010", "other/step_000005"] and result.level == 1.0
    result.save(tmp_path)
    assert TuningComparison.load(tmp_path) == result and list(result.to_frame()["run"]) == ["one", "other"]
    assert all(run.text_kl.value for run in result.runs.values()) and result.pairs[0].of == ["one", "other"]
    with pytest.raises(UserError, match="at least two"):
        compare_tunings(base, {"one": runs["one"]}, load, Method.of(eap, negative_metric), text)
    copies = run_folders(tmp_path, ["sft 1", "sft 2"])  # one seed twice would be two seeds of one way
    with pytest.raises(UserError, match="sft 2 is the very model of sft 1"):
        compare_tunings(base, copies, lambda *_: bench_of(local), Method.of(eap, negative_metric), text)


def test_runs_without_readable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoints.json").write_text('{"checkpoints": []}')
    with pytest.raises(UserError, match="no checkpoints with validation metric"):
        checkpoint_scores(tmp_path, "metric")
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        run_names([str(tmp_path)])


def test_runs_of_other_settings_are_no_seeds_of_one_way(tmp_path: Path) -> None:
    for number, (lr, every) in enumerate([(0.1, 5), (0.1, 0), (0.2, 5)]):
        (tmp_path / str(number)).mkdir()
        settings = {"tune": {"name": "sft", "lr": lr, "probe_every": every}, "adapter": {"build": {"r": 8}}}
        result = {"tune": "sft", "adapter": "lora", "provenance": settings | {"seed": number}}
        (tmp_path / str(number) / "result.json").write_text(json.dumps(result))
    runs = [str(tmp_path / str(number)) for number in range(3)]
    assert list(run_names(runs)) == ["sft lora lr=0.1 1", "sft lora lr=0.1 2", "sft lora lr=0.2"]
    assert list(run_names(runs[:2])) == ["sft lora 1", "sft lora 2"]


def test_chance_is_drawn_often_enough_for_every_claim(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def few(comparisons: int, others: int = 0) -> int:
        planned.append(TESTS * comparisons + others)
        return 20

    def claims(node: object) -> int:
        if isinstance(node, dict):
            return (node.get("rank_p") is not None) + sum(map(claims, node.values()))
        return sum(map(claims, node)) if isinstance(node, list | tuple) else 0

    monkeypatch.setattr(tunings, "draws_for", few)
    monkeypatch.setattr(ways, "FEWEST", 3)
    runs = run_folders(tmp_path, ["sft 1", "sft 2", "dpo 1", "dpo 2"])
    makers = {name: torch.Generator().manual_seed(number) for number, name in enumerate(runs)}
    text = torch.arange(12).view(2, 6)
    result = compare_tunings(
        bench_of(local), runs, lambda name, _: bench_of(local, makers[name]), Method.of(eap, negative_metric), text
    )
    assert result.ways["edges"].rank_p is not None
    assert claims(asdict(result)) == planned[0] == 32


def stays(shared: dict) -> bool:
    return shared["gap"]["p_holm"] < 0.05 and shared["gap"]["within"] < shared["gap"]["between"]


@pytest.mark.slow
def test_the_verb_compares_ways_to_tune(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["logger=none", "tune.steps=6", "tune.checkpoints=[0,2,6]", "tune.lr=1e-2", "tune.probe_every=0"]
    more = {"sft": ["adapter=lora"], "full": ["adapter=none", "tune.freeze=[a0.h1,m1]"]}
    for name, own in more.items():
        call(*settings(local, tmp_path / name, *common, *own), verb="finetune")
    fast = ["logger=none", "sparsity.target=0.6", "method.score.steps=1", "compare.text={passages: 2, length: 8}"]
    runs = f"runs=[{tmp_path}/sft,{tmp_path}/full]"
    call(*settings(local, tmp_path / "out", *fast, runs), verb="compare")
    result = json.loads((tmp_path / "out" / "tunings.json").read_text())
    assert set(result["runs"]) == {"sft lora", "sft full"} and len(result["pairs"]) == 1
    lora, full = (result["runs"][f"sft {kind}"]["weights"] for kind in ("lora", "full"))
    assert lora["modules"] > 0 and full["modules"] < full["of_modules"]
    kept = result["runs"]["sft full"]["from_base"]["edges"]["retained"]["value"]
    assert kept is None or kept <= 1.2
    shared = [run["from_base"] for run in result["runs"].values()] + result["pairs"]
    claims = [part["p_holm"] for one in shared for part in (one["nodes"], one["edges"], one["gap"])]
    assert len(claims) == 9 and all(0 < p <= 1 for p in claims)
    page = (tmp_path / "out" / "tunings.html").read_text()
    assert "Gini" in page and ("Nodes stay while" in page) == any(map(stays, shared))
    kept = Subject(AutoModelForCausalLM.from_pretrained(tmp_path / "full" / "tuned"))
    base = Subject(AutoModelForCausalLM.from_pretrained(local / "model"))
    moved = node_changes(list(weight_changes(base, kept)))
    assert {node for node, change in moved.items() if change == 0} == {"a0.h1", "m1"}
    frozen = settings(local, tmp_path / "bad", *common, "adapter=lora", "tune.freeze=[a0.h1]")
    words = failure(capsys, *frozen, verb="finetune")
    assert "tune.freeze needs adapter=none" in words
    words = failure(capsys, *settings(local, tmp_path / "bad", *fast, f"runs=[{local},{local}/model]"), verb="compare")
    assert "has no checkpoints with validation metric" in words


def test_two_ways_are_told_from_seeds_where_they_differ_and_only_there() -> None:
    names = ["sft"] * 3 + ["dpo"] * 3 + ["grpo"] * 3
    pairs = list(itertools.combinations(range(9), 2))
    apart = way_overlap(names, {(a, b): 0.9 if names[a] == names[b] else 0.5 for a, b in pairs})
    assert apart is not None and apart.groupings == 280 and apart.rank_p == 1 / 280  # 9! / (3!^3 3!)
    assert apart.within == pytest.approx({"sft": 0.9, "dpo": 0.9, "grpo": 0.9}) and len(apart.between) == 3
    assert apart.difference == pytest.approx(0.4)
    draw, found = random.Random(0), []
    for _ in range(60):
        alike = way_overlap(names, {pair: draw.random() for pair in pairs})
        assert alike is not None and alike.rank_p is not None
        found.append(alike.rank_p)
    assert sum(p <= 0.05 for p in found) <= 8  # binomial: more than 8 of 60 has a chance below .005
    assert way_overlap(["sft", "sft", "dpo"], dict.fromkeys(itertools.combinations(range(3), 2), 0.5)) is None
    few = way_overlap(["sft", "sft", "dpo", "dpo"], {pair: 0.5 for pair in itertools.combinations(range(4), 2)})
    assert few is not None and few.groupings == 3 and few.rank_p is None
    least = way_overlap(["sft"] * 4 + ["dpo"] * 4, dict.fromkeys(itertools.combinations(range(8), 2), 0.5))
    assert least is not None and least.groupings == 35 and least.rank_p is None  # two claims of 1 / 35 never reach .05


def test_of_very_many_dealings_some_are_tried() -> None:
    """Five seeds of four ways have 488,864,376."""
    names = [f"way {number}" for number in range(4) for _ in range(5)]
    pairs = list(itertools.combinations(range(20), 2))
    apart = way_overlap(names, {(a, b): 0.9 if names[a] == names[b] else 0.5 for a, b in pairs})
    assert apart is not None and apart.groupings == ways.MOST and apart.rank_p == 1 / ways.MOST
    said = way_sentences(SimpleNamespace(ways={"edges": replace(apart, p_holm=0.001)}))[0]  # type: ignore[arg-type]
    assert "among 20,000 random dealings" in said
    draw = random.Random(0)
    same = way_overlap(names, {pair: draw.random() for pair in pairs})
    assert same is not None and same.rank_p is not None and same.rank_p > 0.05


def test_too_few_runs_are_not_called_alike() -> None:
    names = ["sft"] * 5 + ["dpo"] * 5
    overlaps = {(a, b): 0.9 if names[a] == names[b] else 0.5 for a, b in itertools.combinations(range(10), 2)}
    own = way_overlap(names, overlaps)
    assert own is not None and own.groupings == 126 and own.rank_p == pytest.approx(1 / 126)

    def said(**changed: float | None) -> str:
        return way_sentences(SimpleNamespace(ways={"edges": replace(own, **changed)}))[0]  # type: ignore[arg-type]

    alone = with_holm({"nodes": own, "edges": own})["edges"]
    real = said(p_holm=alone.p_holm)
    assert "Edges: two seeds of one way share more" in real and "p = 0.016 among all 126" in real
    assert "Edges: too few runs to tell whether" in said(p_holm=0.3) and "p = 0.300 among" in said(p_holm=0.3)
    assert "do not share more than runs of two ways beyond doubt" in said(rank_p=2 / 126, p_holm=0.3)
    assert "too few runs" in said(rank_p=None, p_holm=None) and "not tested with all 126" in said(rank_p=None)
