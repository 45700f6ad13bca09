"""Weight and circuit differences: figures by hand, planted changes, factors against products, and the verb."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.compare import (
    LABELS,
    LowRank,
    Resampled,
    change_rates,
    circuit_difference,
    concentration,
    distribution,
    intruder_dimensions,
    matrix_change,
    module_intruders,
    node_modes,
    weight_changes,
)
from circuitlit.compare.matrices import right_singular_vectors
from circuitlit.compare.weights import node_changes
from circuitlit.discover import MaskedLoss, mask_gradients
from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import corrected_jaccard
from circuitlit.finetune import adalora, adapted, lora
from circuitlit.graph import EdgeScores, Graph, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject, unwrap
from circuitlit.objective import negative_metric

FIELDS = ("norm", "base_norm", "spectral", "stable_rank", "effective_rank", "rank", "unchanged", "still", "hoyer")


def randomised(model: PeftModel, seed: int = 3) -> PeftModel:
    """Adapters with random weights, so that they change something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_figures_from_factors_are_those_of_the_product(name: str, kind: str) -> None:
    base = Subject(tiny_model(name))
    wrapped = randomised(adapted(tiny_model(name), {"lora": lora, "adalora": adalora}[kind](base.model, 20)))
    whole = tiny_model(name)
    modules = dict(whole.named_modules())
    with torch.no_grad():
        for path, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                modules[path].weight += module.get_delta_weight("default")
    tuned = Subject(unwrap(wrapped))
    thin, full = list(weight_changes(base, tuned)), list(weight_changes(base, Subject(whole)))
    assert len(thin) == len(full) > 20
    for one, other in zip(thin, full, strict=True):
        assert (one.name, one.kind, one.nodes, one.numel) == (other.name, other.kind, other.nodes, other.numel)
        for field in FIELDS:
            assert getattr(one.change, field) == pytest.approx(getattr(other.change, field), rel=1e-5, abs=1e-6), field
        assert one.change.rank <= (8 if kind == "lora" else 12)
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())
    near = [figures.relative for figures in (part.change for part in thin) if figures.norm]
    assert min(near) > 0


def test_parts_hold_every_weight_once() -> None:
    for name in ("gpt2", "llama", "gpt_neox", "qwen3"):
        subject = Subject(tiny_model(name))
        parts = list(weight_changes(subject, subject))
        assert sum(part.numel for part in parts) == sum(p.numel() for p in subject.model.parameters())
        assert all(part.change.norm == 0 and part.change.unchanged == 1 for part in parts)


def test_untouched_modules_do_not_change() -> None:
    base = Subject(tiny_model("llama"))
    config = LoraConfig(r=2, target_modules=r".*layers\.1\.self_attn\.(q|k)_proj", init_lora_weights=False)
    tuned = Subject(unwrap(get_peft_model(tiny_model("llama"), config)))
    for part in weight_changes(base, tuned):
        if part.layer == 1 and part.kind in "qk":
            assert part.change.rank <= 2 and part.change.norm > 0 and part.change.unchanged == 0
        else:
            assert (part.change.norm, part.change.unchanged, part.change.still, part.change.rank) == (0, 1, 1, 0)
    assert set(module_intruders(base, tuned)) == {"1.self_attn.q_proj", "1.self_attn.k_proj"}


def test_training_one_layer_changes_that_layer_only(local: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(local / "model")
    base = Subject(copy.deepcopy(model))
    block = model.transformer.h[1].requires_grad_(True)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=0.0)
    ids = torch.arange(1, 13).view(2, 6)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    changes = list(weight_changes(base, Subject(model)))
    spread = distribution(changes)
    assert spread["layer"]["share"] == {"0": 0.0, "1": 1.0}
    assert spread["layer"]["gini"] == pytest.approx(0.5) and spread["layer"]["entropy"] == 0
    assert spread["kind"]["share"]["embed"] == 0
    moved = node_changes(changes)
    assert all((value > 0) == (node in ("a1.h0", "a1.h1", "m1")) for node, value in moved.items())


