"""The verb study on a tiny local model: all cells, going on after a stop, a cell that fails, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli import call, failure, move_weights, settings, swap_prompts, write_local
from hydra import compose, initialize_config_dir

from circuitlit.cli.configs import Entry
from circuitlit.errors import UserError
from circuitlit.evaluate.agreement import Agreement, Agreements
from circuitlit.evaluate.fewest import fewest_edges
from circuitlit.evaluate.similarity import corrected_jaccard
from circuitlit.evaluate.statistics import INTERVALS, Estimate, Statistic, statistic
from circuitlit.evaluate.study.cells import Cell, check_names
from circuitlit.evaluate.study.rankings import rankings
from circuitlit.evaluate.study.results import LearnedMinusAttribution, MethodStudy
from circuitlit.evaluate.study.summary import _envelope, _wins
from circuitlit.graph import Circuit
from circuitlit.report.study import study_figures
from circuitlit.run.study.plan import Planned, part_of, plan

WARM = "{name: warm,with: ['mask=hard_concrete','mask.init_from=method']}"
RANKED = "{name: ranked,with: ['mask=sigmoid_topk','study.seeds=[3]']}"
MATCH = "study.match={method: mask_gradients,sparsity: 0.9}"
STEPS = "{name: 'more steps',with: ['method=mask_gradients','method.score.steps=7']}"
SMALL = [
    "study.sparsities=[0.7,0.9]",
    "study.seeds=[0,1]",
    "study.resamples=3",
    "study.curve_pairs=4",
    "evaluate.controls=3",
    "mask.schedule.steps=6",
    f"study.learners=[{WARM},{RANKED}]",
    f"study.attributions=[mask_gradients,{STEPS}]",
]


def small(local: Path, out: Path, *more: str) -> list[str]:
    skipped = ("callbacks.", "sparsity.target", "mask.schedule")
    return [item for item in settings(local, out, *SMALL, *more) if item in SMALL or not item.startswith(skipped)]


@pytest.fixture(scope="module")
def done(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in two parts, summed up by a third process, which makes no cell."""
    folder = tmp_path_factory.mktemp("study")
    for part in (0, 1):
        call(*small(local, folder, "study.parts=2", f"study.part={part}", MATCH), verb="study")
        assert not (folder / "study.json").exists()
    made = {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}
    call(*small(local, folder, MATCH), verb="study")
    assert made == {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}
    return folder


def study_of(folder: Path) -> dict:
    return json.loads((folder / "study.json").read_text())


def cell_of(folder: Path, name: str) -> dict:
    return json.loads((folder / "cells" / f"{name}.json").read_text())["content"]


@pytest.mark.long
def test_the_published_recipe_is_a_learner_with_a_size_of_its_own(local: Path, tmp_path: Path) -> None:
    """Its masks sit on nodes, too, and its own binarisation is one more row."""
    own = ["compat=edge_pruning_2024", "mask.schedule.steps=6", "mask.schedule.lr_warmup=2", "mask.schedule.lr=5"]
    own += ["data.batch_size=4", "mask.learner.edge_target=0.7", "study.sparsities=[0.7]", "study.seeds=[0]"]
    recipe = f"study.learners=[{{name: recipe, with: {own}}}]"
    call(*small(local, tmp_path, "study.attributions=[]", recipe), verb="study")
    study = study_of(tmp_path)
    assert study["status"] == "OK", study["failed"]
    cell = cell_of(tmp_path, "jsonl--learner--recipe--0.7--seed0")
    scores = Circuit.load(tmp_path / "circuits" / "jsonl--learner--recipe--0.7--seed0").scores
    assert scores.details["edge_target"] == 0.7
    count, total = scores.details["published_count"], study["tasks"][0]["n_edges_total"]
    assert isinstance(count, int)
    asked = round(0.3 * total)
    rows = [(row["n_edges"], row["sparsity"]) for row in cell["rows"]]
    assert rows == [(asked, 0.7)] + ([(count, 1 - count / total)] if count not in (0, asked) else [])


