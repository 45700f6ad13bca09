"""Circuit differences: planted changes, labels by hand, the function and the verb."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.compare import (
    LABELS,
    Resampled,
    change_rates,
    circuit_difference,
    node_modes,
)
from circuitlit.compare.comparison import Comparison, compare_models
from circuitlit.compare.reuse import Swaps
from circuitlit.discover import MaskedLoss, eap, mask_gradients
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import corrected_jaccard
from circuitlit.graph import EdgeScores, Graph, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.objective import negative_metric
from circuitlit.tasks import PairsModule, jsonl


def bench_of(local: Path, noise: torch.Generator | None = None) -> Workbench:
    """The local model, its weights moved by some noise, with its pairs."""
    subject = load_subject(local / "model", name="tiny")
    with torch.no_grad():
        for parameter in subject.model.parameters() if noise else ():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    assert subject.tokenizer is not None
    splits = jsonl(subject.tokenizer, str(local / "pairs.jsonl"), seed=0)
    return Workbench.build(subject, PairsModule(splits, subject.tokenizer, 4, 0), 0.6)


def linear_subject(scale: float = 1.0) -> Subject:
    """A GPT-2 of one block without norms; head 1's output is scaled. Heads and MLP write little beside the input."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=24, n_layer=1, n_head=4, vocab_size=50, n_positions=64)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        block = model.transformer.h[0]
        block.attn.c_proj.weight *= 0.02
        block.attn.c_proj.weight[6:12] *= scale
    block.ln_1, block.ln_2, model.transformer.ln_f = nn.Identity(), nn.Identity(), nn.Identity()
    return Subject(model)


def scored(subject: Subject, count: int, resamples: int = 10) -> Resampled:
    """Scores of a few random pairs and of resamples of them."""
    layout = MaskLayout(subject.graph)
    batch = tiny_batch(rows=8, answers=1)
    batch.wrong[:] = (batch.answer[:, 0] + 1) % 50
    loss = MaskedLoss(MaskedModel(subject), layout, negative_metric)
    references = References(subject, "interchange")
    fields = {name: getattr(batch, name) for name in vars(batch)}

    def on(rows: torch.Tensor) -> EdgeScores:
        return mask_gradients(loss, references, [type(batch)(**{n: v[rows] for n, v in fields.items()})], steps=3)

    draw = torch.Generator().manual_seed(0)
    drawn = [on(torch.randint(8, (8,), generator=draw)) for _ in range(resamples)]
    return Resampled(on(torch.arange(8)), drawn, count)


def head_edges(graph: Graph, head: str) -> torch.Tensor:
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    return torch.tensor([name.startswith(f"{head}->") or f"->{head}<" in name for name in names])


def test_scaling_a_head_strengthens_its_edges_and_no_others() -> None:
    base, tuned = (scored(one, one.graph.n_edges) for one in map(linear_subject, (1.0, 3.0)))
    difference = circuit_difference(base, tuned)
    own = head_edges(base.scores.graph, "a0.h1")
    assert torch.equal(difference.edges("strengthened"), own) and int(own.sum()) == 5
    assert bool(difference.edges("reused")[~own].all())
    modes = node_modes(base, tuned, difference)
    assert [node for node, mode in modes.items() if mode == "enhanced"] == ["a0.h1"]
    back = circuit_difference(tuned, base)
    assert torch.equal(back.edges("weakened"), own)


def test_zeroing_a_head_removes_its_edges() -> None:
    base, tuned = (scored(one, one.graph.n_edges) for one in map(linear_subject, (1.0, 0.0)))
    difference = circuit_difference(base, tuned)
    own = head_edges(base.scores.graph, "a0.h1")
    assert torch.equal(difference.edges("removed"), own) and difference.changed
    assert not bool(difference.edges("added").any())
    assert node_modes(base, tuned, difference)["a0.h1"] == "lost"
    added = circuit_difference(tuned, base)
    assert torch.equal(added.edges("added"), own)
    assert node_modes(tuned, base, added)["a0.h1"] == "new"


