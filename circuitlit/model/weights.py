"""Weights piece by piece: a model without any, and where single pieces of a parameter come from.

For models that no process holds as a whole: each reads from a checkpoint what it is to keep, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from circuitlit.errors import UserError
from circuitlit.model.files import check_folder, weight_files
from circuitlit.model.report import refuse_incomplete, refuse_not_finite

STANDARD_DEVIATION = 0.02  # of random weights


@runtime_checkable
class WeightSource(Protocol):
    """Gives the elements `start` to `stop` of a parameter, flattened in row order."""

    def read(self, names: Sequence[str], shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "_"]:
        """One piece of one parameter.

        Args:
            names: all names that the parameter has in the model (tied parameters have several).
            shape: of the whole parameter.
            start, stop: which elements.
        """
        ...


def empty_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters have shapes and no memory; its buffers (rotary frequencies, say) are real."""
    with _parameters_on_meta():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        register(module, name, value)
        if value is not None and not value.is_meta:
            module._parameters[name] = nn.Parameter(value.to("meta"), requires_grad=False)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class CheckpointWeights:
    """The safetensors files of a folder, mapped and read slice by slice.

    Args:
        folder: with `model.safetensors`, or several files and their index.
        model: that they are for; its parameters may be without memory. Checkpoints of its body alone will do.

    Raises:
        UserError: no such files, or they are cut off, or do not fill the model exactly.
    """

    def __init__(self, folder: Path | str, model: PreTrainedModel) -> None:
        self.folder, self.prefix = Path(folder), model.base_model_prefix
        check_folder(self.folder)
        self._files: dict[str, str] = {}
        self._shapes: dict[str, list[int]] = {}
        for file in weight_files(self.folder):
            with safe_open(self.folder / file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (no mapping)
                    self._files[key], self._shapes[key] = file, list(opened.get_slice(key).get_shape())
        if not self._files:
            raise UserError(f"{folder} holds no safetensors file; save the model there with save_pretrained")
        self._check(model)

    def _check(self, model: PreTrainedModel) -> None:
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        missing, wrong, parts = [], [], set()
        for parameter in model.parameters():
            key, own = self._find(names[id(parameter)]), self.parts(names[id(parameter)])
            if own:
                parts |= set(own.values())
            elif key is None:
                missing.append(names[id(parameter)][0])
            elif self._shapes[key] != list(parameter.shape):
                wrong.append((key, self._shapes[key], parameter.shape))
        known = {key for own in names.values() for name in own for key in self._spellings(name)}
        refuse_incomplete(self.folder, model, missing, set(self._files) - known - parts, wrong)

    def parts(self, names: Sequence[str]) -> dict[str, str]:
        """Names in the files of what a packed parameter is kept as; plain files have none."""
        return {}

    def _tensor(self, key: str) -> Tensor:
        """One tensor, whole."""
        with safe_open(self.folder / self._files[key], "pt") as opened:
            return opened.get_tensor(key)

    def read(self, names: Sequence[str], shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "_"]:
        """The rows that hold the piece are read, no others.

        Raises:
            UserError: it cannot be read, or is not finite.
        """
        key = self._find(names)
        assert key is not None  # as checked above
        file = self.folder / self._files[key]
        try:
            with safe_open(file, "pt") as opened:  # closed again, or its pages would pile up
                width = max(1, prod(shape[1:]))
                first, last = start // width, -(-stop // width)
                rows = opened.get_slice(key)[first:last]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); download it again") from error
        piece = rows.flatten()[start - first * width : stop - first * width].clone()
        refuse_not_finite(file, [(key, piece)])
        return piece

    def _find(self, names: Sequence[str]) -> str | None:
        return next((key for name in names for key in self._spellings(name) if key in self._files), None)

    def _spellings(self, name: str) -> tuple[str, str, str]:
        """A parameter's name in checkpoints of the whole model and of its body alone."""
        return name, name.removeprefix(f"{self.prefix}."), f"{self.prefix}.{name}"


class RandomWeights:
    """Normal weights of a fixed size, norms of gain 1, no biases: for timing a shape.

    Args:
        seed: equal seeds give equal pieces, if they are cut alike.
        device: where pieces are drawn.
        dtype: of the pieces.
    """

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.seed, self.device, self.dtype = seed, device, dtype

    def read(self, names: Sequence[str], shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "_"]:
        """Draws the piece alone."""
        if len(shape) == 1:
            value = 0.0 if names[0].endswith("bias") else 1.0
            return torch.full((stop - start,), value, device=self.device, dtype=self.dtype)
        draw = self.generator(names[0], start)
        piece = torch.randn(stop - start, generator=draw, device=self.device, dtype=self.dtype)
        return piece.mul_(STANDARD_DEVIATION)

    def generator(self, name: str, start: int) -> torch.Generator:
        """What a piece is drawn with."""
        digest = hashlib.blake2b(f"{self.seed}/{name}/{start}".encode(), digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big") >> 1)


class LoadedWeights:
    """The parameters of a model that is in memory already.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters

    def read(self, names: Sequence[str], shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "_"]:
        """A view."""
        return self.parameters[names[0]].detach().flatten()[start:stop]
