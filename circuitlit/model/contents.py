"""What a model is: a hash of its settings and of every weight, or of its files; a path or a name does not say it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuitlit.model.trusted import BESIDES

ROW = 4096  # words of 8 bytes


def contents_of(model: PreTrainedModel) -> str:
    """A short hash of a model's settings and weights, the same on every device.

    Not of those that are not there yet (sharded loading), or that a forward writes to (rotary frequencies).
    """
    settings = {key: value for key, value in model.config.to_dict().items() if key not in BESIDES}
    weights = ((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))
    return hash_of(weights, json.dumps([type(model).__name__, settings], sort_keys=True, default=str))


def hash_of(weights: Iterable[tuple[str, Tensor]], settings: str = "") -> str:
    """A short hash of named tensors, which are read where they are.

    Their bytes are added up as whole numbers, by row and by column of a table: exact in any order, and as fast as they
    are read.
    """
    digest = hashlib.sha256(settings.encode())
    for name, weight in weights:
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        if weight.is_meta:
            continue
        if hasattr(weight, "__tensor_flatten__"):  # a class of its own around plain tensors: quantised, shared out
            parts = ((part, getattr(weight, part)) for part in weight.__tensor_flatten__()[0])  # type: ignore[operator]
            digest.update(hash_of(parts).encode())
            continue
        flat = weight.detach().flatten().view(torch.uint8)
        rest = len(flat) % (8 * ROW)
        table = flat[: len(flat) - rest]
        if table.storage_offset() % 8:  # a piece of a larger tensor
            table = table.clone()
        words = table.view(torch.int64).view(-1, ROW)
        for part in (words.sum(0), words.sum(1), flat[len(flat) - rest :]):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def stamps_of(*places: str | Path | None) -> dict[str, list[int]]:
    """Size and time of change of every file in models' folders, by path: what says that weights are new unread.

    Names of the hub and of packages have none.
    """
    folders = [Path(os.path.expanduser(place)) for place in places if place]
    files = [file for one in folders for file in ([one] if one.is_file() else sorted(one.glob("*"))) if file.is_file()]
    return {str(file): [(found := file.stat()).st_size, found.st_mtime_ns] for file in files}