def test_a_model_does_not_differ_from_itself() -> None:
    model = scored(Subject(tiny_model("llama")), 40)
    difference = circuit_difference(model, model)
    assert difference.distance == 0 and not difference.changed
    assert float(difference.ratio.nan_to_num().abs().max()) == 0
    assert not any(bool(difference.edges(name).any()) for name in LABELS[1:6])
    assert set(node_modes(model, model, difference).values()) <= {"full", "absent", "uncertain"}


def made(graph: Graph, *rows: list[float]) -> Resampled:
    scores = [EdgeScores(graph, torch.tensor([row]), "by hand", ranks_by_magnitude=True) for row in rows]
    return Resampled(scores[0], (scores * 10)[:10], 2)


def test_labels_by_hand() -> None:
    graph = Graph(1, 1, 1)
    rest = [0.0] * (graph.n_edges - 4)
    base = made(graph, [4.0, 4.0, 0.1, 0.0, *rest])
    flipped = circuit_difference(base, made(graph, [4.0, -4.0, 0.1, 0.0, *rest]))
    assert [LABELS[label] for label in flipped.labels[:4]] == ["reused", "modified", "absent", "absent"]
    moved = circuit_difference(base, made(graph, [4.0, 0.0, 4.0, 0.0, *rest]))
    assert [LABELS[label] for label in moved.labels[:4]] == ["reused", "removed", "added", "absent"]
    torn = made(graph, [4.0, 4.0, 0.1, 0.0, *rest], [4.0, 0.1, 4.0, 0.0, *rest])
    unsure = circuit_difference(base, torn)
    assert [LABELS[label] for label in unsure.labels[:4]] == ["reused", "uncertain", "uncertain", "absent"]
    shifted = circuit_difference(base, made(graph, [8.0, 2.0, 0.1, 0.0, *rest]))
    assert [LABELS[label] for label in shifted.labels[:2]] == ["strengthened", "weakened"]
    assert float(shifted.ratio[0]) == pytest.approx(math.log((8 / 10) / (4 / 8)))
    with pytest.raises(UserError, match="different graphs"):
        circuit_difference(base, made(Graph(1, 2, 2), [1.0] * Graph(1, 2, 2).n_edges))
    with pytest.raises(UserError, match="too few"):
        Resampled(base.scores, base.resamples[:9], 2)


def test_overlap_by_chance_is_nought() -> None:
    draw = torch.Generator().manual_seed(0)
    sets = [torch.rand(400, generator=draw) < 0.2 for _ in range(200)]
    found = [corrected_jaccard(one, other) for one, other in zip(sets[::2], sets[1::2], strict=True)]
    assert abs(sum(found) / len(found)) < 0.01
    assert corrected_jaccard(sets[0], sets[0]) == 1 and corrected_jaccard(sets[0], sets[1]) == corrected_jaccard(
        sets[1], sets[0]
    )


def test_change_rates_count_deletions() -> None:
    series = [torch.tensor(row, dtype=torch.bool) for row in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0])]
    first, second = change_rates(series)
    assert first == {"added": 1, "removed": 1, "of_first": 1.0, "of_union": pytest.approx(2 / 3)}
    assert second == {"added": 0, "removed": 2, "of_first": 1.0, "of_union": 1.0}


