"""Knowledge heads: exact on a planted lookup model; blocked attention by identities; facts, injection and the verb."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from planted_lookup import FOUND, ROLE_NAMES, lookups, planted_lookup
from test_compare import bench_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitlit.compare import injected_facts
from circuitlit.compare.effects import PairBed, plain_logits
from circuitlit.compare.injected_facts import FactInjection, inject_facts
from circuitlit.compare.injection import reverting_scores
from circuitlit.compare.known_facts import Knowledge, KnownTask, measure_knowledge
from circuitlit.compare.transplant import Transplant
from circuitlit.errors import Stopped, UserError
from circuitlit.evaluate import Estimate
from circuitlit.heads import PatchBed
from circuitlit.heads.attention import Heads
from circuitlit.heads.knowledge import READ, RETRIEVAL, attention_blocked, attention_mass, role_effects
from circuitlit.heads.lookup import lookup_heads
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.report.injection import sentence
from circuitlit.tasks import encode, factual, two_hop
from circuitlit.tasks.facts import ANTONYMS, PAST_TENSE, RELATIONS
from circuitlit.tasks.injected import Fact, new_facts, revised_facts, true_facts
from circuitlit.tasks.lookup import two_hops


def test_roles_of_a_planted_lookup_are_exact() -> None:
    subject, batch = planted_lookup(), lookups()
    said = plain_logits(subject, batch)[:, 0].argmax(-1)
    assert torch.equal(said, batch.answer[:, 0])
    bed = PatchBed.build(subject, [batch])
    shares = {"entity": 0.5, "relation": 0.5, "retrieval": 1.0}  # blocked: no object; from the other prompt: its object
    for role in (*READ, RETRIEVAL):
        found = role_effects(bed, ROLE_NAMES, role, candidates=6)
        assert found[0].name == FOUND[role] and found[0].share == pytest.approx(shares[role], abs=1e-6)
        assert all(abs(other.share) < 1e-6 for other in found[1:]) and len(found) == 6
    checked = lookup_heads(bed, bed, ROLE_NAMES, candidates=6, draws=20)
    for role, name in FOUND.items():
        assert [head.head for head in checked[role].heads] == [name]
        check = checked[role].check
        assert check["effect"]["value"] == pytest.approx(-shares[role] * float(bed.scale.mean()), rel=1e-6)
        needed = role == RETRIEVAL  # one of the five other heads, which reads what it retrieves
        assert (check["rank_p"], abs(check["random"]["value"]) < 1e-5) == ((1 + needed) / 6, not needed)
    turned = replace(batch, answer=batch.wrong[:, None], wrong=batch.answer[:, 0])  # what was a loss is a gain
    checked = lookup_heads(bed, PatchBed.build(subject, [turned]), ROLE_NAMES, candidates=6, draws=20)
    for role in FOUND:
        check = checked[role].check
        assert check["effect"]["value"] > 0 and check["rank_p"] == 1
    mass = attention_mass(bed.heads, [batch], ROLE_NAMES, "subject")
    assert mass[0].tolist() == pytest.approx([1, 0, 1], abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_blocking_attention_is_masking_it(name: str) -> None:
    subject, batch = Subject(tiny_model(name)), tiny_batch(answers=1)
    heads, at = Heads(subject), batch.positions[:, 0]
    none = torch.zeros_like(batch.clean, dtype=torch.bool)
    plain = plain_logits(subject, batch)
    with attention_blocked(heads, [(0, 0), (1, 3)], none, at):
        torch.testing.assert_close(plain_logits(subject, batch), plain, rtol=0, atol=1e-9)
    early = none.clone()
    early[:, :-1] = True
    with attention_blocked(heads, [(layer, head) for layer in range(3) for head in range(4)], early, at):
        alone = plain_logits(subject, batch)
    other = batch.clean.clone()
    other[:, :-1] = (other[:, :-1] + 7) % 49 + 1  # the last token sees nothing but itself, so this cannot matter
    with attention_blocked(heads, [(layer, head) for layer in range(3) for head in range(4)], early, at):
        unseen = subject.logits(other, batch.positions)
    torch.testing.assert_close(alone, unseen, rtol=0, atol=1e-9)
    assert float((alone - plain).abs().max()) > 1e-3
    torch.testing.assert_close(plain_logits(subject, batch), plain, rtol=0, atol=0)


def test_facts_are_many_and_well_formed() -> None:
    assert len(RELATIONS) >= 8
    for relation in (*RELATIONS.values(), ANTONYMS, PAST_TENSE, *two_hops().values()):
        items = relation.items()
        assert len(items) >= 30 and len(dict(items)) == len(items) and all(all(both) for both in items)
        assert all(sentence.count("{subject}") == sentence.count("<") == 1 for sentence in relation.sentences)
    assert all(len(relation.items()) >= 40 for relation in RELATIONS.values())


def test_pairs_swap_the_subject_only(byte_bpe: PreTrainedTokenizerBase) -> None:
    splits = factual(byte_bpe, 60, 10, 30, seed=1)
    for pair in (*splits.train, *splits.val, *splits.test):
        things = dict(RELATIONS[pair.template.split("/")[0]].items())
        spans = {role: pair.clean[start:end] for role, start, end in pair.roles}
        subject = spans["subject"]
        other = pair.corrupted[len(pair.clean.split(subject)[0]) :][: len(pair.corrupted)]
        assert pair.answer == f" {things[subject]}" != pair.wrong_answer and spans["relation"]
        begun = [name for name in things if other.startswith(name) and f" {things[name]}" == pair.wrong_answer]
        swapped = max(begun, key=len)
        assert pair.corrupted == pair.clean.replace(subject, swapped, 1)
    assert {pair.template[-1] for pair in splits.test} == {"2"}
    assert "2" not in {pair.template[-1] for pair in splits.train}
    encode(splits.train, byte_bpe, splits.role_names)
    with pytest.raises(UserError, match="no relation 'colour'"):
        factual(byte_bpe, 1, 1, 1, 0, relations=["colour"])
    capitals = {city: capital for city, capital in two_hops()["two_hop_capital"].items()}
    assert capitals["Lyon"] == "Paris" and capitals["Osaka"] == "Tokyo" and "Istanbul" in capitals
    assert two_hop(byte_bpe, 10, 4, 6, 0).name == "two_hop"


def test_injected_facts_are_new_or_contradict() -> None:
    known = true_facts(0)
    assert len(known) == sum(len(relation.items()) for relation in RELATIONS.values())
    revised, new = revised_facts(known, 50), new_facts(50, 0)
    truth = {(fact.relation, fact.subject): fact.thing for fact in known}
    assert all(truth[f.relation, f.subject] == f.other != f.thing for f in revised)
    assert len({f.subject for f in new}) == 50 and not {f.subject for f in new} & {f.subject for f in known}
    assert all(f.thing in dict(RELATIONS[f.relation].items()).values() for f in (*new, *revised))
    assert new == new_facts(50, 0) != new_facts(50, 1)
    with pytest.raises(UserError, match="knows 3 facts"):
        revised_facts(known[:3], 4)
    row = Fact("new", "capital", "Zoria", "Rome", "Oslo").row(0, "train")
    assert row == {"prompt": "The capital of Zoria is", "chosen": " Rome", "rejected": " Oslo", "split": "train"}


def test_first_order_estimates_foresee_small_reversions() -> None:
    base, model = Subject(tiny_model("gpt2")), tiny_model("gpt2")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.add_(1e-5 * torch.randn_like(parameter))
    tuned, batch = Subject(model), tiny_batch(answers=1)
    scores, bed, back = reverting_scores(base, tuned, [batch]), PairBed(tuned, [batch]), Transplant(tuned, base)
    for node in ("a0.h1", "a2.h3", "m1"):
        with back.weights([node]) as copy:
            loss = bed.full.metric - bed.measure(lambda b, copy=copy: plain_logits(copy, b)).metric
        exact = float(loss.double().mean())
        assert exact == pytest.approx(scores[node], rel=0.02, abs=2e-6)
    assert set(reverting_scores(base, base, [batch]).values()) == {0.0}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer reads words and letters, so that facts are different for it."""
    folder = tmp_path_factory.mktemp("reader")
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    text = [s for r in RELATIONS.values() for s in (*r.sentences, r.facts.replace("=", " "))]
    letters.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
    torch.manual_seed(0)
    numbers = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": letters.get_vocab_size(), "n_positions": 64}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers)).save_pretrained(folder)
    return folder


