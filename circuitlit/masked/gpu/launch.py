"""What all kernels share: whether they can run here, and with which precision."""

from __future__ import annotations

import functools
import os

import torch

from circuitlit.surroundings import matmul_precision


def cdiv(size: int, block: int) -> int:
    """Blocks that cover a size."""
    return -(-size // block)


def precision(dtype: torch.dtype) -> str:
    """Of float32 products, as `torch.set_float32_matmul_precision` has it; other kinds know but one."""
    exact = dtype == torch.float32 and matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


@functools.cache
def processors(device: torch.device) -> int:
    """Of the GPU; 2 in Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def interpreted() -> bool:
    """True where kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
