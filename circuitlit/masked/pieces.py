"""Which weights of a model are kept in parts and gathered together: those of a block, or of one end.

Each piece is one flat vector of weights; the parameters of the stock block, and the views of them that the edge-masked
block reads, are views of it. Who keeps which part of the vector, and when it is whole, is an engine's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.masked.forward import MaskedModel
from circuitlit.model.logits import final_norm, unembedder
from circuitlit.model.packed import Packed
from circuitlit.model.packed_files import PackedSource
from circuitlit.model.weights import LoadedWeights, WeightSource

Place = tuple[nn.Module, str, nn.Parameter]


@dataclass
class View:
    """Where a parameter lies in its piece's vector; `nothing` has its shape, and no memory."""

    parameter: nn.Parameter
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    nothing: Tensor | None = None


class Piece:
    """Weights that are gathered together.

    Args:
        modules: whose parameters they are; views of one another are kept so.
        names: of the stock model's parameters, by identity.
        source: what they are filled from.
        packed: True leaves weights packed that the source has so.

    Attributes:
        packed: such weights and where they belong: ahead of all others in the vector.
        unpacked: elements of these.
        total: elements of the others.
        dtype: of all of them.
        modules: those whose forward needs the weights, the outermost of each.

    Raises:
        UserError: they differ in type, or a masked block's weights are no views of the stock ones.
    """

    def __init__(
        self, modules: list[nn.Module], names: dict[int, list[str]], source: WeightSource, packed: bool = False
    ) -> None:
        self.modules = modules
        self._source: WeightSource | None = source
        places = [(m, name, p) for m in inside(modules) for name, p in m._parameters.items() if p is not None]
        bases = {id(p): p for _, _, p in places if id(p) in names}
        bases |= {id(p): p for _, _, p in places if _base_of(p, bases.values()) is None}
        dtypes = {p.dtype for _, _, p in places}
        if len(dtypes) != 1:
            raise UserError(f"weights of one block have the types {sorted(map(str, dtypes))}; set model.dtype")
        self.dtype: torch.dtype = dtypes.pop()
        self.packed: list[tuple[int, Packed]] = []
        starts, end = {}, 0
        keeps = source.packed if packed and isinstance(source, PackedSource) else None
        for key in names.keys() & bases.keys() if keeps else ():
            kept = keeps(names[key], bases[key].shape) if keeps else None
            if kept is not None:
                self.packed.append((end, kept))
                starts[key], end = end, end + bases[key].numel()
        self.unpacked = end
        plain = {key: base for key, base in bases.items() if key not in starts}
        for key, base in plain.items():
            starts[key], end = end, end + base.numel()
        self.total = end - self.unpacked
        self._bases = [(names.get(key), base, starts[key]) for key, base in plain.items()]
        self._places = [(m, name, _view(p, bases, starts)) for m, name, p in places]

    def fill(self, own: Float[Tensor, "part"], begin: int) -> None:
        """Read this process's part of the vector, which begins at an element; the rest of `own` stays.

        Raises:
            UserError: a weight is in no checkpoint.
        """
        for names, base, offset in self._bases:
            start, stop = max(0, begin - offset), min(base.numel(), begin + own.numel() - offset)
            if stop <= start:
                continue
            if names is not None:
                assert self._source is not None  # `replace` comes later
                read = self._source.read(names, base.shape, start, stop)
            elif base.is_meta:
                raise UserError("this architecture's blocks have weights that no checkpoint holds; use strategy=ddp")
            else:
                read = base.detach().flatten()[start:stop]
            own[offset + start - begin : offset + stop - begin].copy_(read)

    def replace(self, flat: Float[Tensor, "_"] | None, device: torch.device) -> None:
        """Give every module parameters of its own that are views of `flat`, or that have shapes and no memory.

        What they were is let go of; `fill` works no more.
        """
        self._bases, self._source = [], None
        for module, name, view in self._places:
            view.nothing = torch.empty(1, dtype=self.dtype, device=device).expand(view.shape)
            view.parameter = nn.Parameter(view.nothing, requires_grad=False)
            module._parameters[name] = view.parameter
        if flat is not None:
            self.point(flat)

    def point(self, flat: Float[Tensor, "_"]) -> None:
        """Make all parameters views of a vector.

        This is done to `.data`, whose version autograd counts apart: it may happen between a forward and its backward.
        """
        flat = flat.data
        for _, _, view in self._places:
            view.parameter.data = flat.as_strided(view.shape, view.stride, flat.storage_offset() + view.offset)

    def let_go(self) -> None:
        """Leave all parameters their shapes alone."""
        for _, _, view in self._places:
            assert view.nothing is not None  # since `replace`
            view.parameter.data = view.nothing


