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
from cli import call, settings

ROOT = Path(__file__).parent.parent
SWEPT = ["evaluate.controls=1", "callbacks.checkpoint_every=0", "callbacks.probe_every=0", "mask.schedule.steps=4"]


def records(folder: Path) -> dict[str, list[dict]]:
    """The records of the one offline run in a run directory, by type."""
    [log] = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    found: dict[str, list[dict]] = {}
    for line in shown.stdout.splitlines():
        if line.strip():
            record = json.loads(line)
            found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def rows(found: dict[str, list[dict]], key: str) -> list[dict]:
    """History rows that hold a metric."""
    return [record["item"] for record in found["history"] if key in record["item"]]


@pytest.fixture(scope="module")
def run(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wandb") / "run"
    call(*settings(local, out, "logger=wandb_offline", "run_id=mine", "callbacks.probe_every=6"))
    return out


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, list[dict]]:
    return records(run)


def test_the_history_has_every_look_at_its_step(found: dict[str, list[dict]]) -> None:
    assert found["run"][0]["run_id"] == "mine" and found["exit"][0].get("exit_code", 0) == 0
    assert [row["trainer/global_step"] for row in rows(found, "masks/undecided")] == [0, 4, 8, 12]
    assert [row["trainer/global_step"] for row in rows(found, "val/hard_kl")] == [0, 6, 12]
    assert rows(found, "train/loss")
    axes = {record["glob_name"]: record["step_metric"] for record in found["metric"] if "glob_name" in record}
    assert axes == dict.fromkeys(("train/*", "val/*", "masks/*"), "trainer/global_step")


def test_tables_figures_and_settings_are_there(found: dict[str, list[dict]], run: Path) -> None:
    media = [file["path"] for record in found["files"] for file in record["files"]]
    assert sorted(path.split("/")[2] for path in media if path.startswith("media/table/")) == [
        "circuit",
        "result",
        "timeline",
    ]
    figures = {"circuit", "layers", "timeline", "kept", "flow", "training"}
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


def test_circuit_and_masks_are_artifacts_of_the_run(found: dict[str, list[dict]]) -> None:
    artifacts = {record["name"]: record for record in found["artifact"] if record["type"] in ("circuit", "masks")}
    assert set(artifacts) == {"circuit-mine", "masks-mine"}
    files = {name: {entry["path"] for entry in record["manifest"]["contents"]} for name, record in artifacts.items()}
    assert files["masks-mine"] == {f"masks/step_{step:06d}.safetensors" for step in (0, 4, 8, 12)}
    named = "circuit.json circuit.safetensors result.json history.json evolution.json explanation.json report.html"
    assert files["circuit-mine"] == set(named.split())
    assert json.loads(artifacts["circuit-mine"]["metadata"])["masks"] == "masks-mine"


def test_a_trust_card_is_logged_under_the_keys_of_its_file(run: Path, local: Path, tmp_path: Path) -> None:
    only = ["trust.only=[preserved]", "trust.errors.pairs=null", "logger=wandb_offline", f"circuit={run}"]
    call(*settings(local, tmp_path / "card", *only), verb="trust")
    found = records(tmp_path / "card")
    summary = {key: value for record in found["summary"] for key, value in record["update"].items()}
    row = json.loads((tmp_path / "card" / "trust.json").read_text())["trust"]["preserved.kl"]
    assert summary["trust.preserved.kl.value"] == pytest.approx(row["value"])
    assert any(path["path"].startswith("media/html/trust") for record in found["files"] for path in record["files"])


def test_four_jobs_of_a_sweep_are_four_runs_of_one_group(local: Path, tmp_path: Path) -> None:
    paths = [
        argument for argument in settings(local, tmp_path, "logger=wandb_offline", *SWEPT) if "hydra" not in argument
    ]
    call("-m", *paths, f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1,2,3")
    runs = [records(tmp_path / "sweep" / str(job))["run"][0] for job in range(4)]
    assert len({run["run_id"] for run in runs}) == 4
    assert {run["run_group"] for run in runs} == {"sweep"}


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


def test_the_workspace_is_the_stored_one() -> None:
    pytest.importorskip("wandb_workspaces")
    from circuitlit.report.workspace import build_workspace, workspace_spec

    stored = json.loads((Path(__file__).parent / "data" / "workspace.json").read_text())
    assert workspace_spec(build_workspace("me", "circuitlit")) == stored
    assert workspace_spec(build_workspace("me", "another")) != stored
