"""The benchmark on tiny models: its plan against the allocator, its tables, what it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, failure, settings
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_subject
from circuitlit.cli.random_model import meta_subject, random_subject
from circuitlit.discover import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.attribution import time_attribution
from circuitlit.evaluate.cost.memory import StepShape, largest_batch, memory_parts, plan_memory, step_bytes
from circuitlit.evaluate.cost.training import time_training, traffic
from circuitlit.graph import Graph, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.short_attention import rotates_by_halves
from circuitlit.objective import kl_divergence
from circuitlit.run.bench import kinds
from circuitlit.run.bench.data import RandomPairs, random_workbench, step_shape
from circuitlit.run.bench.whole import Stopwatch
from circuitlit.tasks.encoded import EncodedPairs, Row

CONF = Path(__file__).parent.parent / "conf"
SHAPE = {
    "gpt2": [
        "model=gpt2",
        "model.architecture.n_layer=4",
        "model.architecture.n_embd=64",
        "model.architecture.n_head=4",
    ],
    "llama": [
        "model=smollm2",
        "model.architecture.num_hidden_layers=4",
        "model.architecture.hidden_size=64",
        "model.architecture.intermediate_size=128",
        "model.architecture.num_attention_heads=4",
        "model.architecture.num_key_value_heads=2",
    ],
}
for overrides in SHAPE.values():
    overrides += ["model.architecture.vocab_size=97", "data.batch_size=6", "tokens=24"]
DTYPES = ("bfloat16", "float32")
QUICK = ["callbacks.progress_bar=false", "logger=none", "repeats=2", "warmup=1", "dtypes=[float32]"]


def config(name: str, *more: str) -> DictConfig:
    return composed(*SHAPE[name], *more)


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("bench", [*words])


def shape(cfg: DictConfig) -> StepShape:
    return step_shape(cfg, cfg.tokens, cfg.answers, 0)


def step_of(cfg: DictConfig):
    """One step on the configured shape, ready to call; it leaves no buffers for the next."""
    subject = random_subject(cfg, "float32")  # what is drawn depends on the type
    subject.model.to(getattr(torch, cfg.model.dtype))
    loss = MaskedLoss(
        MaskedModel(subject, cfg.mask.panel, cfg.mask.recompute), MaskLayout(subject.graph), kl_divergence
    )
    pairs = RandomPairs(97, cfg.data.batch_size, 1, cfg.tokens, cfg.answers, cfg.data.batch_size, 0)
    batch = pairs.train.collate(range(cfg.data.batch_size))
    reference = References(subject, "interchange")(batch)
    masks = torch.rand(loss.layout.size, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(loss(masks, batch, reference), masks)
        loss.model.rooms.clear()
        return gradient

    return step


def peak_bytes(function) -> int:
    """Most bytes that the allocator held at once during a call, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top


@pytest.mark.parametrize("recompute", [False, "reads", True])
@pytest.mark.parametrize("name", SHAPE)
def test_plan_is_near_the_measured_peak(name: str, recompute: Any) -> None:
    """Within 30 %: the plan does not know when temporaries come and go."""
    cfg = config(name, f"mask.recompute={recompute}", "mask.panel=2")
    step = step_of(cfg)
    step()
    parts = memory_parts(meta_subject(cfg), shape(cfg))
    own = sum(size for part, size in parts.items() if part not in ("weights", "references"))
    assert own == pytest.approx(peak_bytes(step), rel=0.3)


@pytest.mark.long
def test_plan_counts_weights_and_scales_with_the_batch() -> None:
    cfg = config("gpt2")
    subject = random_subject(cfg, "float32")
    parts = memory_parts(meta_subject(cfg), shape(cfg))
    assert parts["weights"] == sum(p.nbytes for p in {*subject.model.parameters(), *subject.model.buffers()})
    room = sum(parts.values())
    sizes = ((1.02 * room, 6), (0.95 * room, 5), (parts["weights"], 0))
    assert all(largest_batch(meta_subject(cfg), shape(cfg), there) == pairs for there, pairs in sizes)
    sizes = [step_bytes(meta_subject(cfg), shape(cfg)) for cfg in (config("gpt2", f"model.dtype={d}") for d in DTYPES)]
    assert 0.4 < sizes[0] / sizes[1] < 0.75


