"""Quantised checkpoints: the subject is the dequantised model, and here a matrix becomes what its packed parts say.

bitsandbytes, GPTQ and AWQ files are unpacked here, on any device and matrix by matrix, so that a model need never be
there as a whole; other formats are left to transformers, whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.model.families import anatomy_of

Unpack = Callable[[Mapping[str, Tensor], torch.dtype], Tensor]
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight numbers in 32 bits
BLOCK = 64  # weights that share a scale, in bitsandbytes' four bits
BY_LIBRARY: dict[str | None, dict[str, Any]] = {  # what transformers unpacks while it loads, or afterwards
    "compressed-tensors": {"dequantize": True},
    "fp8": {"dequantize": True},
    "mxfp4": {"dequantize": True},
    "torchao": {},
}


@dataclass(frozen=True)
class Packed:
    """One matrix as its checkpoint keeps it.

    Attributes:
        parts: tensors, by what the format calls them.
        shape: of the matrix, `[out, into]`.
        unpack: makes the matrix of the parts.
        name: of the weight, for messages.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    unpack: Unpack
    name: str = "a weight"

    @property
    def nbytes(self) -> int:
        """Memory that the parts take."""
        return sum(part.nbytes for part in self.parts.values())

    def matrix(self, dtype: torch.dtype) -> Float[Tensor, "out into"]:
        """The matrix itself.

        Raises:
            UserError: the parts do not fill it.
        """
        try:
            found = self.unpack(self.parts, dtype)
        except (RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(f"{self.name} cannot be unpacked: its parts do not fit together") from error
        if found.numel() != self.shape[0] * self.shape[1]:
            raise UserError(f"{self.name} unpacks to {found.numel()} numbers, config.json says {list(self.shape)}")
        return found.reshape(self.shape)

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return replace(self, parts={name: part.to(device) for name, part in self.parts.items()})


def method_of(config: Any) -> str | None:
    """The name of a configuration's quantisation; None for plain weights."""
    own = quantisation(config)
    return None if own is None else str(own.get("quant_method", "bitsandbytes"))


def quantisation(config: Any) -> dict[str, Any] | None:
    """What a configuration says of its quantisation."""
    own = getattr(config, "quantization_config", None)
    return own if own is None or isinstance(own, dict) else own.to_dict()


def unpacker(config: Any) -> tuple[tuple[str, ...], Unpack] | None:
    """The parts that a matrix has in the files, and what makes it of them; None where a library unpacks them.

    The first part stands in the place of the weight; those that begin with "?" may be absent.

    Raises:
        UserError: a format that nothing here unpacks.
    """
    own, method = quantisation(config), method_of(config)
    if own is None or method in BY_LIBRARY:
        return None
    bits = own.get("bits", own.get("w_bit"))
    if method == "bitsandbytes" and own.get("load_in_4bit"):
        state = f"?.quant_state.bitsandbytes__{own.get('bnb_4bit_quant_type', 'fp4')}"
        return ("", ".absmax", ".quant_map", "?.nested_absmax", "?.nested_quant_map", state), four_bit
    if method == "bitsandbytes":
        return ("", ":SCB", "?:weight_format"), eight_bit
    if method == "gptq" and bits in (2, 4, 8):
        one = 0 if own.get("checkpoint_format") == "gptq_v2" else 1
        return (":qweight", ":qzeros", ":scales", ":g_idx"), lambda p, dtype: gptq(p, bits, one).to(dtype)
    if method == "awq" and bits == 4 and str(own.get("version", "gemm")).lower() == "gemm":
        return (":qweight", ":qzeros", ":scales"), lambda p, dtype: awq(p).to(dtype)
    what = f"{bits} bit {method}" if bits else str(method)
    raise UserError(f"weights packed as {what} cannot be unpacked here; load the model's plain weights")


def four_bit(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """bitsandbytes' NF4 and FP4: 16 values, two to a byte, times the largest magnitude of their block.

    Source: Dettmers et al. 2023, QLoRA; the layout is that of bitsandbytes' files.
    """
    state = next((value for name, value in parts.items() if "quant_state" in name), None)
    facts = json.loads(bytes(state.cpu().tolist())) if state is not None else {}
    largest, code = parts[".absmax"], parts[".quant_map"].float()
    if (nested := parts.get("?.nested_absmax")) is not None:
        blocks = parts["?.nested_quant_map"].float()[largest.int()].view(-1)
        wide = nested.float().repeat_interleave(facts.get("nested_blocksize", 256))[: len(blocks)]
        largest = blocks * wide + facts["nested_offset"]
    pairs = torch.stack((code.repeat_interleave(16), code.repeat(16)), 1)  # of every byte, the high half first
    values = pairs[parts[""].flatten().int()].view(len(largest), -1)
    return values.mul_(largest.float()[:, None]).to(dtype)


def eight_bit(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Float[Tensor, "out into"]:
    """bitsandbytes' 8 bits: each row's share of its largest magnitude, in 127 steps."""
    return (parts[""].float() * (parts[":SCB"].float() / 127)[:, None]).to(dtype)


def gptq(parts: Mapping[str, Tensor], bits: int, one: int) -> Float[Tensor, "out into"]:
    """GPTQ: whole numbers less a zero point (kept less one), times a scale, both of a group of inputs.

    Source: Frantar et al. 2022, GPTQ; the layout is that of AutoGPTQ's files.
    """
    shifts = torch.arange(0, 32, bits, device=parts[":qweight"].device, dtype=torch.int32)
    mask = 2**bits - 1
    whole = ((parts[":qweight"][:, None] >> shifts[:, None]) & mask).flatten(0, 1)
    zeros = ((parts[":qzeros"][..., None] >> shifts) & mask).flatten(1) + one
    group, scales = parts[":g_idx"].long(), parts[":scales"].float()
    return ((whole - zeros[group]) * scales[group]).t()


def awq(parts: Mapping[str, Tensor]) -> Float[Tensor, "out into"]:
    """AWQ's gemm layout: as GPTQ's, packed along the outputs in an order of its own.

    Source: Lin et al. 2023, AWQ.
    """
    shifts = 4 * torch.tensor(AWQ_ORDER, device=parts[":qweight"].device, dtype=torch.int32)
    whole, zeros = (((parts[name][..., None] >> shifts) & 15).flatten(1) for name in (":qweight", ":qzeros"))
    size, scales = len(whole) // len(zeros), parts[":scales"].float()
    return ((whole - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)).t()


def parts_of(name: str, wanted: Sequence[str]) -> dict[str, str]:
    """Where the parts of a weight are in the files: by part, the name of a tensor."""
    module = name.removesuffix(".weight")
    found = {}
    for part in wanted:
        bare = part.removeprefix("?")
        found[part] = f"{module}.{bare[1:]}" if bare.startswith(":") else f"{name}{bare}"
    return found


def block_matrices(model: nn.Module, config: Any) -> dict[str, nn.Linear]:
    """The linear modules inside the blocks, which is what quantisers pack, by the name of their weight."""
    blocks = {id(module) for block in anatomy_of(config).blocks(model) for module in block.modules()}
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in blocks
    }


def bits_of(config: Any) -> float | None:
    """Bits that a packed weight takes, scales included; None for plain weights, and where a library unpacks them."""
    own, method = quantisation(config), method_of(config)
    if own is None or method in BY_LIBRARY:
        return None
    if method == "bitsandbytes":
        if not own.get("load_in_4bit"):
            return 8.0
        return 4 + (8 + 32 / 256 if own.get("bnb_4bit_use_double_quant") else 32) / BLOCK
    bits, group = own.get("bits", own.get("w_bit", 8)), own.get("group_size", own.get("q_group_size", 128))
    return bits + (16 + bits) / group if group and group > 0 else float(bits)


@torch.no_grad()
def unpack_modules(model: nn.Module, dtype: torch.dtype) -> None:
    """Put plain matrices in the place of weights that are tensors of a packed class (torchao's)."""
    for module in model.modules():
        for name, own in list(module._parameters.items()):
            if own is not None and type(own) is not nn.Parameter and hasattr(own, "dequantize"):
                module._parameters[name] = nn.Parameter(own.dequantize().to(dtype), requires_grad=False)
