"""The page and the closing table, on artefacts made by hand."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from circuitlit.compare.prevention import ARMS, Prevention
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.rivals import ACCEPTED, RivalCircuit, Rivals
from circuitlit.evaluate.trust.stability import Halves, Stability
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.report import print_table, write_page
from circuitlit.report.artefacts import Run, read_run
from circuitlit.report.beside import checked_groups, read_beside, read_groups
from circuitlit.report.circuit_figure import COLOURS, circuit_figure, node_places
from circuitlit.report.drawing import drawing
from circuitlit.report.edges import KINDS, ranked_edges
from circuitlit.report.figures import layer_figure, possible_edges, series, smooth
from circuitlit.report.generality import prevention_sentences
from circuitlit.report.injection import sentence as injection_sentence
from circuitlit.report.page import headline, paired_note
from circuitlit.report.paper_circuit import dot
from circuitlit.report.runs import circuit_pairs, write_runs_page
from circuitlit.report.sweep import write_csv
from circuitlit.report.table import Metric, percent, result_rows

GRAPH = Graph(3, 4, 2)
METRICS = ("kl", "faithfulness", "faithfulness_raw", "accuracy", "exact_match", "logit_diff")
NONE = {"value": None, "low": None, "high": None}


def metrics(kl: float, **rest: object) -> dict:
    values = {key: {"value": 0.5, "low": 0.4, "high": 0.6} for key in METRICS}
    return {**values, "kl": {"value": kl, "low": kl * 0.9, "high": kl * 1.1}, **rest}


def make_circuit(roles: tuple[str, ...] = ()) -> Circuit:
    values = torch.randn(max(1, len(roles)), GRAPH.n_edges, generator=torch.Generator().manual_seed(0))
    return Circuit.cut(EdgeScores(GRAPH, values, "hard_concrete", roles), values.numel() // 2)


def make_result(circuit: Circuit, **changed: object) -> dict:
    compared = {
        "full": metrics(0.0),
        "corrupted": metrics(3.6, faithfulness=NONE),
        "random": metrics(3.5, n_edges=circuit.n_edges, n_circuits=5, n_pairs=100),
        "shuffled": metrics(2.9, n_edges=circuit.n_edges, n_circuits=3),
        "attribution": metrics(0.61, n_edges=circuit.n_edges, label="eap_ig, absolute"),
        "attribution_reachable": metrics(0.58, n_edges=circuit.n_edges + 3),
    }
    settings = {
        "status": "OK",
        "reason": None,
        "task": "ioi",
        "model": "smollm2",
        "method": "hard_concrete",
        "n_edges_total": 70651,
        "n_edges": 3533,
        "n_edges_reachable": 3411,
        "sparsity": 0.95,
        "n_pairs": 200,
        "attribution_minus_circuit_kl": {"value": 0.25, "low": 0.17, "high": 0.33},
        "provenance": {"model": {"sha256": "a3f1"}, "command": ["train.py", "task=ioi"]},
        "seconds_by_phase": {"training": 240.0},
    }
    return {**metrics(0.36), **settings, **compared, **changed}


def make_run(folder: Path, circuit: Circuit, result: dict) -> Path:
    circuit.save(folder)
    (folder / "result.json").write_text(json.dumps(result))
    rows = [{"step": step, "loss": 1.2 - step / 100, "sparsity": 0.9} for step in range(50)]
    rows += [{"step": 24, "hard_kl": 0.5}, {"step": 49, "hard_kl": float("nan")}]
    (folder / "history.json").write_text(json.dumps({"rows": rows, "target_sparsity": 0.95}))
    return folder


def without_plotly(page: str) -> str:
    """The page but for the libraries, which name addresses in their comments."""
    return re.sub(r"<script>\s*/\*\*\s*\* (plotly\.js|Copyright).*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    circuit = make_circuit()
    folder = make_run(tmp_path_factory.mktemp("run"), circuit, make_result(circuit))
    path = write_page(folder)
    assert path == folder / "report.html" and not list(folder.glob("*.part"))
    return path.read_text(encoding="utf-8")


def test_the_page_says_the_result_and_where_it_comes_from(page: str) -> None:
    text = html.unescape(without_plotly(page))
    assert (
        "3,533 of 70,651 edges (95.0 % removed), 3,411 of them reachable, reproduce smollm2 on ioi with KL 0.360 nats "
        "[0.324, 0.396]; the corrupted run has 3.60, random circuits of equal size 3.50." in text
    )
    for expected in (
        "eap_ig, absolute",
        "shuffled, mean of 3",
        "random, mean of 5",
        "controls, 100 pairs",
        "0.250 [0.170, 0.330] nats",
        "a3f1",
    ):
        assert expected in text
    assert "<dt>model.sha256</dt>" in text and "<dd>train.py task=ioi</dd>" in text
    for name in ("circuit.json", "circuit.safetensors", "result.json", "history.json"):
        assert f'href="{name}"' in text


def test_the_page_lists_the_top_edges_and_draws_every_figure(page: str) -> None:
    circuit = make_circuit()
    listed = re.findall(r'<td class="text"><code>(.*?)</code>', page)
    assert [html.unescape(name) for name in listed] == [edge.name for edge in ranked_edges(circuit)[:30]]
    assert f"At first all {circuit.n_reachable} reachable edges by effect" in page
    figures = dict(re.findall(r'<script type="application/json" id="figure-(\w+)">(.*?)</script>', page))
    assert set(figures) == {"layers", "training"}
    names = {trace["name"] for trace in json.loads(figures["training"])["data"]}
    assert {"loss, each step", "loss, running mean", "sparsity", "target sparsity"} <= names


def test_the_page_loads_nothing_and_holds_plotly_once(page: str) -> None:
    assert len(re.findall(r"\* plotly\.js v\d", page)) == 1
    rest = without_plotly(page)
    assert len(rest) < 1_000_000 and "http://" not in rest and "https://" not in rest
    assert not re.search(r"<script[^>]+src=|<link(?![^>]+href=\"data:)|@import|<iframe|<img", rest)
    assert "default-src 'none'" in rest


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    circuit = make_circuit(("</script><b>", "end"))
    result = make_result(circuit, model="<script>alert(1)</script>", reason="a < b", kl=NONE)
    text = without_plotly(write_page(make_run(tmp_path, circuit, result)).read_text(encoding="utf-8"))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "</script><b>" not in text and "&lt;/script&gt;&lt;b&gt;" in text
    assert "with no KL measured" in text


def test_missing_values_are_dashes_and_failures_claim_nothing() -> None:
    result = make_result(make_circuit(), status="FAILED", reason="misses [the] bar")
    rows = {row.key: row for row in result_rows(result)}
    assert [*rows][:2] == ["circuit", "attribution"] and [*rows][-1] == "random"
    assert str(rows["corrupted"].metrics[1]) == "-" and rows["corrupted"].edges == "0"
    assert str(rows["circuit"].metrics[0]) == "0.360 [0.324, 0.396]" and rows["circuit"].reachable == "3,411"
    assert str(Metric.of({"value": 1, "low": None})) == "1.000" and str(Metric.of(None)) == "-"
    assert str(Metric.of({"value": float("nan"), "low": 0, "high": 1})) == "-"
    assert str(Metric.of({"value": -0.0001, "low": -1, "high": 1})) == "0.000 [-1.000, 1.000]"
    assert "reproduce" not in headline(result)
    del result["shuffled"]
    assert "shuffled" not in {row.key for row in result_rows(result)}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.3, "this circuit is closer"), (-0.3, -0.1, "attribution is closer"), (-0.1, 0.1, "includes 0")],
)
def test_the_paired_difference_is_read_with_its_interval(low: float, high: float, expected: str) -> None:
    difference = {"attribution_minus_circuit_kl": {"value": 0.0, "low": low, "high": high}}
    assert expected in paired_note(difference)
    assert "neither is shown to be closer" in paired_note(difference | {"n_pairs": 1})


def test_sentences_go_by_the_interval_for_new_sentences() -> None:
    """Those of a few sentences, or beside one random set, are not said to be beyond chance."""
    clear, wide = Estimate(1.0, 0.5, 1.5, 0.2, 1.8), Estimate(1.0, 0.5, 1.5, -0.2, 2.2)
    for gap, seeds, sure in ((clear, [0, 1], True), (wide, [0, 1], False), (clear, [0], False)):
        own = {"own": gap}
        found = Prevention(
            on="own",
            nodes=["m0"],
            withheld=[],
            random_nodes=[["m1"]],
            overlap=0.0,
            conflict=0.5,
            seeds=seeds,
            steps=1,
            loss_before=own,
            loss_change=dict.fromkeys(ARMS, own),
            by_seed={},
            spared={"nothing": own, "random": own},
        )
        assert ("not beyond chance" in prevention_sentences(found)[1]) != sure
        carriers = {"new": SimpleNamespace(specific=gap)}
        facts = {"shared_nodes": [], "settings": {"nodes": 2}, "tuning": {"status": "OK"}, "correlation": 0.0}
        said = injection_sentence(SimpleNamespace(carriers=carriers, **facts))  # type: ignore[arg-type]
        assert ("not shown to be specific" in said) == (gap is wide)


@pytest.mark.parametrize(("width", "intervals"), [(80, 0), (100, 1), (120, 2), (190, 5)])
def test_the_closing_table_fits_the_terminal(width: int, intervals: int) -> None:
    result = make_result(make_circuit(), status="FAILED", reason="misses [the] bar")
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="standard", record=True)
    print_table(result, console)
    lines = console.export_text(clear=False).splitlines()
    ours = next(line for line in lines if "this circuit" in line)
    assert ours.count("[") == intervals and "3,533" in ours and "0.360" in ours
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    assert "ioi on smollm2: 95.0 % of 70,651 edges removed, 200 held-out pairs" in "\n".join(lines)
    assert lines[-1] == "FAILED: misses [the] bar" and "\x1b[1;31mFAILED" in console.export_text(styles=True)


@pytest.mark.parametrize("name", ["circuit.json", "circuit.safetensors", "result.json", "history.json"])
def test_a_missing_or_damaged_artefact_is_one_sentence(tmp_path: Path, name: str) -> None:
    circuit = make_circuit()
    make_run(tmp_path, circuit, make_result(circuit))
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=re.escape(name)):
        write_page(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_result_without_a_needed_field_names_it(tmp_path: Path) -> None:
    circuit = make_circuit()
    make_run(tmp_path, circuit, {**make_result(circuit), "n_pairs": None})
    with pytest.raises(UserError, match="n_pairs"):
        write_page(tmp_path)


def test_edges_are_in_order_and_meet_at_drawn_nodes() -> None:
    circuit = make_circuit(("subject", "end"))
    edges = ranked_edges(circuit)
    assert len(edges) == int(circuit.reachable.any(0).sum())
    assert [edge.score for edge in edges] == sorted((edge.score for edge in edges), reverse=True)
    places = node_places(GRAPH)
    for edge in edges:
        row = ("subject", "end").index(edge.role)
        assert circuit.reachable[row, GRAPH.edge_index(edge.name)]
        assert edge.kind in KINDS and places[edge.source][1] < places[edge.target][1]


def test_only_the_top_edges_become_lines() -> None:
    edges = ranked_edges(make_circuit())
    figure = circuit_figure(GRAPH, edges, drawn=20)
    lines = [trace for trace in figure.data if trace.meta in KINDS]
    assert sum(trace.x.count(None) for trace in lines) == 20
    notes = dict(zip(node_places(GRAPH), figure.data[-1].text, strict=True))
    into = sum(edge.target == "logits" for edge in edges)
    assert notes["logits"].startswith(f"<b>logits</b><br>in {into}, out 0")
    assert "&lt;" in "".join(notes.values()) and "<q>" not in "".join(notes.values())


@pytest.mark.parametrize("graph", [GRAPH, Graph(2, 3, 3, parallel=True)])
def test_the_heat_map_counts_every_edge_once(graph: Graph) -> None:
    layers = [(s, t) for s in range(-1, graph.n_layers) for t in range(graph.n_layers + 1)]
    assert sum(possible_edges(graph, source, target) for source, target in layers) == graph.n_edges
    everything = Circuit.cut(EdgeScores(graph, torch.zeros(1, graph.n_edges), "all"), graph.n_edges)
    edges = ranked_edges(everything)
    counts = [[cell or 0 for cell in row] for row in layer_figure(graph, edges).data[0].z]
    assert counts == [
        [possible_edges(graph, source, target) for target in range(graph.n_layers + 1)]
        for source in range(-1, graph.n_layers)
    ]
    assert {node for edge in edges for node in (edge.source, edge.target)} == set(node_places(graph))


def test_curves_skip_what_was_not_recorded() -> None:
    history = {"rows": [{"step": 0, "loss": 1.0}, {"step": 1}, {"step": 2, "loss": None}, {"loss": 3.0}]}
    assert series(history, "loss") == ([0], [1.0])
    assert smooth([1.0] * 7) == [1.0] * 7 and smooth([0.0, 3.0, 6.0]) == [0.0, 3.0, 6.0]
    assert percent(0.95) == "95.0 %" and percent(0.9997) == "99.97 %" and percent(None) == "-"


def make_evolution(moved: int = 0) -> dict:
    """Six snapshots of a circuit of 4 edges in the graph of these tests, with two stages."""
    layers = GRAPH.n_layers

    def at(step: int, low: int, high: int, mark: str | None = None, p: float | None = None) -> dict:
        status = None if p is None else "beyond chance" if p <= 0.05 else "not beyond chance"
        chance = {"p": p, "p_walk": None, "draws": 0 if p is None else 199, "status": status}
        return {"step": step, "low": low, "high": high, "mark": mark, **chance}

    found = {"initialization": None, "rapid_learning": None, "fine_tuning": None, "convergence": None}
    found["rapid_learning"] = (at(0, 0, 0), at(20 + moved, 10 + moved, 20 + moved, "schedule", 0.005))
    found["convergence"] = (found["rapid_learning"][1], at(50, 50, 50))
    stages = [
        {"name": name, "observed": ends is not None, "start": ends and ends[0], "end": ends and ends[1]}
        for name, ends in found.items()
    ]
    counts = [[4 - n, n] for n in (0, 1, 2, 3, 3, 3)]
    return {
        "format": 2,
        "roles": [],
        "n_masks": GRAPH.n_edges,
        "steps": [0, 10, 20, 30, 40, 50],
        "count": 4,
        "graph": asdict(GRAPH),
        "schedule": {
            "steps": 50,
            "knots": {"warmup_end": 20.0 + moved, "harden_start": None},
            "sparsity": [0, 0.4, 0.8, 0.8, 0.8, 0.8],
            "noise": [1] * 6,
        },
        "overlap_final": [0.1, 0.5, 0.9, 1, 1, 1],
        "progress": [0, 0.4, 0.9, 1, 1, 1],
        "overlap_previous": [None, 0.5, 0.6, 0.9, 1, 1],
        "churn": [None, 2, 2, 2, 0, 0],
        **{key: [0.5] * 6 for key in ("undecided", "open", "velocity")},
        "reachable": [4] * 6,
        "log_alpha": {"edges": [-1, 1], "counts": [[GRAPH.n_edges]] * 6},
        "hard_kl": [2.0, None, 1.0, None, None, 0.4],
        "kept": {
            "q": [[a, b, 0] for a, b in counts],
            **{kind: [[0] * layers] * 6 for kind in ("k", "v", "mlp")},
            "logits": [0] * 6,
        },
        "flow": {"pairs": [[0, 0], [1, 1]], "counts": counts},
        "stages": {
            "verdict": "learning",
            "stages": stages,
            "change_points": [found["rapid_learning"][1], at(40, 30, 40, None, 0.3)],
        },
    }


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def with_evolution(folder: Path, evolution: dict) -> Path:
    circuit = make_circuit()
    make_run(folder, circuit, make_result(circuit))
    (folder / "evolution.json").write_text(json.dumps(evolution))
    return folder


def test_the_page_says_when_stages_begin_and_which_are_absent(tmp_path: Path) -> None:
    text = html.unescape(without_plotly(write_page(with_evolution(tmp_path, make_evolution())).read_text()))
    assert "6 snapshots of the masks show these stages: rapid learning, convergence." in text
    assert "0 to 20 [10, 20], schedule, p 0.005</small>" in text and text.count("<small>not observed</small>") == 2
    assert "Change points that make no stage: step 40 [30, 40], p 0.300, not beyond chance." in text
    figures = dict(re.findall(r'<script type="application/json" id="figure-(\w+)">(.*?)</script>', text))
    shapes = json.loads(figures["timeline"])["layout"]["shapes"]
    bands = [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect" and s["name"] != "interval"]
    assert bands == [(0, 20), (20, 50)]
    assert [(s["x0"], s["x1"]) for s in shapes if s["name"] == "interval"] == [(10, 20)]
    assert [s["x0"] for s in shapes if s["name"] == "warmup_end"] == [20]
    assert [s["line"]["dash"] for s in shapes if s["name"] == "boundary"] == ["dash"]
    assert [(s["x0"], s["line"]["dash"]) for s in shapes if s["name"] == "not beyond chance"] == [(40, "dot")]


@pytest.mark.parametrize("verdict", ["not beyond chance", "no learning"])
def test_the_page_has_no_stages_where_chance_has_them_too(tmp_path: Path, verdict: str) -> None:
    evolution = make_evolution()
    point = evolution["stages"]["change_points"][1]
    stages = [{"name": n["name"], "observed": False, "start": None, "end": None} for n in evolution["stages"]["stages"]]
    evolution["stages"] = {"verdict": verdict, "stages": stages, "change_points": [point]}
    text = html.unescape(without_plotly(write_page(with_evolution(tmp_path, evolution)).read_text()))
    assert "no stages. Change points that make no stage: step 40 [30, 40], p 0.300, not beyond chance." in text
    assert text.count("<small>not observed</small>") == 4


def test_an_evolution_of_another_version_is_refused(tmp_path: Path) -> None:
    with_evolution(tmp_path, {**make_evolution(), "format": 0})
    with pytest.raises(UserError, match=r"evolution\.json"):
        write_page(tmp_path)


def test_key_value_heads_lead_on_to_the_heads_that_share_them() -> None:
    edges = ranked_edges(make_circuit())
    picture = drawing(GRAPH, edges, "effect")
    names = picture["nodes"]
    follow = {names[node]: [names[head] for head in heads] for node, heads in picture["next"].items()}
    assert follow["a1.kv1"] == ["a1.h2", "a1.h3"] and len(follow) == 6
    drawn = zip(picture["source"], picture["target"], strict=True)
    assert [(names[s], names[t]) for s, t in drawn] == [(edge.source, edge.target) for edge in edges]
    assert picture["drawn"] == picture["n_edges"] == len(edges) and all(picture["own"]) and not picture["layers"]


def test_runs_are_compared_beyond_chance_and_stage_by_stage(tmp_path: Path) -> None:
    folders = [
        with_evolution(make(tmp_path / name), make_evolution(moved)) for name, moved in (("a", 0), ("b", 0), ("c", 20))
    ]
    text = html.unescape(without_plotly(write_runs_page(folders, tmp_path / "runs.html").read_text()))
    # The circuits are the same file three times: the overlap is 1 however it is counted.
    assert text.count("<td>1.000</td>") == 4 * 3
    assert text.count("0.360<small>[0.324, 0.396]</small>") == 3
    assert "<td>too few runs<small>other schedule: unknown</small></td>" in text
    assert text.count("is not supported") == 3 and "Nodes stay while" not in text  # no edge changes
    assert "://" not in text
    figures = dict(re.findall(r'<script type="application/json" id="figure-(\w+)">(.*?)</script>', text))
    assert set(figures) == {"overlap", "curves", "stages"}
    bars = {bar["name"]: bar for bar in json.loads(figures["stages"])["data"] if bar["type"] == "bar"}
    assert bars["rapid learning"]["x"] == [20, 20, 40] and bars["convergence"]["base"] == [20, 20, 40]
    with pytest.raises(UserError, match="two runs or more"):
        write_runs_page([folders[0], folders[0]], tmp_path / "runs.html")


def test_what_does_not_exist_of_two_circuits_is_a_dash(tmp_path: Path) -> None:
    whole, nothing = make_circuit(), torch.zeros_like(make_circuit().kept)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    runs = [make_run(tmp_path / name, Circuit.of(whole.scores, nothing), make_result(whole)) for name in ("a", "b")]
    text = without_plotly(write_runs_page(runs, tmp_path / "runs.html").read_text())
    assert "<td>1.000</td>" in text and "<td>-</td>" in text and "nan" not in text.split('id="curves"')[0]


def test_the_table_of_runs_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, path = make(tmp_path / "a"), tmp_path / "runs.csv"
    before = write_csv([folder], ["a"], path).read_text()
    with pytest.raises(ValueError, match="zip"):
        write_csv([folder, folder], ["b"], path)  # as an interrupt would, after the first row
    assert path.read_text() == before and before.count("\n") == 2


def test_circuits_of_other_graphs_are_not_compared() -> None:
    other = Circuit.cut(EdgeScores(Graph(2, 2, 2), torch.randn(1, Graph(2, 2, 2).n_edges), "x"), 5)
    runs = [Run(Path(), circuit, {}, {}) for circuit in (make_circuit(), other)]
    [pair] = circuit_pairs(["a", "b"], runs)
    assert pair.values is None and "different graphs" in pair.reason


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_figures_for_papers(tmp_path: Path, form: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    from circuitlit.report.paper import save_figures

    run = read_run(with_evolution(tmp_path, make_evolution()))
    paths = save_figures(run, tmp_path, form)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in ("circuit", "layers", "timeline", "training")]
    assert all(path.read_bytes().startswith(start) and path.stat().st_size > 4000 for path in paths)


def test_the_circuit_in_dot_has_the_top_edges_and_boxes_for_groups() -> None:
    circuit = make_circuit()
    edges = ranked_edges(circuit)
    text = dot(GRAPH, edges, {'the "first"': ["a0.h0", "a0.h1"]}, drawn=30)
    drawn = re.findall(r'^  "(\S+)" -> "(\S+)" \[color="(#\w+)", penwidth=([\d.]+)', text, re.MULTILINE)
    assert [one[:2] for one in drawn] == [(edge.source, edge.target) for edge in edges[:30]]
    assert [one[2] for one in drawn] == [COLOURS[edge.kind] for edge in edges[:30]]
    widths = [float(one[3]) for one in drawn]
    assert widths == sorted(widths, reverse=True) or any(edge.score < 0 for edge in edges[:30])
    assert text.count("{") == text.count("}") and 'label="the \\"first\\""; "a0.h0"; "a0.h1"; }' in text
    nodes = set(re.findall(r'^  "(\S+)" \[shape', text, re.MULTILINE))
    assert nodes == {name for edge in edges[:30] for name in (edge.source, edge.target)}


def test_groups_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    for groups, said in (({"x": ["a9.h0"]}, "no node 'a9.h0'"), ({"x": ["m1"], "y": ["m1"]}, "leave it in one")):
        with pytest.raises(UserError, match=said):
            checked_groups(GRAPH, groups)
    (tmp_path / "groups.json").write_text('{"x": "m1"}')
    with pytest.raises(UserError, match="an object of lists"):
        read_groups(tmp_path / "groups.json")


def test_accepted_rivals_are_layers_and_what_all_share_is_core(tmp_path: Path) -> None:
    circuit = make_circuit()
    run = make_run(tmp_path, circuit, make_result(circuit))
    kept, cut = circuit.kept[0].nonzero()[:, 0].tolist(), (~circuit.kept[0]).nonzero()[:, 0].tolist()
    half = len(kept) // 2
    none = Estimate(0.0, 0.0, 0.0)
    shared = {"start": "whole", "tried": {}, "kl": none, "worse": none, "exact_match": none, "lost": none}
    near = RivalCircuit(share=0.5, n_common=half, state=ACCEPTED, edges=[*kept[:half], *cut[:half]], **shared)
    far = RivalCircuit(share=0.0, n_common=0, state="rejected", edges=cut, **shared)
    facts = {"task": "ioi", "model": "m", "method": "x", "ablation": "zero", "steps": 1, "starts": []}
    sizes = {"n_edges": len(kept), "n_edges_total": GRAPH.n_edges, "bar": 0.1, "exact_bar": 0.1, "n_pairs": 1}
    more = {"kl": none, "exact_match": none, "corrupted_kl": none, "n_sentences": 1, "hold": [], "hardest": {}}
    rest = {"core": half, "redundancy": None, "cross": {}, "control": None, "edges": kept}
    Rivals(free=near, rivals=[far], **facts, **sizes, **more, **rest).save(tmp_path / "rivals")
    beside = read_beside(read_run(run), [tmp_path / "rivals"])
    assert [layer.name for layer in beside.layers] == ["rival with 50% of the edges"]
    assert beside.core == {GRAPH.edge_name(edge) for edge in kept[:half]}
    assert beside.often[GRAPH.edge_name(kept[-1])] == beside.often[GRAPH.edge_name(cut[0])] == 0.5
    picture = drawing(GRAPH, ranked_edges(circuit), "effect", {}, beside)
    assert picture["core"] is not None and sum(picture["core"]) <= half and {0.5, 1.0} <= set(picture["often"])
    halves = Halves(of="pairs", n_splits=2, n_circuits=4, edges=[kept[0], cut[0]], pi=[1.0, 0.25])
    more = {"ablation": "zero", "procedure": "again", "baseline": None, "causes": [], "share": 0.9, "halves": [halves]}
    facts = {"task": "ioi", "model": "m", "method": "x", "n_edges": len(kept), "n_edges_total": GRAPH.n_edges}
    found = Stability(**facts, **more, n_pairs=1).to_dict()
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "stable.json").write_text(json.dumps({"settings": "", "content": found}))
    beside = read_beside(read_run(run), [tmp_path / "rivals"])
    assert beside.core == {GRAPH.edge_name(kept[0])} and beside.often[GRAPH.edge_name(cut[0])] == 0.25
    assert len(beside.layers) == 1 and "4 circuits from halves of the pairs" in beside.note
    assert "circuits from halves of the pairs" in write_page(run).read_text()
