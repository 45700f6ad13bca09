"""Frozen weights that one process has a block at a time: packed until a block runs, or in the host's memory."""

from __future__ import annotations

import torch

from circuitlit.masked.engines import Engine, Room, Rooms, furnish
from circuitlit.masked.forward import MaskedModel
from circuitlit.masked.pieces import Piece, cut_up
from circuitlit.model.weights import WeightSource


class OwnRoom(Room):
    """A room whose weights this process keeps and unpacks itself; plain ones that are on the device stay as they are.

    Args:
        piece: the weights.
        device: where they are unpacked.
        offload: True keeps them in the host's memory.
    """

    def __init__(self, piece: Piece, device: torch.device, offload: bool) -> None:
        place = torch.device("cpu") if offload else device
        super().__init__(piece, place)
        self.packed = [(start, packed.to(place)) for start, packed in piece.packed]
        if offload and device.type == "cuda":
            self.flat.data = self.flat.data.pin_memory()
        piece.fill(self.flat, piece.unpacked)
        self.comes_and_goes = offload or bool(self.packed)
        size, dtype = piece.unpacked + piece.total, self.flat.dtype
        self._whole = torch.empty(size, dtype=dtype, device=device) if self.comes_and_goes else self.flat.data
        self.full, self.kept = self._whole.nbytes, self.flat.nbytes + sum(own.nbytes for _, own in self.packed)
        piece.replace(self._whole, device)
        self.let_go()

    @torch.no_grad()
    def hold(self) -> None:
        """Unpack the weights into the memory that the modules' parameters are views of."""
        whole, memory = self._whole, self._whole.untyped_storage()
        if not self.comes_and_goes or memory.nbytes():
            return
        memory.resize_(self.full)
        whole[len(whole) - len(self.flat) :].copy_(self.flat, non_blocking=True)
        for start, packed in self.packed:
            matrix = packed.to(whole.device).matrix(whole.dtype).flatten()
            whole[start : start + len(matrix)].copy_(matrix)

    def let_go(self) -> None:
        """Free that memory."""
        if self.comes_and_goes:
            self._whole.untyped_storage().resize_(0)


def one_block(
    model: MaskedModel, device: torch.device, source: WeightSource | None = None, offload: bool = False
) -> None:
    """Leave a model's weights packed, or in the host's memory; each block's are on the device while it runs.

    Args:
        model: with `recompute=True`; its subject's parameters may be without memory, if there is a source.
        device: this process's.
        source: what the parameters are read from, piece by piece; None takes them from the model.
        offload: True keeps the weights in the host's memory.
    """
    pieces = cut_up(model, device, source, packed=True)
    made = {id(piece): OwnRoom(piece, device, offload) for piece in pieces.each}
    furnish(model, pieces, made)
    rooms = list(made.values())
    model.shards = Engine(sum(room.kept for room in rooms) / sum(room.full for room in rooms), Rooms(rooms))
