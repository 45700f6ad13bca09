"""A frozen model whose weights are shared out over the processes and gathered block by block (ZeRO stage 3).

Frozen weights have neither gradients nor optimizer states, so all of stage 3 that concerns them is: keep a part, gather
a block when it is needed, forget it again. A block's weights are one flat buffer; its parameters, and the views of them
that the edge-masked block reads, lie in that buffer for good, and what comes and goes is the buffer's memory. So each
process gathers in one call a block, on a stream of its own, while the block before is still computing: which block
comes next is known from the last time. The masks are no part of this: every process has them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.masked.forward import MaskedModel
from circuitlit.model.logits import final_norm, unembedder
from circuitlit.model.weights import LoadedWeights, WeightSource

ALIGN = 128  # elements: every process's part begins at a round address
Place = tuple[nn.Module, str, nn.Parameter]


class Unit:
    """Weights that are gathered together: those of a block, or those ahead of the blocks, or behind them.

    Args:
        modules: whose parameters they are; views of one another are kept so.
        names: of the stock model's parameters, by identity.
        source: what they are filled from.
        device: where they are gathered.
        offload: True keeps this process's part in the host's memory.

    Raises:
        UserError: they differ in type, or a masked block's weights are no views of the stock ones.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        names: dict[int, list[str]],
        source: WeightSource,
        device: torch.device,
        offload: bool,
    ) -> None:
        places = [(m, name, p) for m in _all(modules) for name, p in m._parameters.items() if p is not None]
        bases = {id(p): p for _, _, p in places if id(p) in names}
        bases |= {id(p): p for _, _, p in places if _base_of(p, bases.values()) is None}
        dtypes = {p.dtype for _, _, p in places}
        if len(dtypes) != 1:
            raise UserError(f"weights of one block have the types {sorted(map(str, dtypes))}; set model.dtype")
        self.rank, self.world = _rank_and_world()
        starts, total = {}, 0
        for key, base in bases.items():
            starts[key], total = total, total + base.numel()
        self.part = ceil(total / self.world / ALIGN) * ALIGN
        self.total = total
        self.own = torch.zeros(
            self.part,
            dtype=dtypes.pop(),
            device="cpu" if offload else device,
            pin_memory=offload and device.type == "cuda",
        )
        for key, base in bases.items():
            self._fill(names.get(key), base, starts[key], source)
        self.flat = torch.empty(self.part * self.world, dtype=self.own.dtype, device=device)
        self._room = self.flat.untyped_storage()
        self._put(places, bases, starts)
        self.release()

    def _fill(self, names: list[str] | None, base: Tensor, offset: int, source: WeightSource) -> None:
        """Copy what this process keeps of one parameter."""
        begin = self.rank * self.part
        start, stop = max(0, begin - offset), min(base.numel(), begin + self.part - offset)
        if stop <= start:
            return
        if names is not None:
            piece = source.read(names, base.shape, start, stop)
        elif base.is_meta:
            raise UserError("this architecture's blocks have weights that no checkpoint holds; use strategy=ddp")
        else:
            piece = base.detach().flatten()[start:stop]
        self.own[offset + start - begin : offset + stop - begin].copy_(piece)

    def _put(self, places: list[Place], bases: dict[int, nn.Parameter], starts: dict[int, int]) -> None:
        """Replace all parameters by views of the flat buffer.

        They are made from `.data`, whose version autograd counts apart: gathering changes no value, so it may happen
        between a forward and its backward.
        """
        for module, name, parameter in places:
            base = parameter if id(parameter) in bases else _base_of(parameter, bases.values())
            assert base is not None
            if base is parameter:
                offset, stride = starts[id(base)], base.contiguous().stride()
            else:
                offset = starts[id(base)] + parameter.storage_offset() - base.storage_offset()
                stride = parameter.stride()
            view = self.flat.data.as_strided(parameter.shape, stride, offset)
            module._parameters[name] = nn.Parameter(view, requires_grad=False)

    @torch.no_grad()
    def gather(self) -> None:
        """Bring all parts together, on the current stream."""
        self._room.resize_(self.flat.numel() * self.flat.element_size())
        if self.world == 1:
            self.flat.copy_(self.own, non_blocking=True)
            return
        own = self.own.to(self.flat.device, non_blocking=True)
        dist.all_gather_into_tensor(self.flat.view(torch.uint8), own.view(torch.uint8))

    def release(self) -> None:
        """Forget the other processes' parts."""
        self._room.resize_(0)


class Shards:
    """Which units are gathered, when, and for how long.

    Forward, one unit is in use and the next one on its way. In the backward pass the units of a recomputed panel stay
    until the next panel begins.

    Args:
        units: in the model's order: ahead of the blocks, the blocks, behind them (or one for both ends, if tied).
        panel: blocks that are recomputed together.
        device: where they are gathered.
    """

    def __init__(self, units: list[Unit], panel: int, device: torch.device) -> None:
        self.units, self.panel = units, panel
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: dict[int, Any] = {}  # gathered or on their way, with the event that says so
        self._used: set[int] = set()
        self._next: dict[tuple[int, bool], int] = {}
        self._last: tuple[int, bool] | None = None
        self._freed: Any = None

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
        blocks = range(1, len(self.units) - 1)
        return (index - 1) // self.panel if index in blocks else -1 - index

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
    assert model.recompute is True, "what a block stores for its backward would hold on to gathered weights"
    subject, stock = model.subject, model.subject.model
    names: dict[int, list[str]] = {}
    for name, parameter in stock.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    source = source or LoadedWeights(dict(stock.named_parameters(remove_duplicate=False)))
    blocks = [[block, masked] for block, masked in zip(subject.anatomy.blocks(stock), model.blocks, strict=True)]
    inside = {id(module) for pair in blocks for module in _all(pair)}
    behind = [final_norm(stock), unembedder(stock)]
    ahead = [m for m in stock.modules() if m._parameters and id(m) not in inside and m not in _all(behind)]
    tied = {id(p) for m in ahead for p in m.parameters()} & {id(p) for m in _all(behind) for p in m.parameters()}
    groups = [[*ahead, *behind] if tied else ahead, *blocks, [] if tied else behind]
    units = [Unit(group, names, source, device, offload) for group in groups if group]
    if tied:
        units.append(units[0])
    for module in stock.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    model.shards = shards = Shards(units, model.panel, device)
    for module in ahead:
        shards.watch(module, 0, backward=True)
    for layer, (block, masked) in enumerate(blocks):
        shards.watch(block, layer + 1, backward=True)
        shards.watch(masked, layer + 1, backward=False)
        masked.sharded = True  # type: ignore[assignment]
    for module in behind:
        shards.watch(module, 0 if tied else len(units) - 1, backward=True)


def share(model: MaskedModel) -> float:
    """The share of the weights that this process keeps, filling included."""
    units = {id(unit): unit for unit in model.shards.units}.values()
    return sum(unit.part for unit in units) / sum(unit.total for unit in units)


def _rank_and_world() -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _all(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules with all that are inside them, each once."""
    return list({id(inner): inner for module in modules for inner in module.modules()}.values())


def _base_of(view: Tensor, bases: Iterable[nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a tensor is a view of."""
    storage, offset = view.untyped_storage()._cdata, view.storage_offset()
    for base in bases:
        begin = base.storage_offset()
        if base.untyped_storage()._cdata == storage and begin <= offset < begin + base.numel():
            return base
    return None
