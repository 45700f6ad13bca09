"""The verb evolve on a tiny GPT-NeoX series, and its parts by hand."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from cli import call, failure, move_weights
from hydra import compose, initialize_config_dir
from lightning import Trainer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from circuitlit import Method, Pairs, PairsModule, Subject, Workbench, eap, eap_ig
from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import corrected_jaccard
from circuitlit.finetune.mixture import KINDS, LISTS, VOCABULARY, mixture, mixture_pairs, mixture_tokenizer
from circuitlit.finetune.pretrain import Recipe, log_steps, pretrain
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.objective import negative_metric
from circuitlit.report.evolution_table import causal_lines
from circuitlit.run.evolve import configured
from circuitlit.run.evolve.series import claims_of, parted
from circuitlit.timeline import follow as following
from circuitlit.timeline.checkpoints import SCHEDULES, Checkpoint, hub_checkpoints, local_checkpoints, scheduled_steps
from circuitlit.timeline.evolution import Evolution
from circuitlit.timeline.follow import Series, follow_checkpoints, head_jobs
from circuitlit.timeline.measured_heads import FollowSettings, HeadsFollowed
from circuitlit.timeline.series import Noise, Point, follow, smoothed, velocities

STEPS = (0, 1, 2, 10)
NUMBERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models on a straight line between two random ones, named as Pythia's revisions are, and pairs."""
    folder = tmp_path_factory.mktemp("series")
    config = GPTNeoXConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **NUMBERS)
    torch.manual_seed(0)
    ends = [GPTNeoXForCausalLM(config).state_dict() for _ in range(2)]
    for number, step in enumerate(STEPS):
        model = GPTNeoXForCausalLM(config)
        share = number / (len(STEPS) - 1)
        mixed = {name: 4 * torch.lerp(ends[0][name], ends[1][name], share) for name in ends[0]}
        model.load_state_dict(mixed)
        model.save_pretrained(folder / f"step{step}")
        mixture_tokenizer().save_pretrained(folder / f"step{step}")
    splits = ["train"] * 8 + ["val"] * 8 + ["test"] * 8
    lines = [pair | {"split": split} for pair, split in zip(mixture_pairs("repeats", 24, 0, 4), splits, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def settings_of(series: Path, out: Path, *more: str) -> list[str]:
    own = [f"evolve.folder={series}", f"task.build.path={series}/pairs.jsonl", f"hydra.run.dir={out}"]
    small = ["model=local", "model.path=null", "logger=csv", "task=jsonl", "sparsity.target=0.7", "evolve.resamples=2"]
    heads = ["evolve.heads.length=6", "evolve.heads.draws=2", "evolve.heads.threshold=0.106", "evolve.heads.top=2"]
    return [*own, *small, *heads, "method.score.steps=1", "evolve.probe_pairs=4", *more]


def results(out: Path) -> dict:
    """What was found, without times and paths."""
    found = json.loads((out / "evolve.json").read_text())
    return {key: value for key, value in found.items() if not key.startswith("seconds")}


def same(ours: object, theirs: object) -> bool:
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


@pytest.fixture(scope="module")
def whole(series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verb finds in the series."""
    folder = tmp_path_factory.mktemp("evolve") / "whole"
    call(*settings_of(series, folder), verb="evolve")
    return folder


@pytest.mark.long
def test_a_series_end_to_end_and_interrupted(
    series: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results(whole)
    one = found["series"][0]
    rows = one["tasks"]["jsonl"]["rows"]
    assert [row["step"] for row in rows] == list(STEPS) and found["errors"] == []
    with open(whole / "csv" / "version_0" / "metrics.csv") as file:
        logged = [(int(row["step"]), row[f"{one['name']}/jsonl/accuracy"]) for row in csv.DictReader(file)]
    assert [(step, float(said)) for step, said in logged] == [
        (r["step"], r["behaviour"]["accuracy"]["value"]) for r in rows
    ]
    assert [row["likeness"]["last"]["corrected_jaccard"] for row in rows][-1] == 1
    assert rows[0]["likeness"]["previous"] is None and rows[1]["likeness"]["previous"]["nodes"]["jaccard"] <= 1
    learned = one["tasks"]["jsonl"]["learned"]
    assert learned["shared"] is None or learned["shared"]["nodes"]["p_holm"] >= learned["shared"]["nodes"]["rank_p"]
    page = (whole / "evolve.html").read_text()
    assert "eighbouring checkpoints" in page and "plotly" in page
    assert {row["circuit"]["n_edges"] for row in rows} == {round(0.3 * rows[0]["n_edges_total"])}
    assert one["causal"]["status"] == "OK" and len(one["causal"]["heads"]) <= 2
    check, said = one["causal"]["loss"], " ".join(causal_lines(Evolution.load(whole).series[0]))
    assert check["p_holm"] >= check["rank_p"] and f"p = {check['p_holm']:.2g}" in said
    assert one["tasks"]["jsonl"]["noise"]["n_circuits"] == 2
    made: list[str] = []
    work = configured.measure_task

    def counted(*args, **more):
        made.append("cell")
        return work(*args, **more)

    monkeypatch.setattr(configured, "measure_task", counted)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "evolve.json").unlink()
    for step in STEPS[2:]:
        for path in [*broken.glob(f"cells/*--step{step}.json"), *broken.glob(f"circuits/*--step{step}")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    call(*settings_of(series, broken), verb="evolve")
    assert len(made) == len(STEPS) - 2
    assert same(results(broken), found)
    made.clear()
    call(*settings_of(series, broken, "evolve.faithfulness=0.5"), verb="evolve")
    assert len(made) == len(STEPS)  # other settings, other cells


def bench_of(series: Path) -> Callable[[Subject], Workbench]:
    """Makes the workbench of the verb."""
    pairs = Pairs.from_list([json.loads(line) for line in (series / "pairs.jsonl").read_text().splitlines()])

    def bench(subject: Subject) -> Workbench:
        assert subject.tokenizer is not None
        return Workbench.build(subject, PairsModule(pairs, subject.tokenizer, 8, 0, eval_batch_size=16), 0.7)

    return bench


@pytest.mark.long
def test_in_python_checkpoints_are_followed_as_by_the_verb(series: Path, whole: Path, tmp_path: Path) -> None:
    bench, method = bench_of(series), Method.of(eap_ig, negative_metric, steps=1)
    heads = HeadsFollowed(length=6, draws=2, threshold=0.106, top=2)
    settings = FollowSettings(resamples=2, probe_pairs=4, heads=heads)

    def follow_all() -> Evolution:
        checkpoints = local_checkpoints(series, None)
        return follow_checkpoints(checkpoints, {"own": bench}, method, settings, folder=tmp_path)

    found = follow_all()
    found.save(tmp_path)
    assert Evolution.load(tmp_path) == found and len(found.to_frame()) == len(STEPS)
    verb = Evolution.load(whole)
    assert found.series[0].heads == verb.series[0].heads
    ours, theirs = (one.series[0].tasks[name].rows[-1] for one, name in ((found, "own"), (verb, "jsonl")))
    assert ours.circuit == theirs.circuit and ours.behaviour == theirs.behaviour
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    assert (
        follow_checkpoints(local_checkpoints(series, None), {"own": bench}, method, settings, folder=tmp_path) == found
    )
    assert made == {file: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}


def counted(monkeypatch: pytest.MonkeyPatch, place: Any) -> list[str]:
    """The steps at which a task is measured from now on."""
    made, work = [], place.measure_task

    def measured(bench: Workbench, *args: Any) -> Any:
        made.append(str(bench.subject.provenance["path"]).rsplit("step", 1)[1])
        return work(bench, *args)

    monkeypatch.setattr(place, "measure_task", measured)
    return made


@pytest.mark.long
def test_new_weights_in_the_same_place_are_measured(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, made = tmp_path / "series", counted(monkeypatch, configured)
    shutil.copytree(series, moved)
    words = ["evolve.schedule=[0,1]", "evolve.smallest=false", "evolve.resamples=0", "evolve.heads.run=false"]
    for _ in range(2):
        call(*settings_of(moved, tmp_path / "out", *words), verb="evolve")
    assert made == ["0", "1"]
    move_weights(moved / "step1")
    call(*settings_of(moved, tmp_path / "out", *words), verb="evolve")
    assert made == ["0", "1", "1"]


def test_a_late_mistake_leaves_what_is_measured(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(**_: object) -> None:
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuses)
    words = ["evolve.schedule=[0]", "evolve.smallest=false", "evolve.resamples=0", "evolve.heads.run=false"]
    said = failure(capsys, *settings_of(series, tmp_path, *words, "logger=wandb"), verb="evolve")
    assert "(No API key configured); take logger=wandb_offline" in said
    assert [*tmp_path.glob("cells/*.json")] and [*tmp_path.glob("circuits/*/circuit.json")]


@pytest.mark.long
def test_in_python_new_weights_and_a_new_last_checkpoint_are_measured(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, made = tmp_path / "series", counted(monkeypatch, following)
    shutil.copytree(series, moved)
    settings = FollowSettings(resamples=2, smallest=False, probe_pairs=4, heads=HeadsFollowed(run=False))

    def follow(*steps: int) -> Noise:
        bench, method = bench_of(series), Method.of(eap, negative_metric)
        found = follow_checkpoints(local_checkpoints(moved, steps), {"own": bench}, method, settings, folder=tmp_path)
        return found.series[0].tasks["own"].noise

    short = follow(0, 1)
    assert short == follow(0, 1) and made == ["0", "1"]
    assert follow(0, 1, 2) != short and made == ["0", "1", "1", "2"]  # the noise floor is the last one's
    move_weights(moved / "step0")
    follow(0, 1, 2)
    assert made == ["0", "1", "1", "2", "0"]


def test_more_claims_ablate_induction_heads_beside_more_random_ones() -> None:
    few, more = (head_jobs(FollowSettings(), ["known"], True, draws) for draws in (20, 100))
    assert few[0].settings == more[0].settings and few[1].settings != more[1].settings


@pytest.mark.long
def test_masks_begin_with_those_of_the_checkpoint_before(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = ["evolve.circuits=masks", "mask.schedule.steps=3", "evolve.cold_every=2", "evolve.heads.run=false"]
    call(*settings_of(series, tmp_path / "a", *masks, "evolve.schedule=[0,1,2]"), verb="evolve")
    rows = results(tmp_path / "a")["series"][0]["tasks"]["jsonl"]["rows"]
    assert [row["cold_overlap"] is not None for row in rows] == [False, False, True]
    assert -1 <= rows[2]["cold_overlap"] <= 1
    shutil.rmtree(tmp_path / "a/circuits/local--jsonl--step2")
    (tmp_path / "a/cells/local--jsonl--step2.json").unlink()
    call(*settings_of(series, tmp_path / "a", *masks, "evolve.schedule=[0,1,2]"), verb="evolve")
    assert same(results(tmp_path / "a")["series"][0]["tasks"]["jsonl"]["rows"], rows)
    made = counted(monkeypatch, configured)
    call(
        *settings_of(series, tmp_path / "a", *masks, "evolve.schedule=[0]", "trainer.accumulate_grad_batches=2"),
        verb="evolve",
    )
    assert made == ["0"]


@pytest.mark.long
def test_what_fails_is_recorded_and_the_rest_goes_on(series: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "series"
    shutil.copytree(series, damaged)
    (damaged / "step1" / "model.safetensors").write_bytes(b"nothing")
    out = tmp_path / "out"
    call(*settings_of(damaged, out, "evolve.faithfulness=1000", "evolve.heads.run=false"), verb="evolve")
    found = results(out)
    assert [(row["step"], row["task"]) for row in found["errors"]] == [(1, "jsonl")]
    rows = found["series"][0]["tasks"]["jsonl"]["rows"]
    assert [row["step"] for row in rows] == [0, 2, 10]
    assert {row["status"] for row in rows} == {"FAILED"} and all(row["reason"] for row in rows)
    shutil.copy(series / "step1/model.safetensors", damaged / "step1/model.safetensors")
    call(*settings_of(damaged, out, "evolve.faithfulness=1000", "evolve.heads.run=false"), verb="evolve")
    assert results(out)["errors"] == []


def test_pythia_experiment_runs_on_a_folder_of_revisions(series: Path, tmp_path: Path) -> None:
    more = ["task.build.path=" + str(series / "pairs.jsonl"), f"evolve.folder={series}", "data.batch_size=8"]
    call(
        "experiment=pythia_160m_ioi",
        "task=jsonl",
        "evolve.tasks=null",
        *more,
        "method.score.steps=2",
        "evolve.resamples=0",
        "evolve.heads.draws=2",
        "evolve.heads.length=6",
        f"hydra.run.dir={tmp_path}",
        verb="evolve",
    )
    rows = results(tmp_path)["series"][0]["tasks"]["jsonl"]["rows"]
    assert [(row["step"], row["tokens"]) for row in rows] == [(s, s * 2_097_152) for s in (0, 1, 2)]


@pytest.mark.long
def test_the_ioi_algorithm_over_checkpoints_is_that_of_heads(series: Path, tmp_path: Path) -> None:
    pairs = [pair | {"split": ("train", "test", "val")[n % 3]} for n, pair in enumerate(mixture_pairs("names", 24, 0))]
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    task = f"task.build.path={tmp_path}/names.jsonl"
    more = ["evolve.heads.algorithm=D", "evolve.smallest=false", "evolve.resamples=0", "evolve.schedule=[0,10]"]
    call(*settings_of(series, tmp_path / "out", *more, "evolve.heads.backup=20", task), verb="evolve")
    entry = results(tmp_path / "out")["series"][0]["tasks"]["jsonl"]
    found = entry["rows"][-1]["algorithm"]
    sizes = ["heads.repeats.sequences=16", "heads.repeats.length=6", "heads.pairs=32", "heads.causal.run=false"]
    call(
        "model=local",
        f"model.path={series}/step10",
        "task=jsonl",
        task,
        *sizes,
        "heads.algorithm.copy_suppression=false",
        "heads.top=2",
        f"hydra.run.dir={tmp_path}/heads",
        verb="heads",
    )
    alone = json.loads((tmp_path / "heads" / "heads.json").read_text())["details"]["ioi_algorithm"]
    assert found["of"] == "all heads" and 0 < found["shares"]["B"]["share"]["value"] <= 1
    assert found["roles"] == alone["roles"] and found["shares"] == alone["shares"]
    asked = [row["algorithm"] for row in entry["rows"]]
    assert all(set(one["backup"]["ablated"]) <= set(one["roles"]["name_mover"]) for one in asked)
    assert all((one["backup"]["status"] == "OK") <= bool(one["roles"]["name_mover"]) for one in asked)
    assert [row["step"] for row in entry["algorithm_roles"]["name_mover"]["over_steps"]] == [0, 10]


def test_pairs_of_names_say_where_they_stand() -> None:
    for pair in mixture_pairs("names", 20, 0):
        said = {role: pair["clean"][start:end] for role, (start, end) in pair["roles"].items()}
        assert said["io"] == pair["answer"].strip() and said["s1"] == said["s2"] == pair["wrong_answer"].strip()
        assert pair["roles"]["s1"] != pair["roles"]["s2"]


@pytest.mark.parametrize(
    "more,says",
    [
        (["evolve.schedule=[0,7]"], "has no step 7"),
        (["evolve.schedule=late"], "has no step 4000"),
        (["evolve.part=2", "evolve.parts=2"], "parts 0 to 1"),
        (["evolve.folder=null"], "has no revisions"),
        (["evolve.resamples=1"], "at least 2, or 0"),
        (["evolve.heads.backup=20"], "add heads.algorithm=B"),
    ],
)
def test_wrong_input(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert says in failure(capsys, *settings_of(series, tmp_path / "out", *more), verb="evolve")
    assert not (tmp_path / "out" / "cells").exists()


def test_schedules_by_hand() -> None:
    assert len(SCHEDULES["all"]) == 154 and SCHEDULES["all"][:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert len(SCHEDULES["late"]) == 140 and SCHEDULES["late"][0] == 4000
    assert len(SCHEDULES["detail"]) == 10 + 15 + 10 + 8 and SCHEDULES["detail"][-1] == 140_000
    assert SCHEDULES["sparse"][:4] == [256, 512, 1000, 2000] and len(SCHEDULES["sparse"]) == 2 + 9 + 8 + 5 + 4
    assert all(steps == sorted(set(steps)) and set(steps) <= set(SCHEDULES["all"]) for steps in SCHEDULES.values())
    assert scheduled_steps([4, 1, 4]) == [1, 4]
    assert [c.revision for c in hub_checkpoints("a/b", [0, 512])] == ["step0", "step512"]
    assert hub_checkpoints("a/b", [1000], tokens_per_step=2_097_152)[0].tokens == 2_097_152_000
    assert log_steps(20) == [0, 1, 2, 4, 8, 16, 20] and log_steps(4, 2) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="step"):
        hub_checkpoints("a/b", "log", revision="main")


def test_checkpoints_of_an_index(tmp_path: Path) -> None:
    rows = [{"step": 3, "folder": "step_000003", "tokens": 30}, {"step": 0, "folder": "step_000000", "tokens": 0}]
    (tmp_path / "checkpoints").mkdir()
    index = tmp_path / "checkpoints" / "checkpoints.json"
    index.write_text(json.dumps({"kind": "peft", "checkpoints": rows}))
    found = local_checkpoints(tmp_path, None, base="the/base")
    assert [(c.step, c.tokens, c.path) for c in found] == [(0, 0, "the/base"), (3, 30, "the/base")]
    assert found[1].adapter == str(index.parent / "step_000003")
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        local_checkpoints(tmp_path, None)


def test_likeness_by_hand() -> None:
    graph = Graph(n_layers=1, n_heads=1, n_kv_heads=1, parallel=True)
    total = graph.n_edges
    first, second = torch.zeros(1, total), torch.zeros(1, total)
    first[0, :2], second[0, 1:3] = 1, 1
    points = [
        Point(step, 0.0, Circuit.of(EdgeScores(graph, scores, "given"), scores > 0))
        for step, scores in ((1, first), (2, second), (4, second))
    ]
    rows = follow(points)
    assert rows[0].last.jaccard == pytest.approx(1 / 3) and rows[0].last.weighted_jaccard == 1 / 3
    assert rows[1].previous and rows[1].previous.edges_changed == 2 and rows[1].previous.score_distance == 1
    alike = corrected_jaccard(points[0].circuit.kept, points[1].circuit.kept)
    assert [row.edge_ewma for row in rows] == [None, pytest.approx(alike), pytest.approx((1 + alike) / 2)]
    nodes = rows[1].previous.nodes
    assert nodes.jaccard == 1 and rows[1].node_ewma == nodes.corrected
    assert smoothed([1.0, 0.0, 0.0]) == [1.0, 0.5, 0.25]
    speed = velocities([0, 1, 3], [0.5, math.nan], noise=0.1)
    assert np.allclose(speed, [0.4 / math.log(2), 0.4 / math.log(2), 0.0])


def test_draws_are_enough_for_all_claims_of_the_page() -> None:
    with initialize_config_dir(str(Path(__file__).parent.parent / "conf"), version_base="1.3"):
        assert claims_of(compose("evolve")) == 5  # nodes, edges and gap; loss and accuracy
        cfg = compose("evolve", ["experiment=emergence_gpu"])
        series = len(cfg.pretrain.models) * len(cfg.pretrain.seeds)
        assert claims_of(cfg) == series * (3 * len(cfg.evolve.tasks) + 2)


def test_parts_share_the_checkpoints_of_all_series() -> None:
    checkpoints = [Checkpoint(step, "x") for step in range(3)]
    series = [Series.of("a", checkpoints), Series.of("b", checkpoints)]
    shares = [parted(series, part, 4) for part in range(4)]
    counts = [sum(len(one.checkpoints) for one in share) for share in shares]
    assert counts == [2, 2, 1, 1] and shares[3][0].checkpoints == [] and shares[3][1].final == checkpoints[2]
    assert sorted(c.step for share in shares for one in share for c in one.checkpoints) == [0, 0, 1, 1, 2, 2]


def test_the_mixture_can_be_learned_by_its_mechanisms() -> None:
    tokenizer = mixture_tokenizer()
    rows = mixture(dict.fromkeys(KINDS, 1.0), 200, 64, seed=0)
    assert np.array_equal(rows, mixture(dict.fromkeys(KINDS, 1.0), 200, 64, seed=0))
    assert (rows[:, 0] == VOCABULARY["<s>"]).all() and rows.max() < len(VOCABULARY)
    repeated = mixture({"repeats": 1}, 20, 64, seed=1)[:, 1:]
    for row in repeated:
        assert any(np.array_equal(row[period:], row[:-period]) for period in range(6, 32))
    texts = [tokenizer.decode(row) for row in mixture({"names": 1}, 20, 64, seed=1)]
    for text in texts:
        words = text.split()
        assert words[1] == "When" and words[10] in (words[2], words[4]) and words[15] in (words[2], words[4])
        assert words[10] != words[15]
    for kind in KINDS:
        for pair in mixture_pairs(kind, 20, seed=0):
            ids = [tokenizer(pair[name])["input_ids"] for name in ("clean", "corrupted")]
            assert len(ids[0]) == len(ids[1]) and tokenizer.unk_token_id not in ids[0]
            assert pair["answer"] != pair["wrong_answer"]
    with pytest.raises(UserError, match="unknown"):
        mixture({"poems": 1}, 2, 64, 0)
    assert random.Random(0) and len(LISTS) == 4


def test_a_series_that_was_interrupted_is_trained_anew_and_deletes_nothing_else(tmp_path: Path) -> None:
    """The folder may be one that the user keeps other things in."""
    recipe, quiet = Recipe(8, 1, 2, 2, 2, 24, 1e-3, 0.1, 0.0, {"names": 1.0}, 1, 0), {"enable_progress_bar": False}
    (tmp_path / "notes.txt").write_text("mine")

    def interrupted(**settings: Any) -> Trainer:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path, interrupted)
    assert pretrain(recipe, tmp_path, partial(Trainer, accelerator="cpu", enable_model_summary=False, **quiet))
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"notes.txt", "pretrain.json", "checkpoints.json", "step0", "step1", "step2"}
    assert not pretrain(recipe, tmp_path, interrupted)


@pytest.mark.long
def test_emergence_trains_once_and_evolves(tmp_path: Path) -> None:
    fast = [
        f"paths.runs={tmp_path}",
        f"hydra.run.dir={tmp_path}/out",
        "pretrain.steps=4",
        "pretrain.batch_size=4",
        "pretrain.per_doubling=1",
        "evolve.heads.draws=0",
        "evolve.resamples=0",
        "evolve.schedule=[4]",
        "evolve.probe_pairs=4",
        "evolve.heads.length=6",
        "method.score.steps=1",
        "callbacks.progress_bar=false",
    ]
    call("experiment=emergence", *fast, verb="evolve")
    found = results(tmp_path / "out")
    assert set(found["tasks"]) == {"induction", "names", "agreement", "successor"} and found["errors"] == []
    folder = tmp_path / "series/emergence/0.2M"
    index = json.loads((folder / "checkpoints.json").read_text())
    assert [row["step"] for row in index["checkpoints"]] == [0, 1, 2, 4]
    assert [row["tokens"] for row in index["checkpoints"]] == [0, 252, 504, 1008]
    written = (folder / "step4/model.safetensors").stat().st_mtime_ns
    call("experiment=emergence", *fast, verb="evolve")
    assert (folder / "step4/model.safetensors").stat().st_mtime_ns == written