def test_facts_are_injected_from_python(reader: Path, tmp_path: Path) -> None:
    def tune(path: str) -> tuple[Subject, dict[str, Any]]:
        assert len(Path(path).read_text().splitlines()) == 3 * 8
        tuned, noise = load_subject(reader), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in tuned.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        return tuned, {"status": "done"}

    folder = tmp_path / "new"
    result = inject_facts(load_subject(reader), tune, folder, new=4, revised=4, only_known=False, nodes=1)
    result.save(folder)
    assert FactInjection.load(folder) == result
    assert list(result.to_frame().columns) == ["node", "new", "revised"] and len(result.to_frame()) == 10
    assert result.tuning == {"status": "done"} and "Tuning done." in sentence(result)
    with pytest.raises(UserError, match="must be at least 1"):  # before the tuning, not after it
        inject_facts(load_subject(reader), lambda _: pytest.fail("nothing is tuned"), folder, new=0)
    (folder / "asked.jsonl").write_text("mine")
    with pytest.raises(UserError, match="the model knows 0 facts"):
        inject_facts(load_subject(reader), tune, folder, new=4, revised=4)
    assert (folder / "asked.jsonl").read_text() == "mine"


def test_knowledge_is_measured_from_python(local: Path, tmp_path: Path) -> None:
    bench = bench_of(local)
    result = measure_knowledge(bench.subject, {"factual": {"own": bench.data}})
    assert result.to_frame()["task"].tolist() == ["own"] and result.tasks["own"].roles is None
    bed = PatchBed.build(planted_lookup(), [lookups()])
    roles = lookup_heads(bed, bed, ROLE_NAMES, candidates=6, draws=20)
    looked_up = KnownTask("factual", 24, Estimate(1.0), {"train": 24, "test": 24}, {}, roles)
    both = replace(result, tasks={**result.tasks, "planted": looked_up})
    both.save(tmp_path)
    assert Knowledge.load(tmp_path) == both
    with pytest.raises(UserError, match="packs hold no task"):
        measure_knowledge(bench.subject, {"factual": {}})
    refused = (
        ({"resamples": 1}, "resamples=1 has no spread"),  # an interval of no width
        ({"alpha": 2.0}, "not a share"),
        ({"min_accuracy": {"onw": 0.5}}, "packs have no task 'onw'"),
    )
    for wrong, words in refused:
        with pytest.raises(UserError, match=words):
            measure_knowledge(bench.subject, {"factual": {"own": bench.data}}, **wrong)


