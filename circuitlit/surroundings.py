"""What a call sets in its process, and gives back: random numbers, Lightning's seeds, the precision of products."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning import seed_everything

SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # where Lightning's `seed_everything` leaves them


def matmul_precision() -> str:
    """As `torch.get_float32_matmul_precision` has it, which fails where one of PyTorch's newer flags set TF32.

    Hugging Face's `TrainingArguments(tf32=True)` is such a case.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


@contextmanager
def products_at(precision: str | None = None) -> Iterator[None]:
    """Compute float32 products at "highest", "high" (TF32) or "medium" precision while the block runs.

    Args:
        precision: None leaves it, and gives back what the block sets.
    """
    before, backends = matmul_precision(), (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer = [one.fp32_precision for one in backends]
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for one, value in zip(backends, newer, strict=True):
            one.fp32_precision = value


@contextmanager
def as_it_was() -> Iterator[None]:
    """Give back the random numbers (Python, NumPy, torch on the CPU and on GPUs) and the global settings."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    seeds = {name: os.environ.get(name) for name in SEEDS}
    try:
        with products_at():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is None:
            torch.cuda.manual_seed_all(torch.initial_seed())  # a GPU that is used from now on begins as it would have
        else:
            torch.cuda.set_rng_state_all(on_gpus)
        for name, value in seeds.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw all random numbers of the block from a seed; afterwards all is as it was."""
    with as_it_was():
        seed_everything(seed, verbose=False)
        yield