@pytest.mark.parametrize(
    "model,pairs,strategy,measured",
    [
        ("codellama_13b", 8, "fsdp", 32.6),
        ("codellama_13b", 8, "deepspeed_3", 35.3),
        ("codellama_34b", 4, "fsdp", 61.6),
        ("codellama_34b", 4, "deepspeed_3", 67.2),
    ],
)
def test_plan_of_shared_weights_is_what_two_cards_took(model: str, pairs: int, strategy: str, measured: float) -> None:
    """GiB on each of two H200s; `python launch/engines.py 2` measures them."""
    cfg = composed(
        *[f"model={model}", f"data.batch_size={pairs}", f"strategy={strategy}", "strategy.options.devices=2"],
        *["tokens=64", "mask.panel=2", "mask.cache_gib=0", "model.dtype=bfloat16"],
    )
    rotates_by_halves.cache_clear()
    total = sum(memory_parts(meta_subject(cfg), shape(cfg)).values())
    assert total / 2**30 == pytest.approx(measured, rel=0.05)


@pytest.mark.long
def test_plan_of_a_large_model_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotates_by_halves.cache_clear()  # tried on the meta device, where a process that only plans comes by first
    call(
        "plan=true", "model=codellama_13b", "data.batch_size=8", "tokens=64", f"hydra.run.dir={tmp_path}", verb="bench"
    )
    (row,) = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert row["edges"] == 3_877_661
    assert row["gib"]["weights"] == pytest.approx(24.2, abs=0.1)
    assert row["gib"]["deltas"] == pytest.approx(1641 * 8 * 64 * 5120 * 2 / 2**30)
    assert "largest batch in 80 GiB" in capsys.readouterr().out


def test_a_plan_of_each_dtype(tmp_path: Path) -> None:
    for kind in ("step", "length"):
        words = (*SHAPE["gpt2"], "plan=true", f"bench={kind}", "dtypes=[bfloat16]", f"hydra.run.dir={tmp_path / kind}")
        call(*words, verb="bench")
        rows = json.loads((tmp_path / kind / "bench.json").read_text())["measured"]
        assert [row["dtype"] for row in rows] == ["bfloat16"]
    found = kinds.memory(config("gpt2", "dtypes=[bfloat16,float32]")).measured
    assert found[1].gib["deltas"] == 2 * found[0].gib["deltas"]


def test_traffic_by_hand() -> None:
    """Two sequential layers of one head: readers q, k, v, m; writers input, a0, m0, a1, m1."""
    graph = Graph(2, 1, 1)
    one_by_one = (1 + 4) + (1 + 1) + (3 + 4) + (1 + 1) + (5 + 1)
    together = (1 + 8) + (1 + 1) + (2 + 3) + (3 + 1) + (5 + 1)
    assert traffic(graph, 1, 7, 11) == 3 * 7 * 11 * one_by_one
    assert traffic(graph, 2, 7, 11) == 3 * 7 * 11 * together


def test_stopwatch_gives_every_second_to_one_phase() -> None:
    class Work:
        @classmethod
        def inner(cls) -> int:
            return sum(range(200_000))

        def outer(self) -> int:
            return self.inner()

    watch, original = Stopwatch(), vars(Work)["inner"]
    with watch.watch(Work, "inner", "inner"), watch.watch(Work, "outer", "outer"):
        assert Work().outer() == sum(range(200_000))
    assert vars(Work)["inner"] is original
    assert 0 < watch.seconds["outer"] < watch.seconds["inner"]


@pytest.mark.long
def test_step_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(*SHAPE["gpt2"], *QUICK, f"hydra.run.dir={tmp_path}", verb="bench")
    (row,) = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert set(row["phases"]) == {"references", "masks", "forward", "backward", "optimizer", "data and callbacks"}
    assert sum(row["phases"].values()) == pytest.approx(row["step"], rel=0.5)
    assert row["to_stock"] == pytest.approx(row["step"] / row["stock"])
    assert row["edges"] == Graph(4, 4, 4).n_edges
    assert "step / stock" in capsys.readouterr().out


