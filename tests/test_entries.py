"""Lists of tasks, methods, seeds and runs: what an entry may set, and what may not be named twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli import failure, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitlit import compare_models, load_subject
from circuitlit.compare.matched_checkpoints import run_names
from circuitlit.compare.rank_patterns import RankSettings
from circuitlit.compare.weights import check_same_tokens
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.errors import UserError
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.study.cells import StudySettings
from circuitlit.tasks import Pairs


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("study", ["study.tasks=[{name: own, with: [model.dtype=float64]}]"], "study.tasks: own sets model"),
        ("study", ["study.tasks=[{name: own, with: [adapter=lora]}]"], "study.tasks: own sets adapter"),
        ("behaviour", ["behaviour.tasks=[{name: own, with: [mask=sigmoid_topk]}]"], "behaviour.tasks: own sets mask"),
        ("study", ["study.tasks=[{name: sva, with: [seed=1]}]"], "write task=sva among the entry's settings"),
        ("study", ["study.attributions=[{name: acdc, with: [seed=1]}]"], "write method=acdc among"),
        (
            "knowledge",
            ["knowledge.packs.factual=[{name: own, with: [method=eap]}]"],
            "knowledge.packs.factual: own sets method",
        ),
        (
            "intervene",
            ["intervene.other_tasks=[{name: own, with: [model.dtype=float64]}]"],
            "intervene.other_tasks: own sets model",
        ),
    ],
)
def test_what_entries_share_they_cannot_change(
    verb: str, more: list[str], said: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in failure(capsys, *settings(local, tmp_path / "run", *more), verb=verb)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["ablation=mean"], "leave ablation"),
        (["sparsity.select=greedy"], "sparsity.select"),
        (["mask.roles=true"], "mask.roles"),
        (['knowledge.packs.linguistic=[{name: own, with: ["task=jsonl"]}]'], "two packs have a task called 'own'"),
    ],
)
def test_knowledge_refuses_what_it_would_not_look_at(
    more: list[str], said: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packs = [
        f"knowledge.packs.{pack}=[]" for pack in ("linguistic", "reasoning") if not more[0].startswith("knowledge")
    ]
    packs += ["knowledge.packs.reasoning=[]"] if more[0].startswith("knowledge") else []
    own = 'knowledge.packs.factual=[{name: own, with: ["task=jsonl"]}]'
    assert said in failure(capsys, *settings(local, tmp_path / "run", *packs, own, *more), verb="knowledge")


def test_compare_reads_the_settings_of_one_form(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = settings(local, tmp_path / "run")
    one = failure(capsys, *words, f"tuned={local}/model", "compare.level=7", verb="compare")
    assert "compare.level is read with runs=[A,B] alone" in one
    several = failure(capsys, *words, f"runs=[{local}/model,{local}]", "compare.halvings=20", verb="compare")
    assert "compare.halvings is read with tuned=DIR alone" in several


def test_nothing_is_named_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seeds=\[0, 1, 0\] names 0 twice"):
        StudySettings(seeds=[0, 1, 0])
    with pytest.raises(UserError, match=r"sparsities=\[0.9, 0.9\] names 0.9 twice"):
        StudySettings(sparsities=[0.9, 0.9])
    with pytest.raises(UserError, match="names 3 twice"):
        RankSettings(seeds=[3, 3])
    with pytest.raises(UserError, match="twice"):
        run_names([str(tmp_path), f"{tmp_path}/../{tmp_path.name}"])
    assert len(run_names([str(tmp_path / "a"), str(tmp_path / "b")])) == 2


def test_models_that_read_the_pairs_as_different_tokens_are_not_compared(local: Path) -> None:
    subject = load_subject(local / "model")
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(subject, Pairs.from_list(rows), 0.5)
    check_same_tokens(bench.data, bench.data)
    words = subject.tokenizer.get_vocab()  # type: ignore[union-attr]
    exchanged = {**words, "w1": words["w2"], "w2": words["w1"]}
    other = Tokenizer(models.WordLevel(exchanged, unk_token="[unk]"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    permuted = PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[unk]")
    tuned = prepare_bench(replace(subject, tokenizer=permuted), Pairs.from_list(rows), 0.5)
    with pytest.raises(UserError, match="as different tokens"):
        compare_models(bench, tuned, Method.of(eap))


def test_guided_looks_at_all_settings_before_it_tunes(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["guided.ways=[uniform,adalora]", "guided.seeds=[0]", "adapter.build.r=4", "tune.steps=2"]
    assert "adapter.build.r" in failure(capsys, *settings(local, tmp_path / "run", *more), verb="guided")
    assert not list((tmp_path / "run").glob("*-seed*"))
