"""A circuit watched in others' Trainers: nothing changes there, figures are right, drift is told."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from cli import call, failure, write_local
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback
from watched import SETTINGS, STEPS, examples, hf_trainer, own_log, pairs_of, state_of, tiny, tokenizer_of

from circuitlit import (
    CircuitWatch,
    Evolution,
    LightningCircuitWatch,
    Limits,
    Pairs,
    Subject,
    UserError,
    WatchedCircuit,
    follow_checkpoints,
    load_circuit,
    watch_checkpoints,
)
from circuitlit.discover.workbench import Resampler
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.similarity import corrected_jaccard, noise_floor
from circuitlit.evaluate.study.cells import StudySettings
from circuitlit.graph import Circuit
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.drift import alarms_of
from circuitlit.timeline.measured_heads import FollowSettings, HeadsFollowed
from circuitlit.timeline.watcher import Watcher, WatchSettings
from circuitlit.watch import pace
from circuitlit.watch.live import beside_training, language_model, refuse_sharded, subject_of, whole_model
from circuitlit.watch.pace import Pace
from circuitlit.watch.session import WatchSession


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local(tmp_path_factory.mktemp("local"))


class Reporter(TrainerCallback):
    """Stands for W&B's or TensorBoard's callback."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.rows.append({"step": state.global_step, **logs})


@pytest.mark.long
def test_hugging_faces_trainer_trains_as_without_it(local: Path, tmp_path: Path) -> None:
    """With dropout, accumulation, checkpointed activations, and its own log at steps that are read and at others."""
    hard = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "logging_steps": 2}
    plain = hf_trainer(local, tmp_path / "plain", **hard)
    watch, reporter = CircuitWatch(pairs_of(local), every=2, settings=SETTINGS), Reporter()
    watched = hf_trainer(local, tmp_path / "watched", reporter, watch, **hard)
    assert own_log(watched) == own_log(plain)
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    result = watch.result
    assert [one.step for one in result.readings] == [0, 2, 4, 6, 8]
    seen = [row for row in reporter.rows if "circuit/overlap" in row]
    assert [row["step"] for row in seen] == [0, 2, 4, 6, 8]
    assert [row["circuit/text_kl"] for row in seen] == [one.figures()["text_kl"] for one in result.readings]
    kept = [row for row in watched.state.log_history if "circuit/overlap" in row]
    assert [row["step"] for row in kept] == [0, 2, 4, 6, 8]


@pytest.mark.long
def test_what_it_leaves_is_read_again(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = CircuitWatch(pairs_of(local), every=1, settings=SETTINGS, folder=tmp_path / "own")
    hf_trainer(local, tmp_path, watch)
    folder, result = tmp_path / "own", watch.result
    assert WatchedCircuit.load(folder).to_dict() == result.to_dict()
    evolution = Evolution.load(folder)
    entry = evolution.series[0].tasks["own"]
    assert [row.step for row in entry.rows] == list(range(STEPS + 1))
    assert entry.stages == result.stages and len(entry.stages.stages) == 4 and entry.stages.n_snapshots == STEPS + 1
    page = (folder / "watch.html").read_text()
    assert "faithfulness of the start circuit" in page and f"{result.n_edges:,} of" in page
    assert not list(folder.glob("*.safetensors"))  # the start's log-probabilities, which are large
    capsys.readouterr()
    call(f"run={folder}", f"hydra.run.dir={tmp_path}/timeline", verb="timeline")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("initialization", "rapid_learning", "fine_tuning", "convergence"))
    assert f"{STEPS + 1} checkpoints to step {STEPS}" in printed


