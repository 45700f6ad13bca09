"""A function does by itself what its verb does: the same defaults as conf/, and the same circuit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, settings
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from circuitlit import (
    Circuit,
    HeadSettings,
    Pairs,
    RankSettings,
    StepShape,
    compare_capabilities,
    compare_freezing,
    compare_models,
    compare_prompts,
    compare_tunings,
    evaluate_circuit,
    explain_circuit,
    find_circuit,
    find_difference,
    find_rivals,
    finetune_model,
    inject_facts,
    intervene_on_nodes,
    load_subject,
    measure_ablations,
    measure_behaviour,
    measure_errors,
    measure_generalisation,
    measure_generality,
    measure_knowledge,
    measure_robustness,
    measure_stability,
    measure_trust,
)
from circuitlit.compare.reuse import Swaps
from circuitlit.discover.workbench import Ablation
from circuitlit.evaluate.find import GATES, SCHEDULE
from circuitlit.evaluate.verdict import Bars

CONF = str(Path(__file__).parent.parent / "conf")
TASKS = "generality.tasks=[ioi,sva]"
SAME = [
    (Bars, "evaluate circuit=x", "evaluate"),
    (evaluate_circuit, "evaluate circuit=x", "evaluate"),
    (explain_circuit, "explain circuit=x", "explain"),
    (measure_trust, "trust circuit=x", "trust"),
    (measure_errors, "trust circuit=x", "trust.errors"),
    (measure_ablations, "trust circuit=x", "trust.ablations"),
    (measure_generalisation, "trust circuit=x", "trust.generalises"),
    (find_rivals, "rivals circuit=x", "rivals"),
    (find_rivals, "trust circuit=x", "trust.unique"),
    (measure_stability, "trust circuit=x", "trust.stable"),
    (measure_robustness, "trust circuit=x", "trust.robust"),
    (intervene_on_nodes, "intervene", "intervene"),
    (measure_generality, f"generality {TASKS}", "generality"),
    (compare_freezing, f"generality {TASKS}", "generality.prevent"),
    (compare_capabilities, "capabilities tuned=x", "capabilities"),
    (measure_knowledge, "knowledge", "knowledge"),
    (inject_facts, "knowledge experiment=inject_facts", "knowledge.inject"),
    (measure_behaviour, "behaviour", "behaviour"),
    (compare_models, "compare tuned=x", "compare"),
    (Swaps, "compare tuned=x", "compare.reuse"),
    (compare_prompts, "prompts prompts.tasks=[ioi,sva]", "prompts"),
    (compare_tunings, "compare tuned=x", "compare"),
    (find_difference, "difference tuned=x", "difference"),
    (finetune_model, "finetune adapter=none", "tune"),
    (Ablation, "train ablation=optimal", "ablation"),
    (find_circuit, "train", "data"),
    (StepShape, "bench", "mask"),
]
OTHER = {  # what is no plain setting in Python, or is chosen by the case above
    "intervene_on_nodes": {"other_tasks"},
    "measure_generality": {"prevent", "tasks"},
    "compare_models": {"reuse"},
    "Ablation": {"kind"},
    "measure_stability": {"baseline"},
}


@cache
def composed(words: str) -> DictConfig:
    verb, *overrides = words.split()
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(verb, overrides)


def conf(words: str, node: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.select(composed(words), node), resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize(("function", "words", "node"), SAME, ids=lambda value: getattr(value, "__name__", None))
def test_defaults_are_those_of_the_command_line(function: Callable, words: str, node: str) -> None:
    known, seen = inspect.signature(function).parameters, 0
    for name, value in conf(words, node).items():
        if name in known and name not in OTHER.get(function.__name__, ()) and known[name].default is not inspect._empty:
            default = known[name].default
            assert (list(default) if isinstance(default, tuple) else default) == value, name
            seen += 1
    assert seen


def test_settings_of_masks_heads_and_ranks_are_those_of_the_command_line() -> None:
    assert asdict(SCHEDULE) == {key: value for key, value in conf("train", "mask.schedule").items() if key[0] != "_"}
    gates = {key: value for key, value in conf("train", "mask.gates").items() if key[0] != "_"}
    assert {key: getattr(GATES, key) for key in gates} == gates
    assert asdict(HeadSettings()) == conf("heads", "heads")
    assert asdict(RankSettings()) == conf("guided", "guided")


def test_in_python_the_very_circuit_of_the_command_is_found(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none", "data.pad_to=batch"))
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bars, schedule = Bars(controls=1, max_kl_share=1000.0), replace(SCHEDULE, steps=12)
    subject = load_subject(local / "model")
    found = find_circuit(subject, Pairs.from_list(rows), 0.8, schedule=schedule, bars=bars, batch_size=4)
    theirs = json.loads((tmp_path / "result.json").read_text())
    assert torch.equal(found.live.circuit.kept, Circuit.load(tmp_path).kept)
    torch.testing.assert_close(found.live.circuit.scores.order, Circuit.load(tmp_path).scores.order)
    assert found.kl is not None and found.kl.value == pytest.approx(theirs["kl"]["value"], rel=1e-5)
    assert found.random is not None and found.random.kl is not None
    assert found.random.kl.value == pytest.approx(theirs["random"]["kl"]["value"], rel=1e-5)
