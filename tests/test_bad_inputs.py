"""Mistakes at the command line: each is answered in one plain sentence, and nothing of a run is left.

A new case is a line in one of the lists: the verb, its words ({model}, {pairs}, {circuit}, {folder}, {text} are things
that exist), and words of the answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cli import failure

from circuitlit.graph import Circuit, EdgeScores, Graph

ROOT = Path(__file__).parent.parent
HYDRAS = re.compile(r"lexer|append|struct\b|primary config|token recognition|mismatched|key=value1|Traceback|full_key")
Case = tuple[str, str, str]

# What no composed configuration is needed for: in tens of milliseconds each.
WORDS: list[Case] = [
    # numbers
    ("train", "seed=-1", "seed=-1 is not a whole number from 0 to 4294967295"),
    ("train", "seed=1.5", "not a whole number"),
    ("train", "seed=abc", "not a whole number"),
    ("train", "seed=99999999999999", "from 0 to 4294967295"),
    ("train", "seed=1e3", "did you mean 1000?"),
    ("train", "seed=true", "seed=true is not a whole number"),
    ("train", "seed=null", "seed=null is not"),
    ("train", "seed=", "seed='' is not"),
    ("train", "data.batch_size=2.5", "data.batch_size=2.5 is not a whole number of at least 1"),
    ("train", "data.batch_size=99999999999", "the largest is 2147483647"),
    ("train", "data.eval_batch_size=0", "at least 1"),
    ("train", "evaluate.controls=1.5", "evaluate.controls=1.5"),
    ("train", "mask.panel=0", "mask.panel=0"),
    ("train", "mask.init_scale=nan", "not a number"),
    ("train", "mask.cache_gib=inf", "not a number of at least 0"),
    ("train", "mask.schedule.lr=fast", "not a number"),
    ("train", "mask.schedule.sizes=[0.1]", "a list of 2"),
    ("train", "mask.schedule.sizes=0.1", "write mask.schedule.sizes=[0.1]"),
    ("train", "mask.schedule.sizes=[0.1,2]", "mask.schedule.sizes[1]=2"),
    ("train", "mask.schedule.steps=12.0", "did you mean 12?"),
    ("train", "callbacks.snapshot_every=0", "callbacks.snapshot_every=0"),
    ("train", "callbacks.history_every=-1", "at least 1"),
    ("train", "sparsity.target=95", "did you mean 0.95?"),
    ("train", "sparsity.target=1", "above 0 and below 1"),
    ("train", "sparsity.target=-0.1", "above 0 and below 1"),
    ("train", "task.min_accuracy=50", "did you mean 0.5?"),
    ("train", "strategy.options.devices=two", "a number of processes or auto"),
    ("attribute", "method.score.steps=0", "at least 1"),
    ("attribute", "method=acdc method.score.threshold=-1", "at least 0"),
    ("train", "adapter=lora adapter.build.dropout=1", "from 0 to below 1"),
    ("intervene", "intervene.draws=5", "a whole number of at least 20"),
    ("intervene", "intervene.doses=1", "write intervene.doses=[1]"),
    ("compare", "compare.delta=1", "above 1"),
    ("compare", "compare.sizes=[0.5,1.5]", "compare.sizes[1]=1.5"),
    ("study", "study.sparsities=[95]", "did you mean 0.95?"),
    ("study", "study.parts=0", "study.parts=0"),
    ("train", "objective.error_weight=1", "objective.error_weight=1 is not a share above 0 and below 1"),
    ("trust", "trust.only=[error]", "did you mean errors?"),
    ("trust", "trust.robust.kinds=[noisy]", "did you mean noise?"),
    ("trust", "trust.robust.shares=[10]", "did you mean 0.1?"),
    ("rivals", "rivals.starts=[equals]", "did you mean equal?"),
    ("guided", "guided.rank=1", "at least 2"),
    ("evolve", "evolve.faithfulness=0", "above 0"),
    ("bench", "tokens=0", "tokens=0"),
    ("bench", "gib=none", "not a number above 0"),
    ("finetune", "tune.warmup=10", "did you mean 0.1?"),
    ("knowledge", "knowledge.least=2", "did you mean 0.02?"),
    ("heads", "heads.repeats.length=1", "at least 2"),
    ("generality", "generality.prevent.seeds=[]", "a list of at least 1"),
    ("difference", "difference.penalty=0", "above 0"),
    ("behaviour", "behaviour.pairs=-5", "at least 1"),
    # choices
    ("train", "mask.sites=node", "did you mean nodes?"),
    ("train", "mask.init=confidnt", "did you mean confident?"),
    ("train", "mask.constraint_gradient=maybe", "true or false"),
    ("train", "mask.recompute=read", "did you mean reads?"),
    ("train", "objective.loss.path=circuitlit.objective.kl_divergance", "mean circuitlit.objective.kl_divergence?"),
    ("train", "objective.loss.path=3", "the whole name of a function"),
    ("train", "objective.loss.path=nowhere.loss", "the whole name of a function"),
    ("train", "seed=1\x85", "is not a whole number"),
    ("train", "ablation.kind=interchang", "did you mean interchange?"),
    ("train", "sparsity.select=topk", "did you mean top_k?"),
    ("train", "data.pad_to=longest", "batch, bucket or max"),
    ("train", "model.dtype=fp32", "did you mean float32?"),
    ("train", "model.source=disk", "hub, local, package, tracr or random"),
    ("train", "matmul_precision=tf32", "highest, high or medium"),
    ("train", "trainer.precision=bf16", "did you mean bf16-true?"),
    ("train", "trainer.accelerator=gpus", "did you mean gpu?"),
    ("train", "task=arithmetic task.build.operation=sum", "add, subtract"),
    ("train", "task=boolean task.build.prompt=fewshot", "did you mean few_shot?"),
    ("train", "task=factual task.build.relations=[captial]", "did you mean capital?"),
    ("attribute", "method=eap_ig method.score.rule=middle", "left, midpoint or right"),
    ("evaluate", "evaluate.ranking=best", "own, absolute or signed"),
    ("export", "format=", "mib_json, mib_pt, eap_ig_json or pruned"),
    ("export", "format=mib", "format=mib is not mib_json, mib_pt, eap_ig_json or pruned"),
    ("report", "format=jpg", "html, svg, png, pdf or dot"),
    ("report", "target=tensorboard", "files or wandb"),
    ("finetune", "tune.score=beauty", "accuracy or metric"),
    ("compare", "compare.match=loss", "metric or accuracy"),
    ("capabilities", "capabilities.by=weight", "did you mean weights?"),
    ("evolve", "evolve.circuits=mask", "did you mean masks?"),
    ("evolve", "evolve.schedule=lin", "did you mean linear?"),
    ("evolve", "evolve.heads.algorithm=E", "B, C or D"),
    ("heads", "heads.scores=[repeat]", "did you mean repeats?"),
    ("heads", "heads.causal.roles=[inductoin]", "did you mean induction?"),
    ("guided", "guided.ways=[uniform,random]", "guided.ways[1]=random"),
    ("behaviour", "behaviour.splits=[train,dev]", "train, val, test or new_words"),
    ("bench", "bench=steps", "did you mean step?"),
    ("bench", "dtypes=[float8]", "dtypes[0]=float8"),
    ("train", "logger=csv verb=attribute", "verb=attribute is not train"),
    # presets
    ("train", "task=ioii", "did you mean task=ioi?"),
    ("train", "task=", "there is no task="),
    ("train", "task=[ioi,sva]", "several presets"),
    ("train", "task=ioi,sva", "add -m"),
    ("train", "model=gpt3", "did you mean model=gpt2?"),
    ("train", "sparsity=95", "did you mean sparsity=p95?"),
    ("train", "mask=null", "choose one of: edge_pruning_2024"),
    ("train", "experiment=null", "choose one of"),
    ("train", "strategy=ddpp", "did you mean strategy=ddp?"),
    ("train", "strategy=sharded", "there is no strategy=sharded any more; use strategy=fsdp"),
    ("study", "study.tasks=[ioi,svaa]", "did you mean task=sva?"),
    ("study", "study.learners=[{name: x}]", "study.learners[0].with is missing"),
    ("behaviour", "behaviour.tasks=ioi", "write behaviour.tasks=[ioi]"),
    ("behaviour", "behaviour.tasks=[]", "a list of at least 1"),
    ("knowledge", "knowledge.packs.mine=[factal]", "did you mean task=factual?"),
    # names
    ("train", "taks=ioi", "there is no setting taks; did you mean task?"),
    ("train", "+spasity=p95", "did you mean sparsity?"),
    ("train", "+mask.sites2=nodes", "did you mean mask.sites?"),
    ("train", "++mask.shedule.steps=3", "did you mean mask.schedule.steps?"),
    ("train", "lr=0.1", "there is no setting lr"),
    ("train", "evaluate.curve_pairs=3", "one of the verb evaluate"),
    ("attribute", "heads.top=3", "one of the verb heads"),
    ("timeline", "rnu=DIR", "did you mean run?"),
    ("capabilities", "tunned=DIR", "did you mean tuned?"),
    ("prompts", "prompts.task=[ioi,sva]", "did you mean prompts.tasks?"),
    ("train", "data=5", "would replace the settings data.batch_size"),
    ("train", "mask.schedule=5", "would replace the settings mask.schedule.steps"),
    # form
    ("train", "ioi", "did you mean task=ioi?"),
    ("train", "seed", "write NAME=VALUE"),
    ("train", "--seed=3", "settings are written without dashes: seed=3"),
    ("train", "--seed 3", "settings are written without dashes: seed=VALUE"),
    ("train", "-cn attribute", "the verb says which configuration it is"),
    ("train", "~seed", "give seed another value"),
    ("train", "seed=0,1", "add -m for a run of each"),
    ("train", "-m seed=0,x", "seed=x is not a whole number"),
    ("study", "study.seeds=0,1", "write study.seeds=[0,1]"),
    ("train", "data.batch_size=[8", "data.batch_size=[8 is not"),
    # paths
    ("train", "ckpt_path=missing.ckpt", "ckpt_path=missing.ckpt does not exist"),
    ("train", "mask.init_from=metod", "did you mean method?"),
    ("train", "hydra.run.dir=", "hydra.run.dir='' is not a path"),
    ("train", "run_id=a/b", "a name without any of"),
    ("train", "run_id=..", "not of dots alone"),
    ("train", "resume=~nobody_here/run", "resume: ~nobody_here/run/.hydra/config.yaml is not readable"),
    ("evaluate", "circuit=~nobody_here/run", "circuit=~nobody_here/run does not exist"),
    ("evaluate", "circuit=a=b", "circuit=a=b does not exist; name a run's folder or a circuit file"),
    ("export", "circuit=運行/一", "circuit=運行/一 does not exist"),
    ("report", "run=it's here", "run=it's here does not exist"),
    ("report", "runs=[a=b,c d]", "runs[0]=a=b does not exist"),
    ("timeline", "run={pairs}", "is no folder"),
    ("compare", "tuned=nowhere", "tuned=nowhere does not exist"),
    ("heads", "text={folder}", "is no file"),
    ("evolve", "evolve.folder=nowhere", "a folder of checkpoints"),
    ("finetune", "tune.data=(nowhere)", "a jsonl file of prompt, chosen and rejected"),
    ("generality", "generality.circuits=[x]", "a list of at least 2"),
]
# What is seen in the composed configuration.
COMPOSED: list[Case] = [
    ("export", "circuit={circuit} format=pruned out=small", "format=pruned writes a folder into the run's own"),
    ("train", "model.revision=main", "model.revision=main is of models on a hub, and model.source=package has none"),
    ("train", "ablation.steps=3", "see conf/ablation/"),
    ("train", "task.build.n_trian=3", "did you mean task.build.n_train?"),
    ("train", "+task.build.n_trian=3", "did you mean task.build.n_train?"),
    ("train", "task.build._target_=circuitlit.tasks.ioii", "did you mean circuitlit.tasks.ioi?"),
    ("train", "seed=${sede}", "takes its value from sede, which does not exist"),
    ("train", "logger.wandb.offline=maybe", "true or false"),
    ("train", "hydra.rnu.dir=x", "hydra.rnu.dir"),
    ("train", "trainer.precision=bf16-true", "would round the masks"),
    ("train", "model=local model.path=missing", "neither a folder with a config.json"),
    ("train", "task=jsonl task.build.path=~/nowhere.jsonl", f"{Path.home()}/nowhere.jsonl does not exist"),
    ("train", "task=jsonl", "task.build.path has no value"),
    ("train", "adapter=peft adapter.path=missing", "neither a folder nor a hub name"),
    ("train", "model=local model.path={long}", "/config.json' cannot be used (File name too long)"),
    ("train", "task=jsonl task.build.path={long}", "cannot be used (File name too long)"),
    ("train", "adapter=peft adapter.path={long}", "cannot be used (File name too long)"),
    ("train", "ckpt_path={folder}", "is a folder; name a .ckpt file"),
    ("train", "ckpt_path={circuit}/circuit.safetensors", "holds masks, not a checkpoint"),
    ("train", "ckpt_path={pairs}", "not a readable checkpoint"),
    ("attribute", "sparsity=own", "methods that choose their own size"),
    ("evaluate", "", "circuit has no value"),
    ("study", "study.learners=[{name: x, with: [mask=hard]}]", "there is no mask=hard"),
    ("behaviour", "behaviour.tasks=[sva,{name: sva, with: [task=sva]}]", "two entries of task are called 'sva'"),
    ("compare", "tuned={model} text={pairs}", "leave it out"),
    ("compare", "tuned={model} runs=[{model},{model}]", "exclude each other"),
    # presets of one's own
    ("train", "--resolve", "can only be used in conjunction with --cfg"),
    ("train", "--config-dir {conf} task=ioii", "did you mean task=ioi?"),
    ("train", "--config-dir {conf} experiment=broken", "broken.yaml, line 3: not YAML"),
    ("train", "--config-dir {conf} experiment=bare", "its first line: # @package _global_"),
    ("train", "--config-dir {conf} experiment=twice", "override /task: NAME"),
    ("train", "--config-dir {conf} experiment=twice task=ioi", "override /task: NAME"),
    ("train", "--config-dir {conf} experiment=typo", "did you mean mask.schedule?"),
    ("train", "--config-dir {conf} experiment=other", "the verb stands first"),
    ("train", "--config-dir {conf} experiment=elsewhere", "there is no task=iio; did you mean task=ioi?"),
]

EXPERIMENTS = {
    "broken": "seed: [1\n",
    "bare": "seed: 3\n",
    "twice": "defaults: [/task: sva]\n",
    "typo": "mask: {shedule: {steps: 3}}\n",
    "other": "verb: study\n",
    "elsewhere": "defaults: [override /task: iio]\n",
}


@pytest.fixture(scope="module")
def things(local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("things")
    graph = Graph(2, 2, 2)
    scores = EdgeScores(graph, torch.zeros(1, graph.n_edges), "test")
    (folder / "circuit").mkdir()
    Circuit.cut(scores, 5).save(folder / "circuit")
    (folder / "conf" / "experiment").mkdir(parents=True)
    for name, text in EXPERIMENTS.items():
        head = "" if name == "bare" else "# @package _global_\n"
        (folder / "conf" / "experiment" / f"{name}.yaml").write_text(head + text)
    return {
        "model": local / "model",
        "pairs": local / "pairs.jsonl",
        "circuit": folder / "circuit",
        "folder": folder,
        "conf": folder / "conf",
        "long": Path("n" * 300),
    }


@pytest.mark.parametrize("case", [*WORDS, *COMPOSED], ids=lambda case: " ".join(case[:2]))
def test_one_plain_sentence(
    case: Case, things: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, words, answer = case
    said = failure(capsys, *argv(words, things, tmp_path), verb=verb)
    assert answer in said and not HYDRAS.search(said), said
    assert {file.name for file in tmp_path.iterdir()} <= {".hydra", f"{verb}.log"}


def argv(words: str, things: dict[str, Path], out: Path) -> list[str]:
    """Words of a case; a new one begins where a setting, an option or a preset does."""
    for name, thing in things.items():
        words = words.replace(f"{{{name}}}", str(thing))
    split = re.split(r" (?=[~+\w./]+=|-)", words) if words else []
    more = [] if "hydra." in words else [f"hydra.run.dir={out}"]
    return [*(word for part in split for word in (part.split(" ") if part.startswith("-") else [part])), *more]


def test_there_are_many_and_none_is_there_twice() -> None:
    words = [case[:2] for case in (*WORDS, *COMPOSED)]
    assert len(words) == len(set(words)) >= 100
