"""A twin of a model for identities that rounding would hide: the same class, few layers, random weights in float64."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from circuitlit.model import Subject
from circuitlit.surroundings import seeded

TOKENS = 512  # most rows of a twin's embedding
LEAST = 2  # layers


class KeepsFloat64(TorchFunctionMode):
    """The library's norms, rotations and softmaxes compute in float32; here float64 stays what it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave out what would round, or make it in float64."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        if func is torch.full and isinstance(args[1], float):
            kwargs = {"dtype": torch.float64, **kwargs}  # XGLM's least number
        return func(*args, **kwargs)


def float64_twin(subject: Subject, seed: int = 0) -> Subject:
    """A random model of a subject's class with as wide layers, the first ones up to the last new kind of layer.

    Matrices keep the scale of what they multiply; gains and biases are far from 1 and 0, so that none is overlooked.
    """
    config = _shortened(subject)
    with seeded(seed):
        model = type(subject.model)._from_config(config, dtype=torch.float64).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, min(parameter.shape[-2:]) ** -0.5)
                else:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return Subject(model, name=f"twin of {subject.name}")


def _shortened(subject: Subject) -> PretrainedConfig:
    """The configuration with fewer layers and tokens, and everything in it that counts these."""
    config: Any = copy.deepcopy(subject.model.config)
    whole, layers = config.num_hidden_layers, _layers_of_all_kinds(subject)
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(config, name, type(value)(value[:layers]))
    config.num_hidden_layers = layers
    if getattr(config, "attention_types", None) is not None:  # GPT-Neo
        config.attention_types = [[list(config.attention_layers), 1]]
    config.vocab_size = min(config.vocab_size, TOKENS)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, 0)
    if hasattr(config, "_experts_implementation_internal"):
        config._experts_implementation_internal = "eager"  # the others take no float64
    config.quantization_config = None
    del config.quantization_config
    return config


def _layers_of_all_kinds(subject: Subject) -> int:
    """The least number of first layers among which every kind of layer is."""
    config = subject.model.config
    blocks = subject.anatomy.blocks(subject.model)
    lists = [v for v in vars(config).values() if isinstance(v, list | tuple) and len(v) == len(blocks)]
    kinds = [(_shape(block), *(repr(one[n]) for one in lists)) for n, block in enumerate(blocks)]
    return min(len(blocks), max(LEAST, max(kinds.index(kind) for kind in kinds) + 1))


def _shape(block: nn.Module) -> Hashable:
    """What tells one kind of block from another: its modules' names and classes."""
    return tuple((name, type(module).__name__) for name, module in block.named_modules())