def test_a_task_is_kept_only_for_the_same_weights(local: Path, tmp_path: Path) -> None:
    bench, stamps = bench_of(local), []
    for moved in (0.0, 0.0, 0.5):
        with torch.no_grad():
            bench.subject.embed.weight[-1] += moved
        measure_knowledge(bench.subject, {"factual": {"own": bench.data}}, heads=False, circuits=False, folder=tmp_path)
        stamps.append((tmp_path / "factual--own.json").stat().st_mtime_ns)
    assert stamps[0] == stamps[1] < stamps[2]


@pytest.mark.long
def test_the_verb_injects_facts_and_reverts_nodes(reader: Path, tmp_path: Path) -> None:
    more = ["experiment=inject_facts", "task=factual", "model=local", f"model.path={reader}", "adapter=none"]
    more += [f"hydra.run.dir={tmp_path}", "logger=none", "callbacks=headless", "callbacks.checkpoint_every=0"]
    more += ["knowledge.inject.new=6", "knowledge.inject.revised=6", "knowledge.inject.only_known=false"]
    more += ["knowledge.inject.nodes=2", "tune.steps=40", "tune.lr=3e-3", "data.batch_size=12"]
    call(*more, verb="knowledge")
    result = json.loads((tmp_path / "injection.json").read_text())
    assert {fact["kind"] for fact in result["facts"]} == {"new", "revised"} and len(result["facts"]) == 12
    assert set(result["scores"]["new"]) == {f"a{i}.h{j}" for i in range(2) for j in range(4)} | {"m0", "m1"}
    for kind, own in result["carriers"].items():
        assert len(own["nodes"]) == 2 and own["lost"][kind]["value"] is not None
        assert 0 < own["random"][kind]["rank_p"] <= own["random"][kind]["p_holm"] <= 1
    change = result["behaviour"]["new"]
    assert change["metric_tuned"]["value"] > change["metric_base"]["value"]
    assert "first order" in (tmp_path / "injection.html").read_text()


def test_injection_goes_on_with_the_tuning_that_is_done(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tuning wrote made the resumed run seem finished, without any injection."""
    more = ["experiment=inject_facts", "task=factual", "model=local", f"model.path={reader}", "adapter=none"]
    more += [f"hydra.run.dir={tmp_path}", "logger=none", "callbacks=headless", "callbacks.checkpoint_every=4"]
    more += ["knowledge.inject.new=2", "knowledge.inject.revised=2", "knowledge.inject.only_known=false"]
    more += ["knowledge.inject.nodes=1", "knowledge.inject.draws=20", "tune.steps=4", "tune.lr=3e-3"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):

        def stop(*_: object) -> None:
            raise Stopped(signal.SIGINT)

        patch.setattr(injected_facts, "reverting_scores", stop)
        call(*more, verb="knowledge")
    assert (
        f"the tuning is kept; go on with: python -m circuitlit knowledge resume={tmp_path}" in capsys.readouterr().err
    )
    written = (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    call(f"resume={tmp_path}", verb="knowledge")
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "injection.json").read_text())["tuning"]["steps"] == 4


def test_the_verb_tests_packs(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packs = ["logger=none", "knowledge.packs.linguistic=[]", "knowledge.packs.reasoning=[]"]
    own = 'knowledge.packs.factual=[{name: own, with: ["task=jsonl"]}]'
    call(*settings(local, tmp_path, *packs, own), verb="knowledge")
    result = json.loads((tmp_path / "knowledge.json").read_text())
    assert "task" not in result["provenance"] and "packs" in result["provenance"], "the configured task is not asked"
    found = result["tasks"]["own"]
    assert found["n_pairs"] == 24 and found["pack"] == "factual" and found["roles"] is None
    assert "Pairs answered" in (tmp_path / "knowledge.html").read_text()
    none = settings(local, tmp_path / "bad", *packs, "knowledge.packs.factual=[]")
    assert "names no task" in failure(capsys, *none, verb="knowledge")