def test_ranks_by_hand() -> None:
    change = matrix_change(torch.ones(6, 6), torch.eye(6))
    assert (change.rank, change.energy_rank) == (6, 6)
    assert change.effective_rank == pytest.approx(6) and change.stable_rank == pytest.approx(6)
    assert change.unchanged == pytest.approx(30 / 36) and change.relative == pytest.approx(math.sqrt(6) / 6)
    lopsided = matrix_change(torch.ones(2, 3), torch.tensor([[3.0, 0, 0], [0, 4.0, 0]]))
    assert (lopsided.norm, lopsided.spectral) == (pytest.approx(5), pytest.approx(4))
    assert lopsided.stable_rank == pytest.approx(25 / 16)
    shares = (3 / 7, 4 / 7)
    assert lopsided.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    one = torch.zeros(4, 4)
    one[1, 2] = 7
    assert matrix_change(torch.ones(4, 4), one).hoyer == pytest.approx(1)
    assert matrix_change(torch.ones(4, 4), torch.ones(4, 4)).hoyer == pytest.approx(0)
    random = torch.randn(7, 5)
    small, large = (matrix_change(torch.ones(7, 5), scale * random) for scale in (1.0, 1e3))
    assert small.effective_rank == pytest.approx(large.effective_rank, rel=1e-6)


def test_rounding_is_not_a_change() -> None:
    base = torch.tensor([[1.0, 1000.0, 1e-3]], dtype=torch.bfloat16)
    change = matrix_change(base, torch.tensor([[0.004, 4.0, 1e-4]], dtype=torch.bfloat16))
    assert change.unchanged == 0 and change.still == pytest.approx(2 / 3)


def test_low_rank_values_by_hand() -> None:
    values = LowRank(
        torch.tensor([[2.0, 0], [0, 3], [0, 0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 5, 0]])
    ).singular_values()
    torch.testing.assert_close(values, torch.tensor([15.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_singular_vectors_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svd(matrix, full_matrices=False).Vh
    cosines = (right_singular_vectors(matrix) * expected).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5 + (shape == (6, 6)), dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_an_intruder_is_counted() -> None:
    base = torch.diag(torch.tensor([5.0, 4, 3, 0, 0, 0]))[:3]  # its directions are the first three axes
    direction = torch.zeros(6)
    direction[5] = 1
    added = base + 50 * torch.outer(torch.tensor([1.0, 0, 0]), direction)
    assert intruder_dimensions(base, base, 3, (0.5, 0.9)) == [0, 0]
    assert intruder_dimensions(base, added, 3, (0.05, 0.5)) == [0, 1]


def test_concentration_by_hand() -> None:
    even, single = concentration(torch.ones(10)), concentration(torch.tensor([0.0] * 9 + [1.0]))
    assert (even["gini"], even["entropy"], even["top_share"]) == (
        pytest.approx(0),
        pytest.approx(1),
        pytest.approx(0.1),
    )
    assert (single["gini"], single["entropy"], single["top_share"]) == (pytest.approx(0.9), 0, 1)
    assert math.isnan(concentration(torch.zeros(3))["gini"])


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
    base, tuned = (scored(linear_subject(scale), 10**6) for scale in (1.0, 3.0))
    difference = circuit_difference(base, tuned)
    own = head_edges(base.scores.graph, "a0.h1")
    assert torch.equal(difference.edges("strengthened"), own) and int(own.sum()) == 5
    assert bool(difference.edges("reused")[~own].all())
    modes = node_modes(base, tuned, difference)
    assert [node for node, mode in modes.items() if mode == "enhanced"] == ["a0.h1"]
    back = circuit_difference(tuned, base)
    assert torch.equal(back.edges("weakened"), own)


def test_zeroing_a_head_removes_its_edges() -> None:
    base, tuned = (scored(linear_subject(scale), 10**6) for scale in (1.0, 0.0))
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


def compare(local: Path, out: Path, *more: str) -> list[str]:
    return settings(local, out, "logger=none", "sparsity.target=0.6", "method.score.steps=2", *more)


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
    cases = {
        f"tuned={tmp_path}/deeper": "only models of one graph",
        f"tuned={tmp_path}/missing": "missing does not exist",
        "seed=0": "tuned has no value",
    }
    for more, words in cases.items():
        assert words in failure(capsys, *compare(local, tmp_path / "out", *more.split()), verb="compare")
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", "compare.log"}
