"""The verb prompts on a tiny model: every circuit under every prompt, the overlap by hand, going on, tuning first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import call, failure, settings
from hydra import compose, initialize_config_dir

from circuitlit.graph import Circuit
from circuitlit.report.prompts import write_prompts

CONF = Path(__file__).parent.parent / "conf"
TASKS = "prompts.tasks=[{name: one, with: ['seed=0']}, {name: two, with: ['seed=1']}]"
MORE = [
    TASKS,
    "callbacks.checkpoint_every=0",
    "callbacks.probe_every=0",
    "task.min_accuracy=0",
    "mask.schedule.steps=4",
]


@pytest.fixture(scope="module")
def finished(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompts")
    call(*settings(local, out, *MORE), verb="prompts")
    return out


def test_table_overlap_and_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "prompts.json").read_text())
    rows = {row["circuit"]: row for row in result["rows"]}
    one, two = (Circuit.load(finished / "circuits" / name) for name in ("one", "two"))
    both = int((one.kept & two.kept).sum())
    assert rows["intersection"]["n_edges"] == both
    assert rows["union"]["n_edges"] == one.n_edges + two.n_edges - both
    (overlap,) = result["overlap"]
    assert overlap["shared"] == both
    assert overlap["edges"]["jaccard"] == pytest.approx(both / (one.n_edges + two.n_edges - both))
    assert all(0 < overlap[part]["p_holm"] <= 1 for part in ("nodes", "edges", "gap"))
    page = write_prompts(finished).read_text()
    assert ("nothing beyond chance" in page) == any(overlap[part]["p_holm"] >= 0.05 for part in ("nodes", "edges"))
    assert ("Nodes stay while" in page) == (overlap["gap"]["p_holm"] < 0.05)
    beside = result["chance"]["one"]
    few = [row["on"]["one"]["kl"]["value"] for row in result["rows"] if row["circuit"].startswith("random")]
    assert beside["draws"] == 100 and beside["random_kl"] == pytest.approx(few[0], rel=1e-5)
    assert beside["p_holm"] >= beside["rank_p"] >= 1 / 101 and f"of 100 random ones {beside['random_kl']:.3f}" in page
    if beside["n_pairs"] == result["n_pairs"]["one"]:
        assert beside["kl"] == pytest.approx(rows["one"]["on"]["one"]["kl"]["value"], rel=1e-5)
    for row in result["rows"]:
        assert set(row["on"]) == {"one", "two"}
    assert rows["full model"]["on"]["one"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["full model"]["on"]["one"]["exact_match"]["value"] == 1
    assert rows["corrupted run"]["n_edges"] == 0
    assert "intersection" in page


def test_going_on_keeps_the_circuits(finished: Path, local: Path) -> None:
    before = (finished / "circuits" / "one" / "circuit.safetensors").stat().st_mtime_ns
    call(*settings(local, finished, *MORE), verb="prompts")
    assert (finished / "circuits" / "one" / "circuit.safetensors").stat().st_mtime_ns == before


def test_circuits_of_other_settings_are_not_gone_on_with(
    finished: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(capsys, *settings(local, finished, *MORE, "mask.schedule.lr=0.1"), verb="prompts")
    assert "holds circuits of other settings (mask.schedule.lr: 0.3 then, 0.1 now)" in message


def test_a_model_that_cannot_is_tuned_first(local: Path, tmp_path: Path) -> None:
    """It learns its twelve training pairs by heart; held-out pairs of this task have nothing to do with them."""
    tune = f"prompts.tune=['task=jsonl', 'task.build.path={local}/pairs.jsonl', 'tune.steps=2', "
    tune += "'tune.checkpoints=1', 'tune.probe_every=0', 'logger=none', 'data.batch_size=4']"
    call(*settings(local, tmp_path, *MORE, "task.min_accuracy=0.9", tune), verb="prompts")
    result = json.loads((tmp_path / "prompts.json").read_text())
    assert result["tuned"] and result["status"] == "FAILED" and "does not do the task" in result["reason"]
    assert (tmp_path / "tuned" / "config.json").is_file() and (tmp_path / "tuning_result.json").is_file()
    assert set(result["untuned_behaviour"]) == {"one", "two"}


def test_one_prompt_is_refused(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = "prompts.tasks=[{name: one, with: ['seed=0']}]"
    assert "a list of at least 2" in failure(capsys, *settings(local, tmp_path, one), verb="prompts")


@pytest.mark.parametrize("name", ["boolean_small", "boolean_codellama"])
def test_experiments_compose(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("prompts", [f"experiment={name}"])
        assert cfg.verb == "prompts" and len(cfg.prompts.tasks) == 2
        if cfg.prompts.tune:
            tuning = compose("finetune", list(cfg.prompts.tune))
            assert tuning.task.build.prompt == "both" and tuning.task.build.literals == cfg.task.build.literals