@pytest.mark.long
def test_a_step_has_the_masks_and_the_ablation_that_are_set(tmp_path: Path) -> None:
    """The published recipe wants masks on edges and nodes; means stand in as in a run."""
    subject, layout = random_subject(config("gpt2"), "float32"), MaskLayout(Graph(4, 4, 4), sites="both")
    for kind in ("mean", "optimal"):
        bench = random_workbench(config("gpt2", "mask.sites=both", f"ablation={kind}"), subject, 12)
        assert bench.layout == layout and bench.count == round(0.05 * layout.n_edges)
        assert bench.references.mean is not None
    recipe = ("mask=edge_pruning_2024", "ablation=mean", f"hydra.run.dir={tmp_path}")
    call(*SHAPE["gpt2"], *QUICK, *recipe, verb="bench")
    (row,) = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert row["step"] > 0


@pytest.mark.long
def test_scaling_has_positions_for_twice_the_tokens(tmp_path: Path) -> None:
    words = ("bench=scaling", "model.architecture.n_positions=24", f"hydra.run.dir={tmp_path}")
    call(*SHAPE["gpt2"], *QUICK, *words, verb="bench")
    rows = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert [row["tokens"] for row in rows] == [24, 24, 12, 24, 48, 24, 24, 24]


@pytest.mark.long
def test_step_of_micro_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step is all its micro-batches, and so is what it is compared with."""
    rows = []
    for pairs, micro_batches in ((4, 1), (2, 2)):
        settings = (f"data.batch_size={pairs}", f"trainer.accumulate_grad_batches={micro_batches}")
        call(*SHAPE["gpt2"], *QUICK, *settings, f"hydra.run.dir={tmp_path / str(pairs)}", verb="bench")
        rows += json.loads((tmp_path / str(pairs) / "bench.json").read_text())["measured"]
    assert rows[0]["traffic_bytes"] == rows[1]["traffic_bytes"]
    assert sum(rows[1]["phases"].values()) == pytest.approx(rows[1]["step"], rel=0.5)
    assert "2 micro-batches of 2 x" in capsys.readouterr().out


@pytest.mark.long
def test_cost_against_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Room for 128 tokens without, for 256 with recomputing, and for no 512; references are at the host."""
    long = [*SHAPE["gpt2"], "model.architecture.n_positions=64", "data.batch_size=2", "tokens=512", "mask.panel=2"]
    long += ["bench=length", "examples=4", "mask.cache_gib=0", "mask.host_gib=1", "trainer.accelerator=cpu"]
    call(*long, "plan=true", f"hydra.run.dir={tmp_path / 'plan'}", verb="bench")
    planned = json.loads((tmp_path / "plan" / "bench.json").read_text())["measured"]
    assert [(row["tokens"], row["recompute"]) for row in planned] == [(128, False), (256, False), (512, False)]
    cfg = config("gpt2", "data.batch_size=2", "mask.panel=2", "model.architecture.n_positions=512")

    def need(tokens: int, **way: Any) -> float:
        found = memory_parts(meta_subject(cfg), replace(step_shape(cfg, tokens, 1, 4), cache_gib=0, **way))
        return sum(found.values()) / 2**30

    capsys.readouterr()
    room = need(256, recompute="reads")
    assert need(128) < room < min(need(256), need(512, panel=1, recompute=True))
    call(*long, *QUICK, f"gib={1.01 * room}", f"hydra.run.dir={tmp_path / 'run'}", verb="bench")
    ran = json.loads((tmp_path / "run" / "bench.json").read_text())["measured"]
    assert [(row["tokens"], row["recompute"], row["cached"]) for row in ran] == [
        (128, False, True),
        (256, "reads", True),
    ]
    printed = capsys.readouterr().out
    assert "512 tokens" in printed and "does not fit" in printed and "Cost against length" in printed


def test_attribution_table(tmp_path: Path) -> None:
    call(*SHAPE["llama"], *QUICK, "bench=eap", f"hydra.run.dir={tmp_path}", verb="bench")
    (row,) = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert row["method"] == "mask_gradients" and row["to_stock"] > 0


