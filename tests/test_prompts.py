"""The verb prompts on a tiny model: every circuit under every prompt, the overlap by hand, going on, tuning first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import call, failure, move_weights, settings, swap_prompts, write_local
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from circuitlit.compare.prompts import BesideRandom, PromptComparison, _verdict
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.verdict import Bars
from circuitlit.graph import Circuit
from circuitlit.report.prompts import write_prompts
from circuitlit.run import prompts
from circuitlit.run.prompts import makers

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


@pytest.mark.long
def test_table_overlap_and_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "prompts.json").read_text())
    rows = {row["circuit"]: row for row in result["circuits"]}
    one, two = (Circuit.load(finished / "circuits" / name) for name in ("one", "two"))
    both = int((one.kept & two.kept).sum())
    assert rows["intersection"]["n_edges"] == both
    assert rows["union"]["n_edges"] == one.n_edges + two.n_edges - both
    (overlap,) = result["overlap"]
    assert overlap["shared"] == both
    assert overlap["edges"]["jaccard"] == pytest.approx(both / (one.n_edges + two.n_edges - both))
    assert all(0 < overlap[part]["p_holm"] <= 1 for part in ("nodes", "edges", "gap"))
    page = write_prompts(PromptComparison.load(finished), finished).read_text()
    assert ("nothing beyond chance" in page) == any(overlap[part]["p_holm"] >= 0.05 for part in ("nodes", "edges"))
    assert ("Nodes stay while" in page) == (overlap["gap"]["p_holm"] < 0.05)
    beside = result["chance"]["one"]
    few = [row["on"]["one"]["kl"]["value"] for row in result["circuits"] if row["circuit"].startswith("random")]
    assert beside["draws"] == 100 and beside["random_kl"] == pytest.approx(few[0], rel=1e-5)
    assert beside["p_holm"] >= beside["rank_p"] >= 1 / 101 and f"of 100 random ones {beside['random_kl']:.3f}" in page
    if beside["n_pairs"] == result["n_pairs"]["one"]:
        assert beside["kl"] == pytest.approx(rows["one"]["on"]["one"]["kl"]["value"], rel=1e-5)
    for row in result["circuits"]:
        assert set(row["on"]) == {"one", "two"}
    assert rows["full model"]["on"]["one"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["full model"]["on"]["one"]["exact_match"]["value"] == 1
    assert rows["corrupted run"]["n_edges"] == 0
    assert "intersection" in page


@pytest.mark.long
def test_going_on_keeps_circuits_and_other_settings_make_them_anew(finished: Path, local: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "run", ["callbacks.checkpoint_every=2"]
    shutil.copytree(finished, out)
    changes = {
        "prompts.draws=20": [],  # of no circuit
        "data.batch_size=3": ["one", "two"],  # its checkpoints are of other settings, too
        "prompts.tasks=[{name: one, with: ['seed=0']}, {name: two, with: ['seed=2']}]": ["two"],
    }
    for change, anew in changes.items():
        more.append(change)
        assert _anew(out, *settings(local, out, *MORE, *more)) == anew, change
    for name in ("one", "two"):  # one stopped after the last checkpoint, one in the middle of its first step
        (out / "circuits" / name / "made.json").unlink()
    shutil.rmtree(out / "circuits" / "two" / "checkpoints")
    before = (out / "circuits" / "one" / "checkpoints" / "step_000004.ckpt").stat().st_mtime_ns
    assert _anew(out, *settings(local, out, *MORE, *more)) == ["one", "two"]
    assert (out / "circuits" / "one" / "checkpoints" / "step_000004.ckpt").stat().st_mtime_ns == before
    assert (out / "circuits" / "two" / "checkpoints" / "step_000004.ckpt").is_file()


def _anew(out: Path, *words: str) -> list[str]:
    """Run it again, and look which circuits were written."""
    files = sorted((out / "circuits").glob("*/circuit.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    call(*words, verb="prompts")
    return [file.parent.name for file, then in zip(files, before, strict=True) if file.stat().st_mtime_ns != then]


@pytest.mark.long
def test_a_model_that_cannot_is_tuned_first(local: Path, tmp_path: Path) -> None:
    """It learns its twelve training pairs by heart; held-out pairs of this task have nothing to do with them."""
    tune = f"prompts.tune=['task=jsonl', 'task.build.path={local}/pairs.jsonl', 'tune.steps=2', "
    tune += "'tune.checkpoints=1', 'tune.probe_every=0', 'logger=none', 'data.batch_size=4']"
    words = settings(local, tmp_path, *MORE, "task.min_accuracy=0.9", "prompts.draws=20", tune)
    call(*words, verb="prompts")
    result = PromptComparison.load(tmp_path)
    assert result.tuned and result.status == "FAILED" and "does not do the task" in str(result.reason)
    assert (tmp_path / "tuned" / "config.json").is_file() and (tmp_path / "tuning_result.json").is_file()
    assert set(result.untuned_behaviour or ()) == {"one", "two"} and not result.circuits
    tuned = tmp_path / "tuned" / "model.safetensors"
    before = tuned.stat().st_mtime_ns
    call(*words, verb="prompts")
    assert tuned.stat().st_mtime_ns == before and PromptComparison.load(tmp_path).tuned
    call(*words[:-1], tune.replace("steps=2", "steps=3"), verb="prompts")
    assert tuned.stat().st_mtime_ns != before
    call(*words[:-1], tune.replace("steps=2", "steps=3"), "task.min_accuracy=0", verb="prompts")
    assert not PromptComparison.load(tmp_path).tuned


@pytest.mark.long
def test_what_a_model_could_do_is_kept_for_these_weights_pairs_and_this_tuning_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, out = write_local(tmp_path / "local"), tmp_path / "out"
    tune = f"prompts.tune=['task=jsonl', 'task.build.path={local}/pairs.jsonl', 'logger=none', 'data.batch_size=4']"
    words, tunings = settings(local, out, *MORE, "task.min_accuracy=0.9", "prompts.draws=20", tune), []

    def tuned(cfg: DictConfig) -> None:
        tunings.append(cfg.tune.steps)
        shutil.copytree(local / "model", out / "tuned", dirs_exist_ok=True)
        for name in ("result", "history"):
            (out / f"{name}.json").write_text("{}")
        if len(tunings) == interrupted:
            raise UserError("interrupted")

    monkeypatch.setattr(makers.tune, "run", tuned)
    monkeypatch.setattr(prompts, "compare_prompts", lambda *_, **__: None)
    interrupted = 0
    for times, change in enumerate(
        [
            lambda: call(*words, verb="prompts"),
            lambda: move_weights(local / "model"),
            lambda: swap_prompts(local / "pairs.jsonl"),
            lambda: words.append("data.pad_to=max"),
        ]
    ):
        change()
        call(*words, verb="prompts")
        assert len(tunings) == times + 1
    interrupted = 5
    with pytest.raises(SystemExit):
        call(*words[:-1], "data.pad_to=bucket", verb="prompts")
    call(*words, verb="prompts")
    assert len(tunings) == 6  # the tuned model is the interrupted run's


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


def test_a_verdict_on_prompts_needs_pairs_and_random_circuits() -> None:
    def found(kl: float, draws: int, beaten_by: int, pairs: int = 20) -> dict:
        p = (1 + beaten_by) / (1 + draws)
        rows = {"one": kl, "corrupted run": 1.0}
        circuits = [SimpleNamespace(circuit=n, on={"one": SimpleNamespace(kl=Estimate(v))}) for n, v in rows.items()]
        chance = {"one": BesideRandom(8, kl, 0.9, draws, p, min(1.0, 4 * p))}
        return {"circuits": circuits, "chance": chance, "n_pairs": {"one": pairs}}

    for made, bars, status, said in (
        (found(0.1, 199, 0), Bars(), "OK", "None"),
        (found(0.9, 199, 0), Bars(), "FAILED", "has a KL of 0.900"),
        (found(0.1, 199, 90), Bars(), "FAILED", "not better than 199 random ones"),
        (found(0.1, 9, 0), Bars(), "NOT MEASURABLE", "9 random circuits are too few"),
        (found(0.1, 9, 3), Bars(), "FAILED", "not better than 9 random ones"),
        (found(0.1, 199, 0, pairs=3), Bars(), "NOT MEASURABLE", "3 test pairs of one are too few"),
        (found(0.1, 199, 0), Bars(smoke=True), "SMOKE TEST", "says nothing about the model"),
    ):
        given, reason = _verdict(made, bars)
        assert given == status and said in str(reason)
