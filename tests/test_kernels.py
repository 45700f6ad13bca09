"""Triton kernels in Triton's interpreter, without a GPU: each against its twin, and inside the masked model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.masked import kernels

HERE = Path(__file__).parent
WHOLE = """
import sys
sys.path.insert(0, {here!r})
import torch
from conftest import tiny_batch, tiny_model
from circuitlit.discover import HardConcrete, MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.kernels import use
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence

for name in ("gpt2", "gpt_neox", "llama", "qwen3"):
    found = []
    for choice, dtype in (("torch", torch.float64), ("triton", torch.float32)):
        subject = Subject(tiny_model(name).to(dtype))
        loss = MaskedLoss(MaskedModel(subject, panel=2), MaskLayout(subject.graph), kl_divergence)
        batch = tiny_batch()
        masks = torch.rand(subject.graph.n_edges, generator=torch.Generator().manual_seed(0)).requires_grad_()
        use(choice)
        value = loss(masks, batch, References(subject, "interchange")(batch))
        found.append((value.double(), torch.autograd.grad(value, masks)[0].double()))
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*found)]
    print(name, errors)
    assert max(errors) < 1e-4, (name, errors)
gates, log_alpha = HardConcrete(), torch.randn(500)
print(float(gates.shift_to(log_alpha, 0.1) - gates.bisected(log_alpha, 0.1)))
assert abs(float(gates.shift_to(log_alpha, 0.1) - gates.bisected(log_alpha, 0.1))) < 1e-4
"""


def interpreted(*command: str) -> str:
    """What Python prints with Triton interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_equal_their_twins() -> None:
    pytest.importorskip("triton")
    assert "ok " in interpreted(str(HERE / "check_kernels.py"))


@pytest.mark.slow
def test_the_masked_model_with_kernels() -> None:
    pytest.importorskip("triton")
    interpreted("-c", WHOLE.format(here=str(HERE)))


def test_choices_are_checked() -> None:
    with pytest.raises(UserError, match="not one of"):
        kernels.use("cuda")


def test_a_role_that_no_token_of_a_batch_has_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, deltas = torch.rand(2, 4, 3, generator=generator), torch.randn(3, 5, 2, generator=generator)
    none, all_ = torch.tensor([], dtype=torch.long), torch.arange(5)
    out, expected = torch.zeros(4, 5, 2), torch.einsum("rw,wtd->rtd", masks[1], deltas)
    kernels.mix(out, masks, deltas, [none, all_])
    torch.testing.assert_close(out, expected)
    grad_deltas = torch.zeros_like(deltas)
    grad = kernels.mix_backward(torch.ones_like(out), masks, deltas, grad_deltas, [none, all_])
    assert not grad[0].any() and grad[1].any()
    torch.testing.assert_close(grad_deltas, torch.einsum("rw,rtd->wtd", masks[1], torch.ones_like(out)))
