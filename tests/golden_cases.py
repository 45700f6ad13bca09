"""Every verb on a tiny model, as `test_golden.py` runs it: small, fast, with fixed seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import call, settings
from golden_outputs import printed_lines
from test_bench import QUICK, SHAPE
from test_compare import compare
from test_evolve import settings_of as evolve
from test_finetune import tune
from test_heads_verb import arguments, named_pairs
from test_intervene import entry, mask_run, quick
from test_prompts import MORE as PROMPTS
from test_story import STORY
from test_study import MATCH, small

Case = Callable[[pytest.FixtureRequest, Path, Path], None]

EXPLAINED = "explain.examples=3"  # as by default; tiny runs else leave the explanation out


def train(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out / "train", "logger=csv", EXPLAINED))
    call(f"run={out}/train", "format=html", f"hydra.run.dir={out}/report", verb="report")
    call(f"run={out}/train", "format=svg", f"hydra.run.dir={out}/figures", verb="report")
    call(f"run={out}/train", f"hydra.run.dir={out}/timeline", verb="timeline")


def train_new_words(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    for row in rows[2::6]:
        row["split"] = "new_words"
    out.joinpath("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ["logger=none", "callbacks=none", "evaluate.controls=40", f"task.build.path={out}/pairs.jsonl"]
    call(*[one for one in settings(local, out / "run", *more) if not one.startswith("callbacks.")])


def train_joint(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, "logger=none", "adapter=lora", "adapter.train=true", "seed=1"))


def several(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    run = ["logger=none", "callbacks.snapshot_every=5", "callbacks.probe_every=5", "mask.schedule.steps=40"]
    for seed in (0, 1):
        call(*settings(local, out / f"{seed}", *run, f"seed={seed}"))
    runs = f"runs=[{out}/0,{out}/1]"
    call(runs, f"hydra.run.dir={out}/report", verb="report")
    call(runs, f"hydra.run.dir={out}/timeline", verb="timeline")


def attribute(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out / "run", "logger=none", "method=eap_ig", "ablation=mean", EXPLAINED), verb="attribute")
    fast = ["logger=none", "evaluate.knockouts=2", "evaluate.parts=3", "evaluate.ablation_pairs=4"]
    call(*settings(local, out / "again", *fast, f"circuit={out}/run", "evaluate.smallest=0.8"), verb="evaluate")
    for kind in ("mib_json", "mib_pt", "eap_ig_json"):
        call(f"circuit={out}/run", f"format={kind}", f"hydra.run.dir={out}/{kind}", verb="export")
    pruned = [f"circuit={out}/run", "format=pruned", "passages.count=4", "passages.length=8", "logger=none"]
    call(*settings(local, out / "pruned", *pruned), verb="export")


def unable(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, "logger=none", "task.min_accuracy=0.99"))


def behaviour(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["behaviour.tasks=[{name: mine,with: ['task.min_accuracy=0.9']}]", "behaviour.pairs=8", "logger=none"]
    call(*settings(local, out, *more), verb="behaviour")


def study(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*small(local, out, MATCH), verb="study")
    text = request.getfixturevalue("capsys").readouterr().out
    print(re.sub(r"(?m)( % .*) \d+ *$", r"\1", text))  # without the column of seconds


def compare_models(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["logger=none", "adapter=lora", "tune.steps=20", "tune.lr=2e-2", "tune.checkpoints=0"]
    call(*settings(local, out / "tune", *more), verb="finetune")
    call(*compare(local, out / "out", f"tuned={out}/tune"), verb="compare")


def compare_tunings(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    common = ["logger=none", "tune.steps=6", "tune.checkpoints=[0,2,6]", "tune.lr=1e-2", "tune.probe_every=0"]
    for name, own in {"sft": ["adapter=lora"], "full": ["adapter=none", "tune.freeze=[a0.h1,m1]"]}.items():
        call(*settings(local, out / name, *common, *own), verb="finetune")
    fast = ["logger=none", "sparsity.target=0.6", "method.score.steps=1", "compare.text={passages: 2, length: 8}"]
    call(*settings(local, out / "out", *fast, f"runs=[{out}/sft,{out}/full]"), verb="compare")


def difference(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = ["method=eap", f"tuned={folder}/adapter", "logger=none", "callbacks=none", "mask.schedule.steps=12"]
    call(*settings(local, out, *more, "difference.penalty=0.003"), verb="difference")


def intervene(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = [f"tuned={folder}/adapter", f"task.build.path={folder}/new.jsonl", "intervene.size=2", "intervene.edges=3"]
    more += [f"circuit={mask_run(out / 'circuit')}", f"intervene.other_tasks=[{entry(folder, 'old')}]"]
    more += ["intervene.passages={count: 4, length: 8}", "ablation=zero", "intervene.doses=[0.0,1.0,2.0]"]
    call(*quick(local, out / "out", *more, "intervene.steps=[1,2]", "intervene.candidates=null"), verb="intervene")


def capabilities(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    tasks = f"capabilities.tasks=[{entry(folder, 'new')}, {entry(folder, 'old')}]"
    call(*quick(local, out, f"tuned={folder}/adapter", tasks), verb="capabilities")


def generality(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = [f"tuned={folder}/adapter", "generality.revert=3", "generality.prevent.tune_on=new", "tune.steps=4"]
    more += ["generality.prevent.nodes=2", "generality.prevent.seeds=[0,1]", "tune.lr=1e-2"]
    call(
        *quick(local, out, *more, f"generality.tasks=[{entry(folder, 'new')}, {entry(folder, 'old')}]"),
        verb="generality",
    )


def prompts(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, *PROMPTS), verb="prompts")


def knowledge(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    packs = ["logger=none", "knowledge.packs.linguistic=[]", "knowledge.packs.reasoning=[]"]
    own = 'knowledge.packs.factual=[{name: own, with: ["task=jsonl"]}]'
    call(*settings(local, out, *packs, own), verb="knowledge")


def injection(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    folder = request.getfixturevalue("reader")
    more = ["experiment=inject_facts", "task=factual", "model=local", f"model.path={folder}", "adapter=none"]
    more += [f"hydra.run.dir={out}", "logger=none", "callbacks=headless", "callbacks.checkpoint_every=0"]
    more += ["knowledge.inject.new=6", "knowledge.inject.revised=6", "knowledge.inject.only_known=false"]
    more += ["knowledge.inject.nodes=2", "tune.steps=10", "tune.lr=3e-3", "data.batch_size=12"]
    call(*more, verb="knowledge")


def heads(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    named = named_pairs(out)
    call(
        *arguments(local, out / "out", f"task.build.path={named}", "heads.thresholds.copying=-1"),
        "logger=none",
        verb="heads",
    )


def evolution(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    call(*evolve(request.getfixturevalue("series"), out), verb="evolve")


def evolution_by_masks(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    masks = ["evolve.circuits=masks", "mask.schedule.steps=4", "logger=none", "evolve.heads.run=false"]
    masks += ["evolve.cold_every=2", "evolve.schedule=[0,1,2]", "evolve.faithfulness=0.5"]
    call(*evolve(request.getfixturevalue("series"), out, *masks), verb="evolve")


def finetune(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*tune(local, out / "lora", "adapter=lora", "tune.checkpoints=[0,3,12]"), verb="finetune")
    call(*tune(local, out / "full", "adapter=none", "adapter.lr=1e-3"), verb="finetune")
    call(*tune(local, out / "dpo", "adapter=lora", "tune=dpo"), verb="finetune")


def guided(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["tune.steps=4", "guided.rank=2", "guided.seeds=[0,1]", "guided.circuit_pairs=8", "tune.score=metric"]
    ways = "guided.ways=[uniform,circuit_difference,base_circuit,random_layers]"
    call(*settings(local, out, *more, "method=eap", "logger=none", "callbacks=none", ways), verb="guided")


def story(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, *STORY), verb="finetune")


def bench(_request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    shape = ["plan=true", "model=codellama_13b", "data.batch_size=8", "tokens=64"]
    call(*shape, f"hydra.run.dir={out}", verb="bench")


def bench_timed(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    """Names, counts and bytes; what is timed or allocated is never the same twice."""
    runs = request.getfixturevalue("tmp_path_factory").mktemp("bench")
    whole = settings(local, runs / "run", "logger=none", "bench=run", EXPLAINED)
    kinds = {"step": [*SHAPE["gpt2"], *QUICK], "eap": [*SHAPE["llama"], *QUICK, "bench=eap"], "run": whole}
    for kind, more in kinds.items():
        call(*more, f"hydra.run.dir={runs / kind}", verb="bench")
        content = json.loads((runs / kind / "bench.json").read_text())
        del content["machine"]
        (out / f"{kind}.json").write_text(json.dumps(_without_floats(content)))
    lines = printed_lines(request.getfixturevalue("capsys").readouterr().out, out)
    print("\n".join(re.sub(r"\d[\d.,]*", "~", line) for line in lines))


def _without_floats(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_floats(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_floats(value) for value in content]
    return "~" if isinstance(content, float) else content


CASES: list[Case] = [
    train,
    train_new_words,
    train_joint,
    several,
    attribute,
    unable,
    behaviour,
    study,
    compare_models,
    compare_tunings,
    difference,
    intervene,
    capabilities,
    generality,
    prompts,
    knowledge,
    injection,
    heads,
    evolution,
    evolution_by_masks,
    finetune,
    guided,
    story,
    bench,
    bench_timed,
]