def test_phases_of_a_whole_run(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each phase is timed: what is watched by its name is still called by it."""
    call("bench=run", *settings(local, tmp_path, "logger=none"), verb="bench")
    (row,) = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert min(row["phases"].values()) > 0, row["phases"]
    assert sum(row["phases"].values()) == pytest.approx(row["seconds"])
    assert row["steps"] == 12 and "held-out evaluation" in capsys.readouterr().out


def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, word in {
        "bench=speed": "scaling",
        "dtypes=[int8]": "float32",
        "answers=99": "tokens=24",
        "mask.roles=true": "random tokens have no roles",
        "bench=eap plan=true": "bench=length",
        "bench=eap profile=true": "bench=step",
        "bench=scaling dtypes=[float32,bfloat16]": "dtypes=[bfloat16]",
        "model.architecture.n_head=5": "no shape of a model",
        "model.architecture.model_type=gtp2": "no shape of a model",
    }.items():
        line = failure(capsys, *SHAPE["gpt2"], *QUICK, *given.split(), f"hydra.run.dir={tmp_path}", verb="bench")
        assert word in line, line


def test_what_is_no_measurement_in_python() -> None:
    cfg = config("gpt2")
    bench = random_workbench(cfg, random_subject(cfg, "float32"), 12)
    for given in ({"repeats": 0}, {"warmup": -1}, {"micro_batches": 0}):
        with pytest.raises(UserError, match="at least 1, 0 and 1"):
            time_training(bench, **given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batches=0 leaves nothing"):
        time_attribution(bench, build_method(cfg), 0)
    for given, word in ({"pairs": 0}, "pairs=0"), ({"panel": 0}, "panel=0"), ({"recompute": "read"}, "recompute=read"):
        with pytest.raises(UserError, match=word):
            replace(shape(cfg), **given)
    with pytest.raises(UserError, match="gib=nan"):
        plan_memory(meta_subject(cfg), shape(cfg), float("nan"))


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_left_out_where_it_is_emulated(
    has: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kinds, "has_bfloat16", lambda: has)
    cfg = config("gpt2", "trainer.accelerator=cpu")
    assert kinds.wanted_dtypes(cfg) == ["float32", "bfloat16"][: 1 + has]
    assert ("left out" in capsys.readouterr().out) != has
    assert kinds.wanted_dtypes(config("gpt2", "dtypes=[bfloat16]")) == ["bfloat16"]


def test_bfloat16_is_near_float32() -> None:
    """Masks and their gradients stay float32; logits' KL and scores differ by bfloat16's rounding alone."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        cfg = config("llama", f"model.dtype={dtype}")
        gradient = step_of(cfg)()
        assert gradient.dtype == torch.float32
        found[dtype] = gradient
    exact, rough = found["float32"], found["bfloat16"]
    assert float((exact - rough).norm() / exact.norm()) < 0.08
    best = [set(g.abs().topk(len(g) // 10).indices.tolist()) for g in (exact, rough)]
    assert len(best[0] & best[1]) > 0.85 * len(best[0])


def test_buckets_round_up_but_not_above_the_longest() -> None:
    rows = [Row((1,) * n, (2,) * n, (3,), n - 1, 0, 4, (0,) * n) for n in (5, 9, 11, 19)]
    pairs = EncodedPairs(rows, ("other", "end"))
    assert [pairs.collate([i], multiple=8).clean.shape[1] for i in range(4)] == [8, 16, 16, 19]
    assert pairs.collate([1], multiple=1).clean.shape[1] == 9


def test_random_pairs_are_never_zero() -> None:
    pairs = RandomPairs(97, 8, 2, 12, 3, 4, 0)
    batch = pairs.train.collate(range(8))
    assert int(batch.clean.min()) > 0 and int(batch.corrupted.min()) > 0
    assert batch.positions[0].tolist() == [9, 10, 11] and not torch.equal(batch.clean, batch.corrupted)


def test_a_model_of_random_weights_reads_a_task(local: Path) -> None:
    tokenizer = f"model.path={local / 'model'}"
    random = ["model.source=random", "model.dtype=float32", "trainer.accelerator=cpu"]
    subject = build_subject(config("llama", *random, tokenizer))
    assert subject.tokenizer is not None and subject.provenance["source"] == "random weights"
    assert subject.graph.n_edges == meta_subject(config("llama")).graph.n_edges
    for more, words in {
        "model.path=nowhere": "no folder",
        "model.architecture.vocab_size=3": "3; raise model.architecture.vocab_size",
        "model.architecture=null": "has no model.architecture",
        "+adapter.path=nowhere": "no trained adapter",
    }.items():
        with pytest.raises(UserError, match=words):
            build_subject(config("llama", *random, tokenizer, more))
