"""A tuning story from Python, and what it suggests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import bench_of

from circuitlit.compare.answers import AnswersApart
from circuitlit.compare.comparison import CircuitChange, Comparison
from circuitlit.compare.intervention_figures import Ablations, Enhancement, SetAblation, Transfer, Transferred
from circuitlit.compare.moved_layers import MovedLayers
from circuitlit.compare.reuse import Swaps
from circuitlit.compare.turnover import GapTurnover, PartTurnover, Turnover
from circuitlit.compare.weight_figures import WeightSpread
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.finetune import BehaviourChange
from circuitlit.heads.text import sample_passages
from circuitlit.model import Subject
from circuitlit.objective import negative_metric
from circuitlit.report.suggestions import suggestions
from circuitlit.timeline.evolution import Learned, TaskEvolution
from circuitlit.timeline.series import Noise
from circuitlit.timeline.stages import Timeline
from circuitlit.timeline.story import ShortComparison, ShortInterventions, TuningStory, Way
from circuitlit.timeline.telling import Makers, tell_story

UNFOLLOWED = TaskEvolution(
    rows=[],
    noise=Noise(),
    stages=Timeline("too few snapshots"),
    emerged=None,
    learned=Learned(nodes=None, edges=None, stability=None),
    roles={},
    algorithm_roles={},
)


def told(row: MovedLayers, between: AnswersApart) -> TuningStory:
    """A story of two ways with equal results, of which only some layers and the answers say something."""
    nought, sure = Estimate(0.0, -0.1, 0.1), Estimate(1.0, 1.0, 1.0)
    whole = MovedLayers(ranking="all", n_layers=2, layers=[0, 1], gain_share=sure, accuracy=nought, text_kl=0.2)
    own = SetAblation(["m0"], nought, nought, 0.4, 20, 0.5, "mean", nought, nought, p_holm=0.4)
    moved = Transferred(nought, nought, 0.4, nought, nought, p_holm=0.4)
    nodes = ShortInterventions(
        chosen=["m0"],
        ablation=Ablations([], nought, [], nought, [], own, {}, "effect", 0.05),
        enhancement=Enhancement(["m0"], [], 0.0, 0.0, 1.0, [], nought, nought, 0.4),
        transfer=Transfer({}, nought, False, [], moved, moved),
        full_metric=nought,
    )
    circuits = CircuitChange(
        n_edges={}, counts={}, changed=False, distance=0.0, floor=0.0, effect=None, edges={}, nodes={}, points=[]
    )
    overlap = {"total": 2, "sizes": (1, 1), "jaccard": 1.0, "expected": 1.0, "corrected": 1.0, "chance": {}}
    part = PartTurnover(**overlap, between=nought, within=nought, retained=nought)
    turnover = Turnover(nodes=part, edges=part, gap=GapTurnover(**overlap, between=0.0, within=0.0))
    difference = ShortComparison(
        n_edges_total=2,
        resamples=10,
        delta=1.5,
        at_size=circuits,
        at_faithfulness=None,
        turnover=turnover,
        weights=WeightSpread(relative=0.1, distribution={}),
    )
    change = BehaviourChange(10, nought, nought, nought, 0, 0, 1.0, nought, nought, nought, nought)
    tuning = {"status": "OK", "reason": None, "n_parameters": 2, "n_parameters_trained": 1}
    answers = {"held_out": change, "text_kl": nought, "tuning": tuning, "timeline": UNFOLLOWED}
    way = Way(**answers, nodes=nodes, difference=difference, layers=[whole, row])
    return TuningStory(
        status="OK",
        reason=None,
        task="tiny",
        model="tiny",
        method="eap",
        seed=0,
        score="accuracy",
        steps=1,
        story={"draws": 20},
        ways={"a": way, "b": way},
        between=between,
    )


def test_suggestions_say_when_nothing_is_shown(tmp_path: Path) -> None:
    nought, half = Estimate(0.0, -0.1, 0.1), Estimate(0.5, 0.3, 0.7)
    row = MovedLayers(
        ranking="base circuit", n_layers=1, layers=[0], gain_share=half, accuracy=nought, text_kl=0.1, random=half
    )
    row = replace(row, rank_p=0.5, p_holm=0.5)
    between = AnswersApart(ways=["a", "b"], accuracy=nought, metric=nought, text_kl=nought)
    story = told(row, between)
    said = dict(suggestions(story))
    assert "no reason to prefer either" in said["Which method"]
    assert "No better than random: 1 by base circuit (p = 0.5)" in said["Which layers (a)"]
    assert "no better than random" in said["Which nodes (b)"]
    assert "nothing can be frozen" in said["What to freeze (a)"]
    few = told(replace(row, rank_p=1 / 21, p_holm=0.2, draws=20), between)
    assert "Too few random sets to tell: 1 by base circuit (p = 0.2)" in dict(suggestions(few))["Which layers (a)"]
    better = replace(row, rank_p=0.04, p_holm=0.04, gain_share=Estimate(0.95, 0.9, 1.0))
    said = dict(suggestions(told(better, replace(between, accuracy=Estimate(0.2, 0.1, 0.3)))))
    assert "Take a" in said["Which method"] and "All but layers 0" in said["What to freeze (a)"]
    story.save(tmp_path)
    assert TuningStory.load(tmp_path) == story and list(story.to_frame()["way"]) == ["a", "b"]


def test_a_story_is_told_from_python(local: Path, tmp_path: Path) -> None:
    base = bench_of(local)
    made: list[str] = []

    def tune(number: int, folder: Path) -> dict[str, Any]:
        made.append(folder.parent.name)
        facts = {"status": "OK", "reason": None, "task": "jsonl", "model": "tiny", "score": "metric", "steps": number}
        return {**facts, "n_parameters": 2, "n_parameters_trained": 1}

    def load(folder: Path, _name: str) -> Subject:
        return bench_of(local, torch.Generator().manual_seed(1 + (folder.parent.name == "other"))).subject

    def follow(_name: str, folder: Path) -> TaskEvolution:
        place = folder / "evolve" / "circuits" / "tiny--step3"
        place.mkdir(parents=True)
        base.cut(base.score(method)).save(place)
        return UNFOLLOWED

    method = Method.of(eap, negative_metric)
    makers = Makers(
        tune={"one": partial(tune, 1), "other": partial(tune, 2)},
        base=lambda: (base, base.data.test),
        load=load,
        bench=lambda subject: Workbench.build(subject, base.data, 0.6),
        follow=follow,
        text=lambda subject, _folder: sample_passages(subject, 2, 6, 0),
    )
    few = {"size": 1, "candidates": 1, "edges": 1, "steps": [1], "doses": [0.0, 1.0], "pairs": 4, "control_pairs": 4}
    comparing = {"reuse": Swaps(pairs=0), "intruders": 0}
    settings = {"layers": [1], "pairs": 4, "draws": 20, "comparing": comparing, "intervening": few}
    result = tell_story(makers, method, tmp_path, **settings)
    result.save(tmp_path)
    assert TuningStory.load(tmp_path) == result and made == ["one", "other"]
    assert result.status == "OK" and list(result.to_frame()["way"]) == ["one", "other"]
    assert Comparison.load(tmp_path / "one" / "compare").turnover.nodes.jaccard > 0
    assert result.ways["one"].layers[0].ranking == "all"
    with pytest.raises(UserError, match="at least two ways"):
        tell_story(replace(makers, tune={"one": partial(tune, 1)}), method, tmp_path)