def test_lightnings_trainer_trains_as_without_it(local: Path, tmp_path: Path) -> None:
    def train(*callbacks: Any) -> tuple[list[float], Path]:
        kept: list[float] = []

        class Tuner(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.lm, self.more = tiny(local), nn.Linear(2, 2)

            def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
                loss = self.lm(**batch).loss
                kept.append(float(loss))
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.lm.parameters(), 1e-3)

        lightning.seed_everything(3, verbose=False)
        loader = torch.utils.data.DataLoader(examples(), 4, shuffle=True)  # type: ignore[arg-type]
        logger = CSVLogger(tmp_path, "logs")
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_steps=6, accumulate_grad_batches=2, accelerator="cpu", logger=logger, callbacks=list(callbacks), **quiet
        )
        trainer.fit(Tuner(), loader)
        return kept, Path(logger.log_dir)

    watch = LightningCircuitWatch(pairs_of(local), tokenizer_of(local), every=3, settings=SETTINGS)
    plain, (watched, folder) = train()[0], train(watch)
    assert watched == plain and len(plain) == 12
    assert [one.step for one in watch.result.readings] == [0, 3, 6]
    assert "circuit/faithfulness" in (folder / "metrics.csv").read_text()
    assert WatchedCircuit.load(folder / "watch").to_dict() == watch.result.to_dict()


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "lora"])
def test_a_reading_leaves_the_model_and_all_random_numbers_as_they_were(
    local: Path, tmp_path: Path, adapted: bool
) -> None:
    model = tiny(local)
    if adapted:
        lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    parameters = list(model.parameters())
    parameters[-1].requires_grad_(False)
    model.get_submodule("base_model.model.transformer.h.1" if adapted else "transformer.h.1").eval()
    model(**{name: row[None] for name, row in examples()[0].items()}).loss.backward()
    weights = [one.detach().clone() for one in parameters]
    before, numbers = state_of(model), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    session = WatchSession(pairs=pairs_of(local), every=1, settings=SETTINGS)
    session.begin(model, 0, 4, tokenizer_of(local), tmp_path, lambda _: None)
    session.after(model, 1, False, lambda _: None)
    assert state_of(model) == before and len(session.readings) == 2
    assert all(torch.equal(one, other) for one, other in zip(parameters, weights, strict=True))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[:2] == numbers[:2] and torch.equal(after[2], numbers[2])


def test_random_numbers_and_global_settings_come_back_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)

    def drawn() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    lightning.seed_everything(5, verbose=False)
    expected = drawn()
    lightning.seed_everything(5, verbose=False)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), beside_training(torch.device("cpu")):
        assert torch.is_grad_enabled()
        lightning.seed_everything(6, verbose=False, workers=True)
        torch.set_float32_matmul_precision("medium")
        drawn()
        raise ZeroDivisionError
    assert drawn() == expected and torch.get_float32_matmul_precision() == "highest"
    assert os.environ["PL_GLOBAL_SEED"] == "5" and "PL_SEED_WORKERS" in os.environ


def test_the_weights_are_shared_not_copied(local: Path) -> None:
    model = tiny(local)
    bench = prepare_bench(subject_of(model, tokenizer_of(local)), pairs_of(local))
    ours = {one.untyped_storage().data_ptr() for one in model.parameters()}
    theirs = {one.untyped_storage().data_ptr() for one in bench.model.parameters()}
    assert len(ours) > 20 and theirs <= ours
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.mul_(2)  # as an optimizer does
    assert torch.equal(bench.model.blocks[0].out_weight.flatten(), model.transformer.h[0].attn.c_proj.weight.flatten())


