"""The runs of a sweep's folder: found, named by what differs, on a page that fits a phone, and in a csv."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from cli import call, failure, settings

from circuitlit import UserError, write_runs
from circuitlit.report.sweep import differing, names_of, runs_in

QUICK = ["logger=none", "callbacks=none", "mask.schedule.steps=2"]


@pytest.fixture(scope="module")
def sweep(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds at two sizes; the last job's model does not do the task."""
    folder = tmp_path_factory.mktemp("sweep")
    words = [word for word in settings(local, folder, *QUICK) if not word.startswith(("hydra.run", "sparsity"))]
    call("-m", *words, f"hydra.sweep.dir={folder}", "seed=0,1", "sparsity=p90,p95")
    call(*settings(local, folder / "10", *QUICK, "task.min_accuracy=0.9", "seed=7"))
    return folder


def test_runs_are_named_by_what_differs(sweep: Path) -> None:
    runs = runs_in([sweep])
    assert [run.name for run in runs] == ["0", "1", "2", "3", "10"]
    assert differing(runs[:4]) == {"seed": [0, 0, 1, 1], "sparsity.target": [0.9, 0.95, 0.9, 0.95]}
    assert names_of(runs[:4]) == [f"seed={s} target={t}" for s in (0, 1) for t in (0.9, 0.95)]
    assert names_of(runs[1:4:2]) == ["seed=0", "seed=1"]
    assert names_of([runs[0], runs[0].parent / "0"]) == [f"{runs[0]} (1)", f"{runs[0]} (2)"]


def test_a_preset_stands_for_the_settings_that_go_with_it(sweep: Path, tmp_path: Path) -> None:
    for number, (name, lr, seed) in enumerate((("a", 1, 0), ("b", 2, 0), ("b", 2, 1))):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        config = {"seed": seed, "run_id": number, "mask": {"name": name, "schedule": {"lr": lr}}}
        (tmp_path / str(number) / ".hydra" / "config.yaml").write_text(json.dumps(config))
    names = names_of([tmp_path / str(number) for number in range(3)])
    assert names == ["seed=0 mask=a", "seed=0 mask=b", "seed=1 mask=b"]


def test_the_report_of_a_sweep(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(f"runs={sweep}", f"hydra.run.dir={tmp_path}", verb="report")
    failed = "seed=7 target=0.8 min_accuracy=0.9"
    assert f"not shown: {failed} (the model does not do the task" in capsys.readouterr().out
    page = (tmp_path / "runs.html").read_text()
    assert "4 runs compared" in page and "seed=1 target=0.95 min_accuracy=0" in page and f"Not shown: {failed}" in page
    rows = list(csv.DictReader((tmp_path / "runs.csv").open(encoding="utf-8")))
    assert [(row["setting:seed"], row["setting:sparsity.target"]) for row in rows[:4]] == [
        (str(seed), str(share)) for seed in (0, 1) for share in (0.9, 0.95)
    ]
    for row, run in zip(rows, runs_in([sweep]), strict=True):
        result = json.loads((run / "result.json").read_text())
        assert row["folder"] == str(run) and row["status"] == result["status"]
        if result["n_edges"] is not None:
            assert int(row["n_edges"]) == result["n_edges"] and float(row["kl_low"]) == result["kl"]["low"]
    assert rows[4]["kl"] == "" and rows[4]["status"] == "FAILED"
    (again, _), left_out = write_runs([str(sweep)], tmp_path)
    assert again.read_text() == page and list(left_out) == [failed]
    shutil.copytree(sweep / "10", tmp_path / "few" / "10")
    with pytest.raises(UserError, match=r"two runs or more; not shown: 10 \(the model does not do the task"):
        write_runs([tmp_path / "few"], tmp_path)


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    said = failure(capsys, f"runs={tmp_path}/empty", f"hydra.run.dir={tmp_path}/out", verb="report")
    assert "empty is no finished run and holds none" in said