@dataclass
class Pieces:
    """A model's pieces, in the order in which a forward needs them.

    Attributes:
        all: ahead of the blocks, the blocks, the final norm, the unembedding; if this is tied, it is the first one.
        panel: blocks that are recomputed together.
    """

    all: list[Piece]
    panel: int

    @property
    def blocks(self) -> range:
        """Places of the blocks."""
        return range(1, len(self.all) - 2)

    @property
    def each(self) -> list[Piece]:
        """Every piece once."""
        return list({id(piece): piece for piece in self.all}.values())


def cut_up(
    model: MaskedModel, device: torch.device, source: WeightSource | None = None, packed: bool = False
) -> Pieces:
    """A model's pieces, not filled yet; its buffers are moved to the device.

    Args:
        model: with `recompute=True`; its subject's parameters may be without memory, if there is a source.
        device: this process's.
        source: what the parameters are read from, piece by piece; None takes them from the model.
        packed: True leaves weights packed that the source has so.
    """
    assert model.recompute is True, "what a block stores for its backward would hold on to gathered weights"
    subject, stock = model.subject, model.subject.model
    names: dict[int, list[str]] = {}
    for name, parameter in stock.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    source = source or LoadedWeights(dict(stock.named_parameters(remove_duplicate=False)))
    blocks = [[block, masked] for block, masked in zip(subject.anatomy.blocks(stock), model.blocks, strict=True)]
    within = {id(module) for pair in blocks for module in inside(pair)}
    norm, head = final_norm(stock), unembedder(stock)
    behind = inside([norm, head])
    ahead = [m for m in stock.modules() if m._parameters and id(m) not in within and m not in behind]
    tied = {id(p) for m in ahead for p in m.parameters()} & {id(p) for p in head.parameters()}
    groups = [[*ahead, head] if tied else ahead, *blocks, [norm], *([] if tied else [[head]])]
    groups = [group for group in groups if any(list(module.parameters()) for module in group)]  # OLMo's norm has none
    pieces = [Piece(group, names, source, packed) for group in groups]
    for module in stock.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    for masked in model.blocks:
        masked.sharded = True  # type: ignore[assignment]
    return Pieces([*pieces, pieces[0]] if tied else pieces, model.panel)


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def inside(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules with all that are inside them, each once."""
    return list({id(inner): inner for module in modules for inner in module.modules()}.values())


def _view(parameter: nn.Parameter, bases: dict[int, nn.Parameter], starts: dict[int, int]) -> View:
    base: Any = parameter if id(parameter) in bases else _base_of(parameter, bases.values())
    if base is parameter:
        return View(parameter, starts[id(base)], base.shape, base.contiguous().stride())
    offset = starts[id(base)] + parameter.storage_offset() - base.storage_offset()
    return View(parameter, offset, parameter.shape, parameter.stride())


def _base_of(view: Tensor, bases: Iterable[nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a tensor is a view of."""
    storage, offset = view.untyped_storage()._cdata, view.storage_offset()
    for base in bases:
        begin = base.storage_offset()
        if base.untyped_storage()._cdata == storage and begin <= offset < begin + base.numel():
            return base
    return None