@pytest.mark.long
def test_two_models_are_compared_from_python(local: Path, tmp_path: Path) -> None:
    benches = [bench_of(local), bench_of(local, torch.Generator().manual_seed(0))]
    method = Method.of(eap, negative_metric)
    result = compare_models(benches[0], benches[1], method, intruders=2, reuse=Swaps(pairs=4, nodes=2))
    result.save(tmp_path)
    assert Comparison.load(tmp_path) == result
    assert len(result.to_frame()) == len(result.at_size.points) > 0 and result.at_size.distance > 0
    assert result.reuse is not None and result.reuse.summary.swapped == 2 and "jsonl" in repr(result)
    same = compare_models(benches[0], benches[0], method, intruders=0, reuse=Swaps(pairs=0))
    assert same.at_size.distance == 0 and same.reuse is None and same.weights.norm == 0
    with pytest.raises(UserError, match="delta=1 must be"):
        compare_models(benches[0], benches[0], method, delta=1)
    for wrong in ({"faithfulness": 2.0}, {"sizes": ()}, {"sizes": (0.0,)}, {"draws": 0}, {"probe_pairs": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            compare_models(benches[0], benches[0], method, **wrong)


def compare(local: Path, out: Path, *more: str) -> list[str]:
    return settings(local, out, "logger=none", "sparsity.target=0.6", "method.score.steps=2", *more)


@pytest.mark.long
def test_the_verb_compares_a_tuning_run_with_its_base(local: Path, tmp_path: Path) -> None:
    run = tmp_path / "tune"
    more = ["logger=none", "adapter=lora", "tune.steps=20", "tune.lr=2e-2", "tune.checkpoints=0"]
    call(*settings(local, run, *more), verb="finetune")
    call(*compare(local, tmp_path / "out", f"tuned={run}"), verb="compare")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["tuned"]["adapter"] == str(run / "tuned") and result["base"]["adapter"] is None
    size = result["at_size"]
    assert sum(size["counts"].values()) == result["n_edges_total"] and set(size["counts"]) == set(LABELS)
    assert size["n_edges"] == {
        "base": round(0.4 * result["n_edges_total"]),
        "tuned": round(0.4 * result["n_edges_total"]),
    }
    held = json.loads((run / "result.json").read_text())["held_out"]
    assert result["held_out"]["metric_change"]["value"] == pytest.approx(held["metric_change"]["value"], rel=1e-4)
    assert result["weights"]["distribution"]["kind"]["share"]["embed"] == 0 < result["weights"]["relative"]
    assert max(part["change"]["rank"] for part in result["weights"]["parts"]) <= 8
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "plotly" in page.lower() and 'src="http' not in page


def test_the_verb_takes_runs_and_folders_and_sees_no_change_in_the_same(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path / "one", "logger=none"), verb="attribute")
    capsys.readouterr()
    call(*compare(local, tmp_path / "out", f"base={tmp_path}/one", f"tuned={local}/model"), verb="compare")
    lines = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80 and not any("\u2026" in line for line in lines), "\n".join(lines)
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    size = result["at_size"]
    assert size["distance"] == 0 and not size["changed"] and result["weights"]["norm"] == 0
    assert not any(size["counts"][label] for label in LABELS[1:6])
    turnover = result["turnover"]
    assert turnover["edges"]["corrected"] == 1 and turnover["edges"]["chance"]["uniform"]["p"] < 0.05
    assert turnover["gap"]["p_holm"] == 1  # no edge changed
    reused = result["reuse"]["summary"]
    assert reused["swapped"] == sum(reused["verdicts"].values()) > 0 and reused["compared"] == 6
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Reuse of nodes" in page and "is not supported" in page and "Nodes stay" not in page
    assert result["held_out"]["accuracy_p"] == 1 and result["held_out"]["kl"]["value"] == pytest.approx(0, abs=1e-6)


def test_mistakes_get_one_sentence(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=3, n_head=2, vocab_size=41, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "deeper")
    for file in (local / "model").glob("tokenizer*"):
        (tmp_path / "deeper" / file.name).write_bytes(file.read_bytes())
    wider = AutoModelForCausalLM.from_pretrained(local / "model")
    wider.resize_token_embeddings(42)
    shutil.copytree(tmp_path / "deeper", tmp_path / "wider")
    wider.save_pretrained(tmp_path / "wider")
    cases = {
        f"tuned={tmp_path}/deeper": "only models of one graph",
        f"tuned={tmp_path}/wider": "base has 41 tokens, tuned 42",
        f"tuned={tmp_path}/missing": "missing does not exist",
        "seed=0": "tuned has no value",
    }
    for more, words in cases.items():
        assert words in failure(capsys, *compare(local, tmp_path / "out", *more.split()), verb="compare")
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", "compare.log"}
