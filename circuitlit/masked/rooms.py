"""Large buffers of a CPU that are used again: the system hands out new ones page by page, which takes time."""

from __future__ import annotations

import weakref

import torch
from jaxtyping import Float
from torch import Tensor


class Rooms:
    """Buffers that nobody uses at present."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @torch.inference_mode(False)  # a buffer of a validation is used in training, too
    def take(self, owner: object, rows: int, like: Float[Tensor, "token d"]) -> Float[Tensor, "rows token d"]:
        """A buffer with anything in it, lent until `owner` is gone; a new one on other devices than a CPU."""
        if like.device.type != "cpu":
            return like.new_empty(rows, *like.shape)
        size = rows * like.numel()
        fitting = [room for room in self._free if room.numel() >= size and room.dtype == like.dtype]
        if fitting:
            room = fitting[0]
            self._free = [other for other in self._free if other is not room]
        else:
            room = like.new_empty(size)
            self.clear()  # all are too small
        weakref.finalize(owner, self._give, room).atexit = False
        return room[:size].view(rows, *like.shape)

    def clear(self) -> None:
        """Let go of them."""
        self._free = []

    def _give(self, room: Tensor) -> None:
        self._free.append(room)
