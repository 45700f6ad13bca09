"""Folders with packed weights: read part by part, or unpacked into a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from circuitlit.errors import UserError
from circuitlit.model.families import comes_in_pieces
from circuitlit.model.packed import (
    BLOCK,
    BY_LIBRARY,
    Packed,
    four_bit,
    method_of,
    parts_of,
    quantisation,
    unpack_modules,
    unpacker,
)
from circuitlit.model.report import load_whole
from circuitlit.model.weights import STANDARD_DEVIATION, CheckpointWeights, RandomWeights, WeightSource, empty_model


@runtime_checkable
class PackedSource(WeightSource, Protocol):
    """A source of weights some of which are packed."""

    def packed(self, names: Sequence[str], shape: Sequence[int]) -> Packed | None:
        """A matrix as it is kept; None if it is plain. Names and shape are as in `read`."""
        ...


class PackedWeights(CheckpointWeights):
    """The files of a folder with packed weights, as `CheckpointWeights` has plain ones.

    Args:
        folder: with the files.
        model: that they are for, with plain matrices.
        config: of the folder, which says how they are packed.

    Raises:
        UserError: the files are not whole, or do not fill the model.
    """

    def __init__(self, folder: Path | str, model: PreTrainedModel, config: PretrainedConfig) -> None:
        how = unpacker(config)
        assert how is not None
        self.wanted, self.unpack = how
        super().__init__(folder, model)
        if not any(self.parts([name]) for name, _ in model.named_parameters()):
            raise UserError(f"{folder}/config.json says that weights are packed ({method_of(config)}), and none is")

    def parts(self, names: Sequence[str]) -> dict[str, str]:
        """Where the parts of a packed parameter are; nothing for a plain one."""
        for spelling in (spelling for name in names for spelling in self._spellings(name)):
            found = parts_of(spelling, self.wanted)
            if all(key in self._files for part, key in found.items() if not part.startswith("?")):
                return {part: key for part, key in found.items() if key in self._files}
        return {}

    def packed(self, names: Sequence[str], shape: Sequence[int]) -> Packed | None:
        """Read the parts."""
        found = {part: self._tensor(key) for part, key in self.parts(names).items()}
        return Packed(found, tuple(shape), self.unpack, names[0]) if found else None

    def read(self, names: Sequence[str], shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "_"]:
        """As of plain files; of a packed matrix, unpacked."""
        packed = self.packed(names, shape)
        if packed is None:
            return super().read(names, shape, start, stop)
        return packed.matrix(torch.float32).flatten()[start:stop]


class RandomPacked(RandomWeights):
    """Random weights whose matrices are packed as NF4 is, without double quantisation: for timing a shape.

    Args:
        seed, device, dtype: as of `RandomWeights`.
        matrices: names of the packed ones.
    """

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype, matrices: set[str]) -> None:
        super().__init__(seed, device, dtype)
        self.matrices = matrices

    def packed(self, names: Sequence[str], shape: Sequence[int]) -> Packed | None:
        """Draw the parts."""
        if not self.matrices & set(names):
            return None
        size = shape[0] * shape[1]
        draw = self.generator(names[0], 0)
        parts = {
            "": torch.randint(256, (size // 2,), generator=draw, device=self.device, dtype=torch.uint8),
            ".absmax": torch.full((size // BLOCK,), 2 * STANDARD_DEVIATION, device=self.device),
            ".quant_map": torch.linspace(-1, 1, 16, device=self.device),
        }
        return Packed(parts, tuple(shape), four_bit, names[0])


def open_files(folder: Path | str, model: PreTrainedModel, config: PretrainedConfig) -> CheckpointWeights:
    """A folder's weights, packed or plain."""
    return CheckpointWeights(folder, model) if unpacker(config) is None else PackedWeights(folder, model, config)


def dequantised(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the dequantised model."""
    own = deepcopy(config)
    if hasattr(own, "quantization_config"):
        delattr(own, "quantization_config")
    return own


def load_packed(
    where: str, folder: str, config: PretrainedConfig, dtype: torch.dtype, files: str | None = None, **how: Any
) -> PreTrainedModel:
    """The dequantised model, whole.

    Args:
        where: what is loaded, for messages.
        folder: or name on the hub.
        config: of the folder.
        dtype: of the unpacked weights.
        files: folder with the weights' files, where they are unpacked here; None is `folder`.
        how: for `from_pretrained`.

    Raises:
        UserError: a format that cannot be unpacked, or files that do not fill the model.
    """
    method, without = method_of(config), dequantised(config)
    if method in BY_LIBRARY:
        config = deepcopy(config)
        config.quantization_config = (quantisation(config) or {}) | BY_LIBRARY[method]
        model = load_whole(where, folder, config=config, dtype=dtype, **how)
        unpack_modules(model, dtype)
        model.config, model.hf_quantizer = without, None  # type: ignore[assignment]
        return model
    if not comes_in_pieces(without):
        raise UserError(f"{where} has packed weights under other names than the model's; load its plain weights")
    model = empty_model(without, dtype)
    return filled(model, PackedWeights(files or folder, model, config))


@torch.no_grad()
def filled(model: PreTrainedModel, source: PackedSource) -> PreTrainedModel:
    """A model without memory, with its weights from a source."""
    names: dict[int, list[str]] = {}
    for name, own in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(own), []).append(name)
    made: dict[int, nn.Parameter] = {}
    for own in list(model.parameters()):
        matrix = _whole(source, names[id(own)], own)
        made[id(own)] = nn.Parameter(matrix, requires_grad=False)
    for module in model.modules():
        module._parameters |= {key: made[id(p)] for key, p in module._parameters.items() if p is not None}
    return model


def _whole(source: PackedSource, names: list[str], own: nn.Parameter) -> Float[Tensor, "*shape"]:
    packed = source.packed(names, own.shape)
    if packed is not None:
        return packed.matrix(own.dtype)
    return source.read(names, own.shape, 0, own.numel()).view(own.shape).to(own.dtype)
