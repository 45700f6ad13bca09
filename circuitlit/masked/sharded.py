"""A frozen model whose weights are shared out over the processes and gathered block by block (ZeRO stage 3).

Frozen weights have neither gradients nor optimizer states, so all of stage 3 that concerns them is: keep a part, gather
a block when it is needed, forget it again. A block's weights are one flat buffer; its parameters, and the views of them
that the edge-masked block reads, lie in that buffer for good, and what comes and goes is the buffer's memory. So each
process gathers in one call a block, on a stream of its own, while the block before is still computing: which block
comes next is known from the last time. The masks are no part of this: every process has them all.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from circuitlit.masked.forward import MaskedModel
from circuitlit.masked.pieces import Piece, cut_up, rank_and_world
from circuitlit.model.weights import WeightSource

ALIGN = 128  # elements: every process's part begins at a round address


class Unit:
    """A piece of which this process keeps a part.

    Args:
        piece: the weights.
        device: where they are gathered.
        offload: True keeps this process's part in the host's memory.
    """

    def __init__(self, piece: Piece, device: torch.device, offload: bool) -> None:
        self.rank, self.world = rank_and_world()
        self.total = piece.total
        self.part = ceil(piece.total / self.world / ALIGN) * ALIGN
        place = torch.device("cpu") if offload else device
        self.packed = [(start, packed.to(place)) for start, packed in piece.packed]  # every process keeps all of them
        self.own = torch.zeros(
            self.part,
            dtype=piece.dtype,
            device="cpu" if offload else device,
            pin_memory=offload and device.type == "cuda",
        )
        piece.fill(self.own, piece.unpacked + self.rank * self.part)
        self.flat = torch.empty(piece.unpacked + self.part * self.world, dtype=self.own.dtype, device=device)
        self._room = self.flat.untyped_storage()
        piece.replace(self.flat, device)
        self.release()

    @torch.no_grad()
    def gather(self) -> None:
        """Bring all parts together, on the current stream."""
        self._room.resize_(self.flat.numel() * self.flat.element_size())
        flat = self.flat[len(self.flat) - self.part * self.world :]
        if self.world == 1:
            flat.copy_(self.own, non_blocking=True)
        else:
            own = self.own.to(flat.device, non_blocking=True)
            dist.all_gather_into_tensor(flat.view(torch.uint8), own.view(torch.uint8))
        for start, packed in self.packed:
            matrix = packed.to(flat.device).matrix(flat.dtype).flatten()
            self.flat[start : start + len(matrix)].copy_(matrix)

    def release(self) -> None:
        """Forget the other processes' parts."""
        self._room.resize_(0)


class Shards:
    """Which units are gathered, when, and for how long.

    Forward, one unit is in use and the next one on its way. In the backward pass the units of a recomputed panel stay
    until the next panel begins.

    Args:
        units: in the model's order.
        blocks: which of them are blocks.
        panel: blocks that are recomputed together.
        device: where they are gathered.
    """

    def __init__(self, units: list[Unit], blocks: range, panel: int, device: torch.device) -> None:
        self.units, self.blocks, self.panel = units, blocks, panel
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: dict[int, Any] = {}  # gathered or on their way, with the event that says so
        self._used: set[int] = set()
        self._next: dict[tuple[int, bool], int] = {}
        self._last: tuple[int, bool] | None = None
        self._freed: Any = None

    @property
    def share(self) -> float:
        """The share of the weights that this process keeps, filling included."""
        units = {id(unit): unit for unit in self.units}.values()
        return sum(unit.part for unit in units) / sum(unit.total for unit in units)

    def enter(self, index: int) -> None:
        """Have a unit's weights in place for what is queued from now on."""
        if index in self._used:
            return
        backward = torch._C._current_graph_task_id() != -1
        if self._last is not None:
            self._next[self._last] = index
        self._last = (index, backward)
        mates = {unit for unit in self._used if self._group(unit) == self._group(index)} if backward else set()
        self._used = mates | {index}
        coming = self._next.get(self._last)
        for unit in set(self._ready) - self._used - {coming}:
            self._release(unit)
        self._begin(index)
        if coming is not None:
            self._begin(coming)
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._ready[index])

    def _group(self, index: int) -> int:
        return (index - 1) // self.panel if index in self.blocks else -1 - index

    def _begin(self, index: int) -> None:
        if index in self._ready:
            return
        if self._stream is None:
            self._ready[index] = None
            self.units[index].gather()
            return
        with torch.cuda.stream(self._stream):
            if self._freed is not None:  # the memory to be filled may be read by what was queued before
                self._stream.wait_event(self._freed)
            self.units[index].gather()
            self._ready[index] = self._stream.record_event()

    def _release(self, index: int) -> None:
        del self._ready[index]
        if self._stream is not None:
            self._freed = torch.cuda.current_stream().record_event()
        self.units[index].release()

    def watch(self, module: nn.Module, index: int, backward: bool) -> None:
        """Enter a unit ahead of a module's forward and, where nothing recomputes it, ahead of its backward."""

        def ahead(_module: nn.Module, _args: tuple) -> None:
            self.enter(index)

        def behind(_module: nn.Module, _args: tuple, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if tensor.requires_grad:
                tensor.register_hook(lambda _grad: self.enter(index))

        module.register_forward_pre_hook(ahead)
        if backward:
            module.register_forward_hook(behind)


def shard(model: MaskedModel, device: torch.device, source: WeightSource | None = None, offload: bool = False) -> None:
    """Share out a model's weights, in place; from now on every forward is one of all processes together.

    Args:
        model: with `recompute=True`; its subject's parameters may be without memory, if there is a source.
        device: this process's.
        source: what the parameters are read from, piece by piece; None takes them from the model.
        offload: True keeps each process's part in the host's memory.
    """
    pieces = cut_up(model, device, source, packed=True)
    made = {id(piece): Unit(piece, device, offload) for piece in pieces.each}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    model.shards = shards = Shards([made[id(piece)] for piece in pieces.all], pieces.blocks, pieces.panel, device)
    masked = set(model.blocks)
    for piece in pieces.each:
        for module in piece.modules:
            shards.watch(module, pieces.all.index(piece), backward=module not in masked)