@pytest.mark.long
def test_every_cell_is_there(done: Path) -> None:
    study = study_of(done)
    assert study["status"] == "OK" and study["failed"] == []
    names = {p.stem for p in (done / "cells").iterdir()}
    learned = {f"jsonl--learner--warm--{s}--seed{seed}" for s in ("0.7", "0.9") for seed in (0, 1)}
    attributed = {"jsonl--attribution--mask_gradients", "jsonl--attribution--more_steps"}
    learned.add("jsonl--learner--ranked--seed3")
    assert names == {"jsonl--task", "jsonl--control--random_circuits", *learned, *attributed}
    keys = [(row["method"], row["sparsity"]) for row in study["methods"]]
    methods = ("random circuits", "mask_gradients", "more steps", "warm", "ranked")
    assert sorted(keys) == sorted((method, sparsity) for method in methods for sparsity in (0.7, 0.9))
    assert {p.name for p in done.glob("study[._]*") if p.suffix != ".log"} == {
        "study.json",
        *(f"study_{figure}.{suffix}" for figure in ("kl", "performance") for suffix in ("html", "json")),
    }


def test_rows_are_the_circuits_of_their_cells(done: Path) -> None:
    study = study_of(done)
    row = next(r for r in study["methods"] if (r["method"], r["sparsity"]) == ("warm", 0.9))
    circuits = [Circuit.load(done / "circuits" / f"jsonl--learner--warm--0.9--seed{seed}") for seed in (0, 1)]
    assert row["n_edges"] == circuits[0].n_edges and row["n_circuits"] == 2
    overlap = corrected_jaccard(circuits[0].kept, circuits[1].kept)
    assert row["seeds_overlap"]["mean"] == pytest.approx(overlap)
    assert row["consensus"]["n_edges_in_all"] == int((circuits[0].kept & circuits[1].kept).sum())
    cells = [cell_of(done, f"jsonl--learner--warm--0.9--seed{seed}") for seed in (0, 1)]
    kls = [sum(cell["rows"][0]["by_pair"]["kl"]) / 12 for cell in cells]
    assert row["kl"]["value"] == pytest.approx(sum(kls) / 2)
    attributed = next(r for r in study["methods"] if r["method"] == "mask_gradients")
    assert len(attributed["noise"]["values"]) == 3 and set(attributed["cpr"]) == set(INTERVALS)


def test_paired_differences_are_with_the_better_attribution(done: Path) -> None:
    items = study_of(done)["learned_minus_attribution_kl"]
    assert [(item["learner"], item["sparsity"]) for item in items] == [
        (name, sparsity) for sparsity in (0.7, 0.9) for name in ("warm", "ranked")
    ]
    for item in (item for item in items if item["learner"] == "warm"):
        tried = {}
        for name in ("mask_gradients", "more_steps"):
            cell = cell_of(done, f"jsonl--attribution--{name}")
            tried[name.replace("_steps", " steps")] = next(
                row for row in cell["rows"] if row["sparsity"] == item["sparsity"]
            )
        best = min(tried, key=lambda name: tried[name]["val_kl"])
        assert item["attribution"] == best and item["n_seeds"] == 2
        learned = []
        for seed in (0, 1):
            cell = cell_of(done, f"jsonl--learner--warm--{item['sparsity']}--seed{seed}")
            learned.append(cell["rows"][0]["by_pair"]["kl"])
        theirs = tried[best]["by_pair"]["kl"]
        mean = sum((a + b) / 2 - c for a, b, c in zip(*learned, theirs, strict=True)) / len(theirs)
        assert item["value"] == pytest.approx(mean, abs=1e-6)
        assert item["low"] <= item["value"] <= item["high"]


def test_figures_have_a_line_a_method(done: Path) -> None:
    figures = study_figures(MethodStudy.load(done))
    for figure in figures.values():
        assert [trace.name for trace in figure.data] == [
            "random circuits, mean of 3",
            "mask_gradients",
            "more steps",
            "warm, mean of 2",
            "ranked",
        ]
        assert all(list(trace.x) == [0.7, 0.9] for trace in figure.data)
    assert figures["performance"].layout.yaxis.title.text == "logit difference"


