"""What W&B gets of a run, read back from its offline files with W&B's own reader; and the workspace's specification."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
import yaml
from cli import call, settings

from circuitlit.discover import MaskLearner

ROOT = Path(__file__).parent.parent
SWEPT = ["evaluate.controls=1", "callbacks.checkpoint_every=0", "callbacks.probe_every=0", "mask.schedule.steps=4"]


def in_order(folder: Path) -> list[tuple[str, dict]]:
    """The records of the one offline run in a run directory with their types, as they were written."""
    [log] = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    found = [json.loads(line) for line in shown.stdout.splitlines() if line.strip()]
    return [(record["type"], record[record["type"]]) for record in found]


def records(folder: Path) -> dict[str, list[dict]]:
    """The records of the one offline run in a run directory, by type."""
    found: dict[str, list[dict]] = {}
    for kind, record in in_order(folder):
        found.setdefault(kind, []).append(record)
    return found


def rows(found: dict[str, list[dict]], key: str) -> list[dict]:
    """History rows that hold a metric."""
    return [record["item"] for record in found["history"] if key in record["item"]]


@pytest.fixture(scope="module")
def run(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wandb") / "run"
    words = [
        "logger.wandb.group=paper",
        "logger.wandb.tags=[baseline,'two words']",
        "logger.wandb.notes='as, published'",
    ]
    call(
        *settings(
            local,
            out,
            "logger=wandb_offline",
            "run_id=mine",
            "seed=5",
            "callbacks.probe_every=6",
            "explain.heads=2",
            *words,
        )
    )
    return out


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, list[dict]]:
    return records(run)


@pytest.mark.long
def test_the_history_has_every_look_at_its_step(found: dict[str, list[dict]]) -> None:
    assert found["run"][0]["run_id"] == "mine" and found["exit"][0].get("exit_code", 0) == 0
    assert [row["trainer/global_step"] for row in rows(found, "masks/undecided")] == [0, 4, 8, 12]
    assert [row["trainer/global_step"] for row in rows(found, "val/hard_kl")] == [0, 6, 12]
    assert rows(found, "train/loss")
    axes = {record["glob_name"]: record["step_metric"] for record in found["metric"] if "glob_name" in record}
    assert axes == dict.fromkeys(("train/*", "val/*", "masks/*"), "trainer/global_step")


def test_settings_come_first_and_the_run_is_named_by_them(run: Path, found: dict[str, list[dict]]) -> None:
    [told] = found["run"]
    assert told["display_name"] == "jsonl-local-hard_concrete-0.8-seed5" and told["project"] == "circuitlit"
    assert told["run_group"] == "paper" and told["tags"] == ["baseline", "two words"]
    assert told["job_type"] == "train" and told["notes"] == "as, published"
    kinds = [kind for kind, _ in in_order(run)]
    settings_at = next(n for n, (kind, one) in enumerate(in_order(run)) if kind == "config" and "task" in str(one))
    assert settings_at < kinds.index("history") and settings_at < kinds.index("summary")
    keys = [key for record in found["config"] for key in record["update"]]
    assert {"task", "model", "mask", "sparsity", "seed", "evaluate", "logger"} <= set(keys)
    assert keys.count("task") == 1  # nothing is told again at the end


def test_tables_figures_and_settings_are_there(found: dict[str, list[dict]], run: Path) -> None:
    media = [file["path"] for record in found["files"] for file in record["files"]]
    assert sorted(path.split("/")[2] for path in media if path.startswith("media/table/")) == [
        "circuit",
        "result",
        "timeline",
    ]
    figures = {"circuit", "layers", "timeline", "kept", "flow", "training", "layers_over_steps"}
    assert len([path for path in media if path.startswith("media/plotly/")]) == len(figures)
    assert len([path for path in media if path.startswith("media/html/")]) == 1
    [table] = (run / "wandb").glob("offline-run-*/files/media/table/result/*.json")
    content = json.loads(table.read_text())
    result = json.loads((run / "result.json").read_text())
    ours = dict(zip(content["columns"], content["data"][0], strict=True))
    assert ours["circuit"] == "this circuit" and ours["kl"] == pytest.approx(result["kl"]["value"])
    assert ours["kl_low"] == pytest.approx(result["kl"]["low"])
    config = {key: value for record in found["config"] for key, value in record["update"].items()}
    assert config["task"]["name"] == "jsonl" and config["sparsity"]["target"] == 0.8
    summary = json.dumps(found["summary"])
    assert "trust.preserved.kl.value" in summary and "trust.chance.random.bar" in summary


def test_circuit_and_masks_are_versions_of_the_tasks_artifacts(found: dict[str, list[dict]], run: Path) -> None:
    artifacts = {record["type"]: record for record in found["artifact"] if record["type"] in ("circuit", "masks")}
    method = json.loads((run / "result.json").read_text())["method"]
    stable = f"jsonl-local-{method}"
    assert {record["name"] for record in artifacts.values()} == {f"circuit-{stable}", f"masks-{stable}"}
    for record in artifacts.values():
        assert set(record["aliases"]) == {"latest", "mine", "seed5", "sparsity0.8043"}
    files = {kind: {entry["path"] for entry in one["manifest"]["contents"]} for kind, one in artifacts.items()}
    assert files["masks"] == {f"masks/step_{step:06d}.safetensors" for step in (0, 4, 8, 12)}
    named = "circuit.json circuit.safetensors result.json history.json evolution.json explanation.json report.html"
    assert files["circuit"] == set(named.split())
    assert json.loads(artifacts["circuit"]["metadata"])["masks"] == f"masks-{stable}:mine"


def test_a_trust_card_is_logged_under_the_keys_of_its_file(run: Path, local: Path, tmp_path: Path) -> None:
    only = ["trust.only=[preserved]", "trust.errors.pairs=null", "logger=wandb_offline", f"circuit={run}"]
    call(*settings(local, tmp_path / "card", *only), verb="trust")
    found = records(tmp_path / "card")
    summary = {key: value for record in found["summary"] for key, value in record["update"].items()}
    row = json.loads((tmp_path / "card" / "trust.json").read_text())["trust"]["preserved.kl"]
    assert summary["trust.preserved.kl.value"] == pytest.approx(row["value"])
    assert any(path["path"].startswith("media/html/trust") for record in found["files"] for path in record["files"])


@pytest.mark.long
def test_two_jobs_of_a_sweep_are_two_runs_of_one_group(local: Path, tmp_path: Path) -> None:
    paths = [
        argument for argument in settings(local, tmp_path, "logger=wandb_offline", *SWEPT) if "hydra" not in argument
    ]
    call("-m", *paths, f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1")
    runs = [records(tmp_path / "sweep" / str(job))["run"][0] for job in range(2)]
    assert len({run["run_id"] for run in runs}) == 2
    assert {run["run_group"] for run in runs} == {"sweep"}


def test_a_run_that_breaks_off_has_failed(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MaskLearner, "training_step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(*settings(local, tmp_path, "logger=wandb_offline"))
    assert records(tmp_path)["exit"][0]["exit_code"] == 1


@pytest.mark.slow
def test_a_killed_run_reads_back_to_what_it_flushed(local: Path, tmp_path: Path) -> None:
    more = ["logger=wandb_offline", "mask.schedule.steps=100000", "callbacks.snapshot_every=10"]
    more += ["callbacks.checkpoint_every=0", "callbacks.probe_every=0", "trainer.log_every_n_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *settings(local, tmp_path, *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mask = tmp_path / "masks" / "step_000100.safetensors"
    deadline = time.monotonic() + 120
    while not mask.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(3)  # the log is flushed every second
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [row["trainer/global_step"] for row in rows(records(tmp_path), "masks/churn")]
    assert steps == list(range(10, max(steps) + 1, 10)) and max(steps) >= 100


def test_every_panel_of_a_tasks_workspace_has_something_to_show(found: dict[str, list[dict]], run: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    from circuitlit.report.workspace import CURVES, MEDIA, RESULTS, TABLES, build_workspace, workspace_spec

    spec = workspace_spec(build_workspace("me", "circuitlit", "jsonl"))
    stored = json.loads((Path(__file__).parent / "data" / "workspace.json").read_text())
    assert workspace_spec(build_workspace("me", "circuitlit", "ioi")) == stored != spec
    [shown] = spec["spec"]["section"]["runSets"][0]["filters"]["filters"]
    config = {key: {"value": value} for record in found["config"] for key, value in record["update"].items()}
    for part in shown["key"]["name"].split("."):
        config = config[part]
    assert shown["op"] == "=" and shown["value"] == config == "jsonl"
    logged = {key.split(".")[0] for record in found["history"] for key in record["item"]}
    logged.add("masks/stage_untested")  # only where a run has stages, which twelve steps of a random model lack
    curves = {key for panels in CURVES.values() for keys in panels.values() for key in keys}
    assert curves | set(TABLES) | set(MEDIA) <= logged, (curves | set(TABLES) | set(MEDIA)) - logged
    assert set(RESULTS.values()) <= {key for record in found["summary"] for key in record["update"]}


@pytest.mark.long
def test_a_run_of_an_agent_is_the_run_of_its_sweep(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `wandb agent` makes of launch/sweep.yaml, with a tiny model in the place of the sweep's own."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(ROOT / "launch" / "sweep.yaml"))
    assert sweep is not None and sweep["method"] in ("grid", "random", "bayes") and (ROOT / sweep["program"]).exists()
    drawn = {name: {"value": one["values"][-1]} for name, one in sweep["parameters"].items()}
    filled = create_sweep_command_args({"args": drawn})
    filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    command: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        command += filled[word[2:-1]] if word.startswith("${") else [word]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"] and "logger=wandb" in command
    assert {"task=sva", "sparsity=p98", "mask.schedule.lr=0.3", "seed=2"} <= set(command)
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **drawn}))
    names = {"SWEEP_ID": "mysweep", "RUN_ID": "ofagent1", "PROJECT": "theirs"}
    for name, value in {**names, "SWEEP_PARAM_PATH": str(tmp_path / "drawn.yaml")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.chdir(tmp_path)
    own = [word for word in settings(local, tmp_path, *SWEPT) if not word.startswith(("hydra.run.dir", "sparsity"))]
    wandb.teardown()  # it has read the environment already
    call(*command[3:], *own, "logger=wandb_offline", f"paths.runs={tmp_path}", "callbacks.probe_every=2")
    wandb.teardown()
    [folder] = tmp_path.glob("*/")
    assert folder.name == "jsonl-local" and [path.name for path in folder.iterdir()] == ["ofagent1"]
    found = records(folder / "ofagent1")
    [told] = found["run"]
    assert told["run_id"] == "ofagent1" and told["sweep_id"] == "mysweep" and told["project"] == "theirs"
    assert sweep["metric"]["name"] in {key for record in found["history"] for key in record["item"]}
