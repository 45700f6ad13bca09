"""On a GPU: the captured step is the plain one, and the GPU agrees with the CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS, tiny_batch, tiny_model

from circuitlit.discover import MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def loss_and_grad(name: str, device: str, capture: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    subject = Subject(tiny_model(name).to(device))
    loss = MaskedLoss(MaskedModel(subject, panel=2), MaskLayout(subject.graph), kl_divergence, capture)
    references = References(subject, "interchange")
    for trial in (seed, seed + 1):  # the second call replays the graph on other data
        batch = tiny_batch(seed=trial).to(device)
        generator = torch.Generator().manual_seed(trial)
        masks = torch.rand(subject.graph.n_edges, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        value = loss(masks, batch, references(batch))
        (grad,) = torch.autograd.grad(3 * value, masks)
    return value.detach().cpu(), grad.cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_step_equals_the_cpu(name: str) -> None:
    expected_value, expected_grad = loss_and_grad(name, "cpu", False, 0)
    for capture in (False, True):
        value, grad = loss_and_grad(name, "cuda", capture, 0)
        torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-7)
