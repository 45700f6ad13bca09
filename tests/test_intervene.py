"""The verbs intervene, generality and capabilities on an adapter that gains one task and loses another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import WORDS, call, failure, settings
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from circuitlit.compare.capabilities import Capabilities
from circuitlit.evaluate import Estimate
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.report.capabilities import acquisition_sentences


@pytest.fixture(scope="module")
def tuned(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the local model, and pairs that it answers rightly (new) or that the base does (old)."""
    folder = tmp_path_factory.mktemp("tuned")
    plain, under = (AutoModelForCausalLM.from_pretrained(local / "model") for _ in range(2))
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    wrapped = get_peft_model(under, config)
    wrapped.save_pretrained(str(folder / "adapter"))
    ids = torch.randint(1, 41, (600, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (model.eval()(ids).logits[:, -1].argmax(-1).tolist() for model in (plain, wrapped))
    rows = [(p, b, a) for p, b, a in zip(ids.tolist(), before, after, strict=True) if a != b and min(a, b) > 0][:60]
    assert len(rows) == 60

    def words(prompt: list[int]) -> str:
        return " ".join(WORDS[token - 1] for token in prompt)

    for name in ("new", "old"):
        lines = []
        for number, (prompt, b, a) in enumerate(rows):
            right, wrong = (a, b) if name == "new" else (b, a)
            row = {"clean": words(prompt), "corrupted": words(rows[number - 1][0])}
            row |= {"answer": f" {WORDS[right - 1]}", "wrong_answer": f" {WORDS[wrong - 1]}"}
            lines.append(json.dumps(row | {"split": ("train", "val", "test", "test", "test")[number % 5]}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def entry(folder: Path, name: str) -> str:
    return f'{{name: {name}, with: ["task.build.path={folder}/{name}.jsonl"]}}'


def quick(local: Path, out: Path, *more: str) -> list[str]:
    fast = ["logger=none", "method.score.steps=2", "sparsity.target=0.6", "data.eval_batch_size=64"]
    return settings(local, out, *fast, *more)


def test_capabilities_sees_what_an_adapter_gained_and_lost(local: Path, tuned: Path, tmp_path: Path) -> None:
    tasks = f"capabilities.tasks=[{entry(tuned, 'new')}, {entry(tuned, 'old')}]"
    call(*quick(local, tmp_path, f"tuned={tuned}/adapter", tasks), verb="capabilities")
    result = json.loads((tmp_path / "capabilities.json").read_text())
    assert {name: task["verdict"] for name, task in result["tasks"].items()} == {"new": "gained", "old": "degraded"}
    found = result["acquisition"]["new"]
    assert found["nodes"] and found["tried"][str(len(found["nodes"]))] >= 0.8 and "old" not in result["acquisition"]
    assert found["random_gain_share"]["value"] is not None
    assert "plotly" in (tmp_path / "capabilities.html").read_text().lower()
    whole = Capabilities.load(tmp_path)
    (said,) = acquisition_sentences(whole)
    assert said.endswith(f"(p = {found['p_holm']:.2g}).")
    unclear = replace(whole.acquisition["new"], gap=Estimate(0.1, -0.1, 0.3))
    (said,) = acquisition_sentences(whole.replaced(acquisition={"new": unclear}))
    assert "no nodes can be said to carry the gain" in said and "random" not in said


@pytest.mark.long
def test_generality_reverts_the_nodes_that_did_the_damage(local: Path, tuned: Path, tmp_path: Path) -> None:
    more = [f"tuned={tuned}/adapter", "generality.revert=3", "generality.prevent.tune_on=new", "tune.steps=4"]
    more += ["generality.prevent.nodes=2", "generality.prevent.seeds=[0,1]", "tune.lr=1e-2"]
    more.append(f"generality.tasks=[{entry(tuned, 'new')}, {entry(tuned, 'old')}]")
    call(*quick(local, tmp_path, *more), verb="generality")
    result = json.loads((tmp_path / "generality.json").read_text())
    assert result["overlap"][0][0] == result["overlap"][1][1] == pytest.approx(1)
    (shared,) = result["shared"]
    assert shared["of"] == ["new", "old"] and shared["edges"]["corrected"] == result["overlap"][0][1]
    beside = result["random"]["new"]
    assert (
        20 <= beside["draws"] <= 180 and beside["p_holm"] >= beside["rank_p"] and beside["circuit"]["value"] is not None
    )
    claims = [shared[part] for part in ("nodes", "edges", "gap")] + list(result["transfer"]["conflict"].values())
    assert all(claim["p_holm"] >= claim["rank_p"] for claim in claims)
    values = [[cell["value"] for cell in row] for row in result["faithfulness"]]
    assert result["generality"] == pytest.approx((values[0][1] + values[1][0]) / (values[0][0] + values[1][1]))
    assert len(result["composites"]) == 2 and set(result["random"]) == {"new", "old"}
    assert set(result["transfer"]["reverted"]) == {"old"}
    found = result["transfer"]["reverted"]["old"]
    assert 1 <= len(found["nodes"]) <= 3 and set(found["gain_lost"]) == {"new"}
    assert 0 < result["transfer"]["conflict"]["old"]["index"] <= 1
    found = result["prevention"]
    assert len(found["nodes"]) == 2 == len(found["random_nodes"]) and not set(found["nodes"]) & {"input"}
    change = found["loss_change"]["nothing"]
    assert change["new"]["value"] != 0 and set(found["spared"]["random"]) == {"new", "old"}
    spared = found["by_seed"]["random"]["old"][0] - found["by_seed"]["conflict"]["old"][0]
    other = found["by_seed"]["random"]["old"][1] - found["by_seed"]["conflict"]["old"][1]
    assert found["spared"]["random"]["old"]["value"] == pytest.approx((spared + other) / 2, abs=1e-5)
    assert "Findings" in (tmp_path / "generality.html").read_text()


def mask_run(folder: Path) -> Path:
    """A circuit of gates: m0's edges are hardly open, a1.h1's one is wide open, all closed ones are far below 0."""
    folder.mkdir()
    graph = Graph(2, 2, 2)
    values = torch.full((1, graph.n_edges), -5.0)
    values[0, torch.tensor([writer in ("input", "m0") for writer in graph.writers])[graph.writer_of]] = 0.5
    values[0, graph.edge_index("a1.h1->logits")] = 9.0
    Circuit.cut(EdgeScores(graph, values, "hard_concrete", kind="gate"), int((values > 0).sum())).save(folder)
    return folder


def test_intervene_ablates_scales_and_transfers(local: Path, tuned: Path, tmp_path: Path) -> None:
    more = [f"tuned={tuned}/adapter", f"task.build.path={tuned}/new.jsonl", "intervene.size=2", "intervene.edges=3"]
    more.append(f"circuit={mask_run(tmp_path / 'circuit')}")
    more += [f"intervene.other_tasks=[{entry(tuned, 'old')}]", "intervene.passages.count=4", "ablation=zero"]
    more += [
        "intervene.doses=[0.0,1.0,2.0]",
        "intervene.steps=[1,2]",
        "intervene.candidates=null",
        "intervene.passages.length=8",
    ]
    call(*quick(local, tmp_path, *more), verb="intervene")
    result = json.loads((tmp_path / "intervene.json").read_text())
    assert result["chosen"] == ["m0", "a1.h1"] and result["ablation"]["weight"] == "open probability"
    doses = {row["dose"]: row for row in result["enhancement"]["doses"]}
    assert doses[1.0]["change"]["value"] == pytest.approx(0, abs=1e-5)
    assert doses[1.0]["collateral_kl"]["value"] == pytest.approx(0, abs=1e-6)
    own, nodes = result["ablation"]["set"], result["ablation"]["nodes"]
    assert doses[0.0]["change"]["value"] == pytest.approx(-own["drop"]["value"], abs=1e-4)
    assert doses[0.0]["collateral_kl"]["value"] == pytest.approx(own["collateral_kl"]["value"], abs=1e-5)
    assert len(nodes) == 6 and len(result["ablation"]["edges"]) == 3
    drops = [row["drop"]["value"] for row in nodes]
    assert drops == sorted(drops, reverse=True) and all(row["q"] >= row["p"] for row in nodes)
    assert own["specificity"]["value"] is not None and set(own["other_tasks"]) == {"old"}
    assert len(result["enhancement"]["random_changes"]) == 3  # so small a model has no other sets
    assert result["transfer"]["gap_is_clear"] and result["transfer"]["weights"]["gain_share"]["value"] is not None
    page = (tmp_path / "intervene.html").read_text()
    assert "Dose and response" in page and 'src="http' not in page


@pytest.mark.long
def test_mistakes_get_one_sentence(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=3, n_head=2, vocab_size=41, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "deeper")
    AutoTokenizer.from_pretrained(local / "model").save_pretrained(tmp_path / "deeper")
    shutil.copytree(local / "model", tmp_path / "renumbered")
    tokenizer = json.loads((local / "model" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["w0"], words["w1"] = words["w1"], words["w0"]
    (tmp_path / "renumbered" / "tokenizer.json").write_text(json.dumps(tokenizer))
    two = "generality.tasks=[{name:a,with:[]},{name:b,with:[]}]"
    cases = {
        ("intervene", f"tuned={tmp_path}/renumbered"): "only models of one tokenizer",
        ("capabilities", f"tuned={tmp_path}/renumbered"): "only models of one tokenizer",
        ("difference", f"tuned={tmp_path}/renumbered"): "only models of one tokenizer",
        ("generality", f"tuned={tmp_path}/renumbered {two}"): "only models of one tokenizer",
        ("intervene", "intervene.draws=3"): "at least 20",
        ("intervene", "intervene.nodes=[a7.h0]"): "no node 'a7.h0'",
        ("intervene", "intervene.doses=[1.0]"): "must hold 0",
        ("intervene", f"tuned={tmp_path}/deeper"): "one graph",
        ("intervene", f"heads={tmp_path}/nothing"): "nothing does not exist",
        ("intervene", "intervene.other_tasks=[nonsense]"): "nonsense is not a preset of task",
        ("capabilities", f"tuned={tmp_path}/deeper"): "only models of one graph",
        ("capabilities", f"tuned={tmp_path}/missing"): "missing does not exist",
        ("capabilities", f"tuned={local}/model capabilities.by=magic"): "activations or weights",
        ("generality", "generality.tasks=[{name:a,with:[]}]"): "a list of at least 2",
        (
            "generality",
            "generality.tasks=[{name:a,with:[]},{name:b,with:[]}] generality.circuits=[x]",
        ): "a list of at least 2",
        ("generality", "seed=0"): "generality.tasks has no value",
    }
    capsys.readouterr()  # saving shows progress
    for (verb, more), words in cases.items():
        assert words in failure(capsys, *quick(local, tmp_path / "out", *more.split()), verb=verb)
        left = {path.name for path in (tmp_path / "out").glob("*")}
        assert left <= {".hydra", *(f"{verb}.log" for verb, _ in cases)}
