"""Logits of a vocabulary whose size fits no tile: in two products, value and gradient those of the library's one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circuitlit.model.logits import unembedded, uneven


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 50])
def test_two_products_are_one(vocab: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, vocab, bias=False, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(2, 3, vocab, dtype=torch.float64)
    logits, expected = unembedded(hidden, head), head(hidden)
    torch.testing.assert_close(logits, expected)
    grads = [torch.autograd.grad((each * outer).sum(), hidden)[0] for each in (logits, expected)]
    torch.testing.assert_close(*grads)


def test_elsewhere_the_library_does_it() -> None:
    assert not uneven(torch.zeros(1, 6, dtype=torch.bfloat16), nn.Linear(6, 9, bias=False))