@pytest.mark.long
def test_a_stopped_study_goes_on(done: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished cells stay as they are; a missing, a damaged and a failed one are run, and the rest equals the first."""
    folder = tmp_path / "copy"
    (folder / "cells").mkdir(parents=True)
    for part in ("cells", "circuits"):
        for file in (done / part).rglob("*"):
            target = folder / file.relative_to(done)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                target.write_bytes(file.read_bytes())
    cells = folder / "cells"
    (cells / "jsonl--attribution--more_steps.json").unlink()
    (cells / "jsonl--learner--warm--0.7--seed1.json").write_text("{")
    failed = json.loads((cells / "jsonl--learner--warm--0.9--seed0.json").read_text())
    del failed["content"]
    (cells / "jsonl--learner--warm--0.9--seed0.json").write_text(json.dumps(failed | {"error": "no memory"}))
    before = {file.name: file.stat().st_mtime_ns for file in cells.iterdir()}
    call(*small(local, folder, "study.finished_only=true"), verb="study")
    assert {row["method"] for row in study_of(folder)["methods"]} == {
        "random circuits",
        "mask_gradients",
        "warm",
        "ranked",
    }
    assert before == {file.name: file.stat().st_mtime_ns for file in cells.iterdir()}
    message = failure(capsys, *small(local, folder, "study.finished_only=true", "study.curve_pairs=5"), verb="study")
    assert "none is finished" in message  # of cells made with other settings
    assert before == {file.name: file.stat().st_mtime_ns for file in cells.iterdir()}
    call(*small(local, folder), verb="study")
    again = {file.name for file in cells.iterdir() if before.get(file.name) != file.stat().st_mtime_ns}
    assert again == {
        "jsonl--attribution--more_steps.json",
        "jsonl--learner--warm--0.7--seed1.json",
        "jsonl--learner--warm--0.9--seed0.json",
    }
    first, second = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in study_of(where)["methods"]]
        for where in (done, folder)
    )
    assert first == second


@pytest.mark.long
def test_cells_are_kept_only_for_the_same_weights_pairs_and_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, out, learner = write_local(tmp_path / "local"), tmp_path / "out", "{name: cold,with: ['mask=hard_concrete']}"
    own = ["study.attributions=[eap]", f"study.learners=[{learner}]", "study.sparsities=[0.7]", "study.seeds=[0]"]
    own += ["study.resamples=0", "study.curve_pairs=0"]
    call(*small(local, out, *own), verb="study")
    reading = small(local, out, *own, "study.finished_only=true")

    def kept(*more: str) -> set[str]:
        call(*reading, *more, verb="study")
        return {row["method"] for row in study_of(out)["methods"]}

    scored = {"random circuits", "eap"}
    assert kept() == {*scored, "cold"}
    for setting in ("accumulate_grad_batches=2", "max_steps=1"):
        assert kept(f"trainer.{setting}") == scored
    assert kept("+trainer.gradient_clip_val=0.1") == kept("matmul_precision=medium") == scored
    assert kept() == {*scored, "cold"}
    before = (local / "pairs.jsonl").read_text()
    swap_prompts(local / "pairs.jsonl")
    assert "none is finished" in failure(capsys, *reading, verb="study")
    (local / "pairs.jsonl").write_text(before)
    assert kept() == {*scored, "cold"}
    move_weights(local / "model")
    assert "none is finished" in failure(capsys, *reading, verb="study")


def test_a_cell_that_fails_is_recorded(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "study.attributions=[mask_gradients,{name: nonsense,with: [ablation.steps=3]}]",
        "study.sparsities=[0.8]",
        "study.seeds=[0]",
    ]
    bad = "mask=hard_concrete,mask.init=equal,mask.init_from=null,objective.loss.path=cli.not_a_number"
    more.append(f"study.learners=[{{name: bad,with: [{bad}]}}]")
    call(*small(local, tmp_path, *more, "study.resamples=0"), verb="study")
    study = study_of(tmp_path)
    assert study["status"] == "FAILED"
    errors = {item["cell"]: item["error"] for item in study["failed"]}
    assert "ablation.steps is no setting of the chosen presets" in errors["jsonl--attribution--nonsense"]
    assert "the loss is nan" in errors["jsonl--learner--bad--0.8--seed0"]
    assert {row["method"] for row in study["methods"]} == {"random circuits", "mask_gradients"}
    assert "FAILED jsonl--attribution--nonsense" in capsys.readouterr().out


@pytest.mark.slow
def test_several_tasks_share_the_model(local: Path, tmp_path: Path) -> None:
    tasks = "[{name: one,with: [task=jsonl]},{name: two,with: [task=jsonl,task.build.seed=3]}"
    tasks += ",{name: nonsense,with: [ablation.steps=3]}]"
    more = [f"study.tasks={tasks}", "study.attributions=[mask_gradients]", "study.learners=[]", "study.resamples=0"]
    call(*small(local, tmp_path, *more, "study.sparsities=[0.8]"), verb="study")
    study = study_of(tmp_path)
    assert [task["task"] for task in study["tasks"]] == ["one", "two"]
    assert [item["cell"] for item in study["failed"]] == ["nonsense--task"]


BAD = {
    "no methods": (["study.attributions=[]", "study.learners=[]"], "both empty"),
    "percent": (["study.sparsities=[95]"], "did you mean 0.95?"),
    "no seeds": (["study.seeds=[]"], "study.seeds is empty"),
    "no entry": (["study.learners=[{name: x}]"], "study.learners[0].with is missing"),
    "no such part": (["study.parts=2", "study.part=2"], "one of the parts 0 to 1"),
    "no such attribution": (["study.match={method: acdc,sparsity: 0.9}"], "match: acdc"),
    "twice": (["study.attributions=[mask_gradients,mask_gradients]"], "called 'mask_gradients'"),
    "missing model": (["model.path=missing"], "config.json"),
    "no cell works": (["study.tasks=[{name: x,with: [ablation.steps=3]}]"], "no cell could be run"),
}


@pytest.mark.parametrize("name", BAD)
def test_study_refuses_in_one_sentence(
    name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, words = BAD[name]
    assert words in failure(capsys, *small(local, tmp_path, *more), verb="study")
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "study.log"}


def test_an_experiment_sets_what_is_studied() -> None:
    with initialize_config_dir(str(Path(__file__).parent.parent / "conf"), version_base="1.3"):
        cfg = compose("study", ["experiment=methods_smollm2"])
    assert list(cfg.study.tasks) == ["ioi", "ioi_single", "greater_than", "gender_pronoun", "sva"]
    assert cfg.study.match.method == "acdc" and cfg.study.consensus == 0.5


def test_one_run_of_drawn_sizes_is_cut_at_every_sparsity(done: Path) -> None:
    cell = cell_of(done, "jsonl--learner--ranked--seed3")
    assert [row["sparsity"] for row in cell["rows"]] == [0.7, 0.9]
    scores = Circuit.load(done / "circuits" / "jsonl--learner--ranked--seed3").scores
    assert [row["n_edges_reachable"] for row in cell["rows"]] == [
        Circuit.cut(scores, row["n_edges"]).n_reachable for row in cell["rows"]
    ]


def test_edges_needed_for_a_kl(done: Path) -> None:
    """The method that sets the KL needs the edges it has, or fewer; the others' come from their own curves."""
    items = {item["method"]: item for item in study_of(done)["fewest_edges"]}
    assert set(items) == {"mask_gradients", "more steps", "warm", "ranked"}
    own = items["mask_gradients"]
    cell = cell_of(done, "jsonl--attribution--mask_gradients")
    curve = dict(cell["kl_by_size"])
    assert own["kl"] == pytest.approx(curve[own["attribution_edges"]]) and own["n_edges"] <= own["attribution_edges"]
    for item in items.values():
        assert item["n_edges"] is None or item["times_fewer"] == pytest.approx(
            own["attribution_edges"] / item["n_edges"]
        )


def test_fewest_edges_by_hand() -> None:
    curve = [(10, 3.0), (100, 1.0), (1000, 0.5), (2000, 0.7)]
    assert fewest_edges(curve, 1.0) == pytest.approx(100)
    assert fewest_edges(curve, 2.0) == pytest.approx(10**1.5)
    assert fewest_edges(curve, 0.6) == pytest.approx(10**2.8)
    assert fewest_edges(curve, 0.4) is None and fewest_edges(curve, 4.0) == 10


def test_parts_share_the_cells_by_cost() -> None:
    costs = {"a": [1.0, 8.0, 1.0], "b": [2.0, 2.0, 2.0, 2.0, 2.0]}
    jobs = {
        task: [Planned(Cell(task, "attribution", str(number)), (), cost) for number, cost in enumerate(of_task)]
        for task, of_task in costs.items()
    }
    shares = [part_of(jobs, part, 3) for part in range(3)]
    names = [[job.cell.name for of_task in share.values() for job in of_task] for share in shares]
    every = [job.cell.name for of_task in jobs.values() for job in of_task]
    assert [name for of_part in names for name in of_part] == every
    totals = [sum(job.cost for of_task in share.values() for job in of_task) for share in shares]
    assert max(totals) <= 9


def test_methods_are_ranked_by_kl_stability_and_errors(done: Path) -> None:
    study = study_of(done)
    ranked = {(one["sparsity"], one["figure"]): one for one in study["rankings"]}
    rows = {(row["method"], row["sparsity"]): row for row in study["methods"] if row["kind"] != "control"}
    by_kl, by_pairs = ranked[0.9, "KL"], ranked[0.9, "J* over resampled pairs"]
    assert len(by_kl["methods"]) == 4 and by_kl["values"] == sorted(by_kl["values"])
    assert by_kl["values"] == [rows[name, 0.9]["kl"]["value"] for name in by_kl["methods"]]
    assert set(by_pairs["methods"]) == {"mask_gradients", "more steps"}
    assert by_pairs["values"] == sorted(
        (rows[name, 0.9]["noise"]["mean"] for name in by_pairs["methods"]), reverse=True
    )
    assert all(row["agreement"]["vocabulary"]["n_right"] >= 0 for row in rows.values())
    assert (0.9, "kappa of errors") not in ranked  # twelve pairs are too few


def test_rankings_by_hand() -> None:
    rows = [
        SimpleNamespace(
            kind="attribution",
            task="t",
            sparsity=0.9,
            method=name,
            kl=Estimate(kl),
            noise=None,
            seeds_overlap=None,
            agreement=Agreements(candidates=Agreement(n_right=9, n_wrong=9, kappa=kappa and Estimate(kappa))),
        )
        for name, kl, kappa in (("a", 0.3, 0.5), ("b", 0.1, None), ("c", 0.2, 0.7))
    ]
    found = {one.figure: (one.methods, one.values) for one in rankings(rows)}  # type: ignore[arg-type]
    assert found == {"KL": (["b", "c", "a"], [0.1, 0.2, 0.3]), "kappa of errors": (["c", "a"], [0.7, 0.5])}


def test_cells_of_one_name_are_refused() -> None:
    """Their file would be read twice: one method would be reported with the figures of another."""
    check_names([Cell("own", "attribution", "eap"), Cell("own", "attribution", "eap >0")])
    for one, other in (("eap >0", "eap <0"), ("a b", "a_b")):
        with pytest.raises(UserError, match=f"'own {one}' and 'own {other}' would share the file own--attribution"):
            check_names(Cell("own", "attribution", method) for method in (one, other))
    with pytest.raises(UserError, match="would share the file"):
        check_names(Cell("own", "learner", "masks", at, 0) for at in (0.99999991, 0.99999992))
    with pytest.raises(UserError, match="'own eap >0' and 'own eap <0' would share"):
        plan([Entry("own", ())], [Entry("eap >0", ()), Entry("eap <0", ())], [])


def test_a_win_holds_for_all_comparisons_and_several_pairs() -> None:
    """Of eight differences that are each clear by themselves, only the larger one is clear among all."""

    def compared(name: str, values: list[float]) -> tuple[LearnedMinusAttribution, Statistic]:
        difference = statistic(lambda means: means[0], torch.tensor(values)[None], torch.arange(len(values)))
        names = {"task": name, "sparsity": 0.9, "learner": "masks", "attribution": "eap", "n_seeds": 1}
        return LearnedMinusAttribution(**names, **vars(difference.estimate())), difference

    clear, close = [-1.0, -1.1, -0.9, -1.0, -1.05, -0.95], [-1.0, -2.2, 0.1, -1.2, -0.1, -1.6]
    paired = [compared("clear", clear), compared("one pair", [-1.0]), *(compared(f"{n}", close) for n in range(6))]
    assert all(item.bounds is not None and item.bounds[1] < 0 for item, _ in paired)
    tasks = {item.task: SimpleNamespace(n_pairs=1 if item.task == "one pair" else 6) for item, _ in paired}
    (found,) = _wins(paired, tasks)  # type: ignore[arg-type]
    assert found.won == ["clear"] and not found.lost and len(found.open) == 7
    (alone,) = _wins(paired[2:3], tasks)  # type: ignore[arg-type]
    assert alone.won == ["0"]


def test_areas_of_a_single_sentence_have_a_value() -> None:
    one, other = Estimate(1.0, 0.5, 1.5), Estimate(2.0, 1.0, 3.0, 0.0, 4.0)
    assert _envelope([one, other]) == Estimate(1.5, 0.5, 3.0)
    assert _envelope([other, Estimate()]) == other and _envelope([Estimate()]) == Estimate()