@pytest.mark.long
def test_readings_are_what_following_the_checkpoints_finds(local: Path, tmp_path: Path) -> None:
    """The same circuit, behaviour and figures as `follow_checkpoints`, at a start and after a change."""
    models = [tiny(local).eval() for _ in range(2)]
    with torch.no_grad():
        for one in models[1].parameters():
            one.add_(0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
    subjects = [Subject(one, tokenizer_of(local), "tiny") for one in models]
    checkpoints, own = [Checkpoint(0, "a"), Checkpoint(7, "b")], replace(SETTINGS, pairs=100, passages=2)

    def load(checkpoint: Checkpoint) -> Subject:
        return subjects[checkpoint.step > 0]

    found = watch_checkpoints(checkpoints, pairs_of(local), settings=own, load=load, folder=tmp_path / "watch")
    tasks = {"own": lambda one: prepare_bench(one, pairs_of(local), own.sparsity, batch_size=4, eval_batch_size=4)}
    settings = FollowSettings(smallest=False, resamples=0, draws=20, heads=HeadsFollowed(run=False))
    folder = tmp_path / "follow"
    followed = follow_checkpoints(checkpoints, tasks, own.method, settings, load=load, folder=folder)  # type: ignore[arg-type]
    for number, row in enumerate(followed.series[0].tasks["own"].rows):
        reading = found.readings[number]
        assert reading.cell.status == row.status
        for name in ("accuracy", "metric", "corrupted_accuracy", "corrupted_metric", "corrupted_kl"):
            ours, theirs = getattr(reading.cell.behaviour, name), getattr(row.behaviour, name)
            assert ours.value == pytest.approx(theirs.value, abs=1e-6)
        assert reading.cell.circuit.kl.value == pytest.approx(row.circuit.kl.value, abs=1e-5)
        ours, theirs = (
            Circuit.load(place / "circuits" / f"{name}--own--step{row.step}")
            for place, name in ((tmp_path / "watch", "training"), (folder, "model"))
        )
        assert torch.equal(ours.kept, theirs.kept)
    last = found.readings[1]
    by_hand = corrected_jaccard(*(load_circuit(path).kept for path in sorted((folder / "circuits").iterdir())))
    assert last.alike_start.corrected_jaccard == by_hand < 1 == found.readings[0].alike_start.corrected_jaccard
    assert last.text_kl is not None and last.text_kl.value is not None and last.text_kl.value > 0.01
    start = found.readings[0].text_kl
    assert start is not None and start.value == pytest.approx(0, abs=1e-7)


def test_limits_are_those_of_resampled_pairs_at_the_start(local: Path, tmp_path: Path) -> None:
    subject = subject_of(tiny(local), tokenizer_of(local))
    watcher = Watcher(
        "run", pairs_of(local), replace(SETTINGS, limits=Limits(faithfulness=-5.0, text_kl=0.05)), tmp_path
    )
    first = watcher.read(subject, 0)
    assert not first.alarms  # a start is never its own drift
    bench = watcher._bench(subject)
    spread, _ = noise_floor(Resampler(bench, SETTINGS.method), bench.cut, len(bench.data.train), SETTINGS.resamples, 0)
    assert watcher.limits.overlap == min(spread.values) < 1
    assert (watcher.limits.faithfulness, watcher.limits.text_kl) == (-5.0, 0.05)
    metric, least = first.cell.behaviour.metric, watcher.limits.metric
    assert metric.value is not None and metric.low is not None and least is not None
    apart = (
        2.576 * 2**0.5 * (metric.value - metric.low) / 1.96
    )  # 99 % of the distances of two resamples, were they normal
    assert metric.value - least == pytest.approx(apart, rel=0.25)
    assert alarms_of(watcher.read(subject, 1), watcher.limits) == []  # weights that stand still do not drift
    noisy = tiny(local)
    for one in noisy.parameters():
        nn.init.normal_(one, std=0.5)
    broken = watcher.read(subject_of(noisy, tokenizer_of(local)), 2)
    assert "text_kl" in {alarm.signal for alarm in broken.alarms}
    left = alarms_of(broken, watcher.limits, ("text_kl",))
    assert "text_kl" not in {alarm.signal for alarm in left}


def test_a_circuit_that_is_given_is_watched(local: Path, tmp_path: Path) -> None:
    subject = subject_of(tiny(local), tokenizer_of(local))
    bench = prepare_bench(subject, pairs_of(local), 0.5)
    given = bench.cut(bench.score(SETTINGS.method))
    given.save(tmp_path)
    watcher = Watcher("run", pairs_of(local), SETTINGS, tmp_path / "out", tmp_path)
    reading = watcher.read(subject, 0)
    assert reading.start.n_edges == reading.cell.circuit.n_edges == given.n_edges
    assert reading.alike_given is not None and 0 < reading.alike_given.corrected_jaccard <= 1
    other = Circuit.cut(given.scores, 3)
    assert Watcher("run", pairs_of(local), SETTINGS, tmp_path / "b", other).read(subject, 0).start.n_edges == 3


@pytest.mark.long
def test_an_alarm_warns_or_stops(local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = replace(SETTINGS, limits=Limits(text_kl=1e-6), without=("overlap", "faithfulness", "accuracy", "metric"))
    goes_on = CircuitWatch(pairs_of(local), every=3, settings=own)
    with caplog.at_level(logging.WARNING):
        assert hf_trainer(local, tmp_path / "a", goes_on).state.global_step == STEPS
    assert "circuit watch: drift at step 3: text_kl" in caplog.text and "goes on" in caplog.text
    assert goes_on.result.status == "DRIFT" and not goes_on.result.stopped
    stops = CircuitWatch(pairs_of(local), every=3, on_drift="stop", settings=own)
    assert hf_trainer(local, tmp_path / "b", stops).state.global_step == 3
    assert stops.result.stopped and stops.result.reason is not None and "step 3: text_kl" in stops.result.reason
    calm = CircuitWatch(pairs_of(local), every=3, on_drift="stop", settings=replace(own, limits=Limits(text_kl=50.0)))
    assert hf_trainer(local, tmp_path / "c", calm).state.global_step == STEPS and calm.result.status == "OK"


def test_weights_that_are_no_numbers_are_drift(local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                model.transformer.wte.weight.data.fill_(torch.nan)

    watch = CircuitWatch(pairs_of(local), every=2, on_drift="stop", settings=SETTINGS)
    assert hf_trainer(local, tmp_path, Breaks(), watch).state.global_step == 6
    assert watch.result.status == "DRIFT" and "finite" in (watch.result.reason or "")
    assert [one.step for one in watch.result.readings] == [0, 2, 4]
    assert "weights: not finite" in caplog.text


def test_a_reading_that_fails_ends_no_training(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Watcher.read

    def fails(self: Watcher, subject: Subject, step: int) -> Any:
        if step == 4:
            raise RuntimeError("out of memory")
        return whole(self, subject, step)

    monkeypatch.setattr(Watcher, "read", fails)
    watch = CircuitWatch(pairs_of(local), every=2, on_drift="stop", settings=SETTINGS)
    assert hf_trainer(local, tmp_path, watch).state.global_step == STEPS
    assert [one.step for one in watch.result.readings] == [0, 2, 6, 8]
    assert [(one.step, one.reason) for one in watch.result.unread] == [(4, "out of memory")]


def test_a_mistake_at_the_start_loses_nothing_of_an_earlier_training(local: Path, tmp_path: Path) -> None:
    hf_trainer(local, tmp_path, CircuitWatch(pairs_of(local), every=4, settings=SETTINGS))
    before = {path: path.read_bytes() for path in (tmp_path / "watch").rglob("*.*")}
    wrong = replace(SETTINGS, text=str(tmp_path / "nowhere.txt"))
    for circuit, settings in (("nowhere", SETTINGS), (None, wrong)):
        with pytest.raises(UserError, match="nowhere"):
            hf_trainer(local, tmp_path, CircuitWatch(pairs_of(local), circuit, settings=settings))
        assert {path: path.read_bytes() for path in (tmp_path / "watch").rglob("*.*")} == before
    hf_trainer(local, tmp_path, CircuitWatch(pairs_of(local), every=8, settings=SETTINGS))
    assert len(list((tmp_path / "watch" / "circuits").iterdir())) == 2  # those of the earlier training are gone


def test_a_training_that_goes_on_is_watched_on(local: Path, tmp_path: Path) -> None:
    def watch() -> CircuitWatch:
        return CircuitWatch(pairs_of(local), every=2, settings=SETTINGS, folder=tmp_path / "watch")

    whole = CircuitWatch(pairs_of(local), every=2, settings=SETTINGS)
    hf_trainer(local, tmp_path / "whole", whole)
    saved = {"save_strategy": "steps", "save_steps": 4}
    first, second = watch(), watch()
    first.on_train_end = lambda *_, **__: None  # type: ignore[method-assign]  # as if it had been killed
    hf_trainer(local, tmp_path / "run", first, **saved, max_steps=4)
    hf_trainer(local, tmp_path / "run", second, **saved, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert second.result.limits == whole.result.limits
    for ours, theirs in zip(second.result.readings, whole.result.readings, strict=True):
        assert replace(ours, seconds=0) == replace(theirs, seconds=0)


@pytest.mark.long
def test_a_training_that_goes_on_is_watched_with_the_same_settings_or_other_limits(
    local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4}
    hf_trainer(local, tmp_path, CircuitWatch(pairs_of(local), every=4, settings=SETTINGS), **saved)
    more = saved | {"resume": str(tmp_path / "checkpoint-4")}
    few = Pairs.from_list([json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()][:30])
    for pairs, changes, says in ((few, {}, "other pairs"), (pairs_of(local), {"sparsity": 0.3}, "other settings")):
        with pytest.raises(UserError, match=says):
            hf_trainer(local, tmp_path, CircuitWatch(pairs, every=4, settings=replace(SETTINGS, **changes)), **more)
    strict = CircuitWatch(pairs_of(local), every=4, settings=replace(SETTINGS, limits=Limits(accuracy=2.0)))
    hf_trainer(local, tmp_path, strict, **more)
    assert strict.result.limits.accuracy == 2 and strict.result.alarms[0][0] == 8


@pytest.mark.long
def test_afterwards_the_checkpoints_give_the_same_readings(local: Path, tmp_path: Path) -> None:
    watch = CircuitWatch(pairs_of(local), every=4, settings=SETTINGS)
    hf_trainer(local, tmp_path / "run", watch, save_strategy="steps", save_steps=4)
    base = [f"checkpoints={tmp_path}/run", f"base={local}/model", "model=local", f"model.path={local}/model"]
    task = ["task=jsonl", f"task.build.path={local}/pairs.jsonl", f"hydra.run.dir={tmp_path}/out"]
    own = ["sparsity.target=0.6", "watch.pairs=8", "data.eval_batch_size=4", "watch.passages=3", "watch.length=6"]
    call(*base, *task, *own, "watch.resamples=4", verb="watch")
    found = WatchedCircuit.load(tmp_path / "out")
    assert [one.step for one in found.readings] == [0, 4, 8] and found.limits == watch.result.limits
    for ours, theirs in zip(found.readings, watch.result.readings, strict=True):
        assert ours.figures() | {"seconds": 0} == theirs.figures() | {"seconds": 0}
    assert (tmp_path / "out" / "watch.html").is_file() and (tmp_path / "out" / "evolve.html").is_file()
    assert Evolution.load(tmp_path / "out").series[0].tasks["jsonl"].rows[2].step == 8


@pytest.mark.long
def test_adapters_start_from_the_model_that_they_are_on(local: Path, tmp_path: Path) -> None:
    model = get_peft_model(tiny(local), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    watch = CircuitWatch(pairs_of(local), every=4, settings=SETTINGS)
    more = {"save_strategy": "steps", "save_steps": 4, "learning_rate": 0.05}
    hf_trainer(local, tmp_path / "run", watch, model=model, **more)
    task = [f"checkpoints={tmp_path}/run", "model=local", f"model.path={local}/model", "task=jsonl"]
    own = [f"task.build.path={local}/pairs.jsonl", f"hydra.run.dir={tmp_path}/out", "sparsity.target=0.6"]
    small = ["watch.pairs=8", "data.eval_batch_size=4", "watch.passages=3", "watch.length=6", "watch.resamples=4"]
    call(*task, *own, *small, verb="watch")
    found = WatchedCircuit.load(tmp_path / "out")
    assert [one.step for one in found.readings] == [0, 4, 8]
    for ours, theirs in zip(found.readings, watch.result.readings, strict=True):
        figures = theirs.figures() | {"seconds": 0}
        assert ours.figures() | {"seconds": 0} == pytest.approx(figures, abs=1e-6)


def test_the_pace_keeps_all_readings_within_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 s and readings of 2 s on a clock of our own, the first reading three times as long."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])

    def train(steps: int, last: int | None, share: float = 0.05) -> tuple[list[int], float]:
        now[0], one, read_at = 0.0, Pace(last, None, share), [0]
        one.read(6.0)
        now[0] += 6.0
        one.begin(0)
        for step in range(1, steps + 1):
            now[0] += 1.0
            one.stepped(step)
            if step >= one.due or step == steps:
                if not one.plans or step == steps:
                    now[0] += 2.0
                    one.read(2.0)
                    read_at.append(step)
                one.plan(step)
        return read_at, one.spent / steps

    read_at, cost = train(1000, 1000)
    gaps = np.diff(read_at)[1:]
    assert cost <= 0.04 and len(read_at) == 1 + 17 and read_at[-1] == 1000 and gaps.max() - gaps.min() <= 2
    assert train(1000, None)[1] <= 0.05  # nobody knows the end
    assert train(100, 100)[0] == [0, 100]  # too short: start and end alone
    assert len(train(5000, 5000, 0.9)[0]) <= pace.MOST + 2


def test_settings_and_models_that_cannot_be_watched(local: Path, tmp_path: Path) -> None:
    pairs = pairs_of(local)
    for wrong in ({"on_drift": "halt"}, {"every": 0}, {"share": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            CircuitWatch(pairs, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'overlp' is no figure; choose from overlap, faithfulness"):
        WatchSettings(without=("overlp",))
    for kind in (WatchSettings, FollowSettings, StudySettings):
        with pytest.raises(UserError, match=r"resamples=1 .* at least 2, or 0"):
            kind(resamples=1)
    with pytest.raises(UserError, match="nothing was watched"):
        _ = CircuitWatch(pairs).result
    sharded = tiny(local)
    next(sharded.parameters()).ds_id = 0
    with pytest.raises(UserError, match=r"DeepSpeed's ZeRO-3 has shared .* checkpoints=FOLDER"):
        hf_trainer(local, tmp_path, CircuitWatch(pairs), model=sharded)
    spread = tiny(local)
    spread.transformer.wpe.to("meta")
    with pytest.raises(UserError, match="2 devices"):
        refuse_sharded(spread)
    two = nn.ModuleDict({"policy": tiny(local), "reference": tiny(local)})
    with pytest.raises(UserError, match=r"several \(policy, reference\); give model=NAME"):
        language_model(two)
    assert language_model(two, "policy") is two["policy"]
    with pytest.raises(UserError, match="holds none"):
        language_model(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no such module"):
        language_model(two, "student")
    wrapped = nn.Module()
    wrapped.module = two["policy"]  # as data parallel wrappers hold it
    assert whole_model(wrapped) is two["policy"]
    with pytest.raises(UserError, match="two checkpoints or more"):
        watch_checkpoints([Checkpoint(0, "a")], pairs)


@pytest.mark.parametrize(
    "word,says",
    [
        ("sparsity.select=greedy", "by top_k"),
        ("mask.roles=true", "mask.roles as they are"),
        ("data.chat=true", "chat template"),  # it is asked for
        ("watch.resamples=1", "at least 2"),
        ("watch.limits.text_kl=0.1", "passages=0 leaves other text out"),
        ("base={series}/step2", "begin with step 0"),
    ],
)
def test_the_verb_looks_at_a_setting_or_refuses_it(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:
    for step in (0, 2):
        shutil.copytree(local / "model", tmp_path / f"series/step{step}")
    words = [f"checkpoints={tmp_path}/series", "model=local", "model.path=null", "task=jsonl", "watch.passages=0"]
    words += [f"task.build.path={local}/pairs.jsonl", f"hydra.run.dir={tmp_path}/out"]
    words.append(word.format(series=tmp_path / "series"))
    assert says in failure(capsys, *words, verb="watch")


def _in_a_process(rank: int, local: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = replace(SETTINGS, limits=Limits(text_kl=0.01), without=("overlap", "faithfulness", "accuracy", "metric"))
    session = WatchSession(pairs=pairs_of(local), every=2, on_drift="stop", settings=own)
    model = nn.parallel.DistributedDataParallel(tiny(local))
    told = [session.begin(model, 0, 9, tokenizer_of(local), folder, lambda _: None)]
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * (step == 3) * torch.sin(torch.arange(parameter.numel()).view_as(parameter)))
        told.append(session.after(model, step, False, lambda _: None))
    (folder / f"told{rank}").write_text(f"{told} {[one.step for one in session.readings]}")


@pytest.mark.slow  # two processes import everything
def test_all_processes_stop_together_and_the_first_one_reads(local: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_in_a_process, (local, tmp_path), 2)
    said = [(tmp_path / f"told{rank}").read_text() for rank in (0, 1)]
    assert said == [f"{[False] * 4 + [True]} [0, 2, 4]", f"{[False] * 4 + [True]} []"]


def test_fully_sharded_weights_are_refused(local: Path, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = tiny(local)
        fully_shard(model)
        with pytest.raises(UserError, match="FSDP"):
            whole_model(model)
    finally:
        torch.distributed.destroy_process_group()
