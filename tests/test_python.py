"""The verbs as Python functions: no Hydra, no run directory; results save and load themselves."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal

from circuitlit import (
    AttributionTimes,
    Capabilities,
    Circuit,
    FoundCircuit,
    Graph,
    HeadScores,
    HeadSettings,
    MaskLayout,
    MaskTimeline,
    MemoryPlans,
    Method,
    MethodStudy,
    Pairs,
    PairsModule,
    PromptComparison,
    PrunedModel,
    RankComparison,
    RankedTuning,
    RankMakers,
    RankSettings,
    Schedule,
    StepShape,
    StepTimes,
    StudySettings,
    TimelineAgreement,
    TunedModel,
    UserError,
    Workbench,
    attribute_circuit,
    compare_capabilities,
    compare_methods,
    compare_prompts,
    compare_rank_patterns,
    compare_timelines,
    eap,
    eap_ig,
    evaluate_circuit,
    find_circuit,
    finetune_model,
    follow_masks,
    learn_masks,
    load_subject,
    measure_behaviour,
    plan_memory,
    prune_model,
    score_heads,
    time_attribution,
    time_training,
)
from circuitlit.discover import random_scores
from circuitlit.evaluate.ability import Ability
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.study.cells import Match
from circuitlit.evaluate.verdict import Bars
from circuitlit.files import json_types
from circuitlit.finetune import examples_of_task, lora
from circuitlit.finetune.guided_ranks import rank_patterns
from circuitlit.graph import EdgeScores
from circuitlit.heads.head_settings import CausalChecks, Repeats
from circuitlit.objective import negative_metric
from circuitlit.report import write_page
from circuitlit.timeline import Snapshots


def test_in_python_a_circuit_is_found_saved_and_loaded(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    own = Pairs.from_list(rows)
    schedule, bars = Schedule(8, 0.3), Bars(controls=3, max_kl_share=1000.0)
    found = find_circuit(local / "model", own, 0.8, schedule=schedule, bars=bars)
    live = found.live
    assert found.steps == 8 and found.n_edges == live.circuit.n_edges and len(live.curves) == 8
    assert found.kl is not None and found.kl.value is not None and found.kl.value > 0.01
    found.save(tmp_path)
    live.save(tmp_path)
    assert FoundCircuit.load(tmp_path) == found and torch.equal(Circuit.load(tmp_path).kept, live.circuit.kept)
    assert {"circuit", "full", "corrupted", "random"} <= set(found.to_frame()["circuit"])
    assert repr(found).startswith("FoundCircuit(") and len(repr(found)) < 500
    assert "<table" in found._repr_html_() and write_page(tmp_path).stat().st_size > 10_000
    whole_model, small = live.bench.subject, tmp_path / "small"
    pruned = prune_model(whole_model, live.circuit, live.bench.data, small, torch.randint(1, 40, (3, 8)))
    pruned.save(small)
    assert PrunedModel.load(small) == pruned and pruned.beside_ablated.max_logit_difference < 1e-3
    with pytest.raises(UserError, match="not bound to a model"):
        _ = FoundCircuit.load(tmp_path).live
    whole = replace(live, circuit=Circuit.of(live.circuit.scores, torch.ones_like(live.circuit.kept)))
    clean, corrupted = ([row[key] for row in rows[:2]] for key in ("clean", "corrupted"))
    ids = [live.bench.subject.tokenizer(text)["input_ids"] for text in clean]  # type: ignore[misc]
    stock = live.bench.subject.logits(torch.tensor(ids), torch.tensor([[5], [5]]))[:, 0]
    torch.testing.assert_close(whole.logits(clean, corrupted), stock, rtol=1e-4, atol=1e-4)


def test_in_python_a_method_is_cut_and_evaluated(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    subject, bars = load_subject(local / "model"), Bars(controls=3)
    found = attribute_circuit(subject, Pairs.from_list(rows), Method.of(eap_ig, steps=2), 0.8, bars=bars)
    again = evaluate_circuit(found.live.bench, found.live.circuit, knockouts=2, parts=2, ablation_pairs=4, bars=bars)
    assert again.kl == found.kl and again.curve is not None and again.completeness is not None
    again.save(tmp_path)
    assert FoundCircuit.load(tmp_path) == again
    asked = measure_behaviour(subject, {"own": found.live.bench.data}, splits=("train", "test"))
    asked.save(tmp_path)
    assert Ability.load(tmp_path) == asked and len(asked.to_frame()) == 2


def test_in_python_heads_are_scored(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    subject = load_subject(local / "model")
    assert subject.tokenizer is not None
    data = PairsModule(Pairs.from_list(rows), subject.tokenizer, 8, 0)
    found = score_heads(subject, data, HeadSettings(top=1, repeats=Repeats(length=6), causal=CausalChecks(draws=3)))
    found.save(tmp_path)
    again = HeadScores.load(tmp_path)
    assert again.details == json_types(found.details)
    assert_frame_equal(again.to_frame()[list(found.to_frame())], found.to_frame(), check_dtype=False)
    assert list(found.to_frame()["head"]) == ["a0.h0", "a0.h1", "a1.h0", "a1.h1"] and "induction" in repr(found)
    with pytest.raises(UserError, match="choose from"):
        HeadSettings(scores=["inductions"])


def test_in_python_a_model_is_tuned(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    subject = load_subject(local / "model")
    assert subject.tokenizer is not None
    examples = examples_of_task(Pairs.from_list(rows), subject.tokenizer)
    found = finetune_model(subject, examples, steps=4, lr=1e-2, folder=tmp_path)
    found.save(tmp_path)
    assert TunedModel.load(tmp_path) == found and found.adapter == "full" and len(found.to_frame()) == 2
    assert found.held_out.kl.value and {"tuned", "history.json"} <= {path.name for path in tmp_path.iterdir()}
    assert torch.equal(load_subject(tmp_path / "tuned").embed.weight, found.module.get_input_embeddings().weight)  # type: ignore[operator]
    with pytest.raises(UserError, match="none of sft"):
        finetune_model(subject, examples, "sfd")


def test_in_python_capabilities_are_compared(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    base, tuned = load_subject(local / "model"), load_subject(local / "model")
    assert base.tokenizer is not None
    with torch.no_grad():
        tuned.embed.weight.add_(0.5 * torch.randn_like(tuned.embed.weight))  # type: ignore[union-attr,operator]
    data = PairsModule(Pairs.from_list(rows), base.tokenizer, 8, 0)
    found = compare_capabilities(base, tuned, {"own": data}, draws=20)
    found.save(tmp_path)
    assert Capabilities.load(tmp_path) == found and list(found.to_frame()["task"]) == ["own"]


def test_nodes_of_a_gain_are_chosen_on_pairs_of_all_sentences(local: Path) -> None:
    """The first half of the validation pairs is of one sentence; the answers are what the tuned model says."""
    base, tuned = load_subject(local / "model"), load_subject(local / "model")
    assert base.tokenizer is not None
    with torch.no_grad():
        tuned.embed.weight.copy_(tuned.embed.weight.roll(1, 0))  # type: ignore[union-attr,operator]
    draw, rows, words = random.Random(0), [], [f"w{number}" for number in range(40)]
    while len(rows) < 36:
        clean, corrupted = (" ".join(draw.sample(words, 5)) for _ in range(2))
        ids = torch.tensor([base.tokenizer(clean)["input_ids"]])
        said = [f" {base.tokenizer.decode(int(one.model(ids).logits[0, -1].argmax()))}" for one in (tuned, base)]
        split = ("val", "test", "train")[len(rows) // 12]
        group = f"{split}{max(5, len(rows) % 12)}"
        row = {"clean": clean, "corrupted": corrupted, "answer": said[0], "wrong_answer": said[1]}
        if len({*said, " [unk]"}) == 3:
            rows.append(row | {"split": split, "group": group})
    data = PairsModule(Pairs.from_list(rows), base.tokenizer, 8, 0)
    found = compare_capabilities(base, tuned, {"own": data}, pairs=6, draws=20)
    assert found.tasks["own"].verdict == "gained"
    assert found.acquisition["own"].gap.low_sentences is not None


@pytest.mark.long
def test_in_python_ranks_are_compared(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    base, pairs = load_subject(local / "model"), Pairs.from_list(rows)
    assert base.tokenizer is not None
    examples = examples_of_task(pairs, base.tokenizer)

    def tune(way: str, seed: int, ranks: list[int] | None) -> RankedTuning:
        assert ranks is not None
        subject, folder = load_subject(local / "model"), tmp_path / f"{way}{seed}"
        pattern, alphas = rank_patterns(subject.anatomy, ranks, 2.0)
        adapter = lora(subject.model, 2, r=2, alpha=4, rank_pattern=pattern, alpha_pattern=alphas)
        found = finetune_model(subject, examples, adapter=adapter, steps=2, lr=1e-2, folder=folder, seed=seed)
        return RankedTuning.read(found, folder, ranks)

    def circuit(which: str, pairs_used: int) -> Circuit:
        adapter = str(tmp_path / "uniform0" / "tuned") if which == "tuned" else None
        subject = load_subject(local / "model", adapter=adapter)
        assert subject.tokenizer is not None
        bench = Workbench.build(subject, PairsModule(pairs, subject.tokenizer, pairs_used, 0), 0.8)
        return bench.cut(bench.score(Method.of(eap, negative_metric)))

    makers = RankMakers(2, tune, circuit, lambda _rank, _batches: torch.tensor([0.0, 1.0]))
    few = RankSettings(["uniform", "circuit_difference", "base_circuit", "random_layers", "gradient_probe"], 2, [0, 1])
    found = compare_rank_patterns(makers, few, score="metric")
    found.save(tmp_path)
    assert RankComparison.load(tmp_path) == found and list(found.to_frame()["way"]) == few.ways
    assert found.ways["gradient_probe"].ranks == [1, 3] and all(way.of_uniform == 1 for way in found.ways.values())
    for seed, ranks in enumerate(found.ways["random_layers"].ranks or []):
        assert isinstance(ranks, list) and sorted(ranks) == sorted(found.ranks["base_circuit"]), seed
    by_pair = [json.loads((tmp_path / f"{way}1" / "held_out.json").read_text())["metric"] for way in few.ways]
    assert [way.by_seed[1] for way in found.ways.values()] == pytest.approx([sum(own) / 12 for own in by_pair])
    with pytest.raises(UserError, match="must begin with uniform"):
        RankSettings(["adalora"])
    with pytest.raises(UserError, match="at least two subtasks"):
        RankSettings(["uniform", "union_circuit"], subtasks=["task.build.operation=add"])
    with pytest.raises(UserError, match="name it after that"):
        RankSettings(["uniform", "random_layers", "union_circuit"], subtasks=["a=1", "a=2"])
    parts = RankSettings(["uniform", "union_circuit", "random_layers"], 2, [0, 1], subtasks=["a=1", "a=2"])
    asked: list[str] = []
    joined = replace(makers, subtask=lambda setting, pairs: (asked.append(setting), circuit("base", pairs))[1])
    union = compare_rank_patterns(joined, parts, score="metric")
    assert asked == ["a=1", "a=2"] and union.ranks["union_circuit"] == found.ranks["base_circuit"]
    with pytest.raises(UserError, match=r"needs makers\.subtask"):
        compare_rank_patterns(makers, parts)
    with pytest.raises(UserError, match="trains 1,024 parameters, uniform 512"):
        compare_rank_patterns(replace(makers, tune=lambda way, *more: _of_size(tune(way, *more), way)), few)


def test_an_attribution_of_any_name_is_not_what_masks_start_from(local: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench, begun = prepare_bench(local / "model", Pairs.from_list(rows)), []

    def learn(_: Workbench, start: EdgeScores, seed: int) -> EdgeScores:
        begun.append(start.method)
        return start

    settings = StudySettings(sparsities=(0.7,), seeds=(0,), resamples=0, curve_pairs=0, controls=1)
    methods = {"start": Method.of(eap_ig, steps=1)}
    compare_methods({"own": bench}, methods, {"masks": learn}, settings, start=Method.of(random_scores))
    assert begun == ["random_scores"]


def _of_size(run: RankedTuning, way: str) -> RankedTuning:
    return replace(run, n_trained=512) if way == "uniform" else run


@pytest.mark.long
def test_in_python_methods_are_compared(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(local / "model", Pairs.from_list(rows))
    methods = {"few steps": Method.of(eap_ig, steps=1), "more steps": Method.of(eap_ig, steps=4)}
    learners = {"masks": partial(learn_masks, schedule=Schedule(6, 0.3))}
    settings = StudySettings(sparsities=(0.7, 0.9), seeds=(0, 1), resamples=2, curve_pairs=4, controls=3)
    settings = replace(settings, match=Match("few steps", 0.9))
    found = compare_methods({"own": bench}, methods, learners, settings, folder=tmp_path)
    found.save(tmp_path)
    assert MethodStudy.load(tmp_path) == found and found.status == "OK" and not found.failed
    frame = found.to_frame()
    assert set(frame["method"]) == {"random circuits", "few steps", "more steps", "masks"} and len(frame) == 8
    alone = attribute_circuit(bench.subject, bench.data, methods["more steps"], 0.9, bars=Bars(controls=3))
    row = next(one for one in found.methods if (one.method, one.sparsity) == ("more steps", 0.9))
    if row.ranking == alone.live.circuit.scores.ranking:
        assert row.kl == alone.kl
    masks = next(one for one in found.methods if (one.method, one.sparsity) == ("masks", 0.9))
    circuits = [Circuit.load(tmp_path / "circuits" / f"own--learner--masks--0.9--seed{seed}") for seed in (0, 1)]
    assert masks.seeds_overlap and masks.seeds_overlap.n_circuits == len(circuits) == masks.n_circuits
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    assert compare_methods({"own": bench}, methods, learners, settings, folder=tmp_path) == found
    assert made == {file: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    other = {"few steps": methods["few steps"], "more steps": Method.of(random_scores)}
    quick = replace(settings, match=None, resamples=0, curve_pairs=0)
    before, after = (compare_methods({"own": bench}, own, {}, quick, folder=tmp_path) for own in (methods, other))
    kls = [[row.kl.value for row in study.methods if row.method == "more steps"] for study in (before, after)]
    assert kls[0] != kls[1], "another method of the same label is made anew"
    fewer = prepare_bench(local / "model", Pairs.from_list([row for row in rows[3:] if row["split"] != "val"]))
    assert compare_methods({"own": fewer}, methods, {}, quick, folder=tmp_path).tasks[0].n_pairs == 11
    with pytest.raises(UserError, match="not shares between 0 and 1"):
        StudySettings(sparsities=(95,))
    with pytest.raises(UserError, match="few step at None is not among"):
        compare_methods({"own": bench}, methods, {}, replace(settings, match=Match("few step")))


def test_in_python_masks_are_followed_and_their_timelines_compared(tmp_path: Path) -> None:
    layout, found = MaskLayout(Graph(2, 2, 1), ("subject", "other"), "both"), {}
    for name, seed in (("one", 0), ("two", 1)):
        seen = Snapshots(layout, 9, Schedule(60, 0.1, start_sparsity=0.5, warmup=0.5), 0.9)
        draw = torch.Generator().manual_seed(seed)
        masks = torch.randn(layout.size, generator=draw)
        for step in range(0, 61, 5):
            seen.add(step, masks)
            masks = masks + torch.randn(layout.size, generator=draw)
        found[name] = follow_masks(seen, [{"step": 5, "hard_kl": 0.5}, {"step": 6, "loss": 1.0}], draws=9)
        found[name].save(tmp_path / name)
        assert MaskTimeline.load(tmp_path / name) == found[name]
    one = found["one"]
    assert one.hard_kl[:3] == [None, 0.5, None] and list(one.to_frame()["step"]) == one.steps
    assert one.to_frame()["reachable"].max() <= one.count and one.stages.n_snapshots == 13
    older = json_types({"format": 2, **one.to_dict()})
    del older["schema"]
    assert MaskTimeline.from_dict(older) == one
    with pytest.raises(UserError, match="mask_timeline of version 0"):
        MaskTimeline.from_dict(older | {"format": 1})
    agreed = compare_timelines(found)
    agreed.save(tmp_path)
    assert TimelineAgreement.load(tmp_path) == agreed and list(agreed.to_frame()["one"]) == [None] * 3
    with pytest.raises(UserError, match="two runs"):
        compare_timelines({"one": one})


def test_in_python_prompts_are_compared(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    subject = load_subject(local / "model")
    assert subject.tokenizer is not None
    own = {"one": rows, "two": rows[3:30]}
    data = {name: PairsModule(Pairs.from_list(some), subject.tokenizer, 8, 0) for name, some in own.items()}
    benches = {name: Workbench.build(subject, pairs, 0.8) for name, pairs in data.items()}
    circuits = {name: bench.cut(bench.score(Method.of(eap, negative_metric))) for name, bench in benches.items()}
    found = compare_prompts(benches, circuits, draws=20, bars=Bars(max_kl_share=1000.0))
    assert found is not None and found.overlap[0].of == ["one", "two"]
    found.save(tmp_path)
    assert PromptComparison.load(tmp_path) == found and len(found.to_frame()) == 2 * len(found.circuits)
    kept = circuits["one"].kept & circuits["two"].kept
    assert found.overlap[0].shared == int(kept.sum()) and found.n_pairs == {"one": 12, "two": 9}
    asked: list[str] = []
    none = compare_prompts(benches, lambda name, _: asked.append(name))  # of a process that does not go on
    unable = compare_prompts(benches, lambda name, _: asked.append(name), min_accuracy={"two": 1.0})
    assert none is None and asked == ["one"] and unable is not None and "does not do the task" in str(unable.reason)
    unable.save(tmp_path)
    assert PromptComparison.load(tmp_path) == unable and unable.to_frame().empty
    with pytest.raises(UserError, match="at least two prompts"):
        compare_prompts({"one": benches["one"]}, circuits)
    with pytest.raises(UserError, match="circuits has none for two"):
        compare_prompts(benches, {"one": circuits["one"]})


def test_in_python_time_is_measured_and_memory_planned(local: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(local / "model", Pairs.from_list(rows), batch_size=4)
    before = {name: value.clone() for name, value in bench.subject.model.state_dict().items()}
    step, scores = time_training(bench, repeats=2, warmup=1), time_attribution(bench, Method.of(eap_ig, steps=2), 2)
    plan = plan_memory(bench.subject, StepShape(pairs=4, tokens=6), gib=1.0)
    for found, kind in ((step, StepTimes), (scores, AttributionTimes), (plan, MemoryPlans)):
        found.save(tmp_path)
        assert kind.load(tmp_path) == found and len(found.to_frame()) == 1 and found.what.startswith("model")
    assert step.measured[0].step > 0 and step.measured[0].batch == 4 and len(step.measured[0].phases) == 6
    assert scores.measured[0].batches == 2 and plan.measured[0].largest_batch > 4
    assert all(torch.equal(value, before[name]) for name, value in bench.subject.model.state_dict().items())
    with pytest.raises(UserError, match="gib=0 is not above 0"):
        plan_memory(bench.subject, StepShape(4, 6), gib=0)
    with pytest.raises(UserError, match="step_times"):
        AttributionTimes.from_dict(step.to_dict())
