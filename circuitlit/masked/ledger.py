"""The ledger: what every writer adds beyond the ablated run, and the masked sums that readers take of it.

With `y` a writer's output in the circuit, `c` what it puts out when ablated and `z` the masks (1 = kept), a reader sees

    x = sum_w [ z_w y_w + (1 - z_w) c_w ] = C + sum_w z_w d_w        d = y - c,  C = sum_w c_w (the ablated stream)

so one buffer of deltas `d` is all that has to be kept. Readers are summed by panels of consecutive layers: `open_panel`
takes the writers ahead of a panel for all its readers in one product, `read` adds the panel's own writers. The buffers
are shared by the calls below, so a `token` is passed from call to call: it makes autograd run their backwards in the
opposite order, by when all later readers have added their share to a writer's gradient. The masks are a buffer, too:
their gradient is put together in place and leaves with the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.masked import kernels
from circuitlit.masked.ledger_calls import OpenPanel, Read, ReadAt, ReadOn, Start, Write, WriteHeads
from circuitlit.masked.rooms import Rooms

Token = Float[Tensor, ""]


class Panel(NamedTuple):
    """Consecutive readers whose sums of all writers ahead of them are one product.

    Attributes:
        reader: the first one's row of the masks.
        readers: how many.
        writers: the writers ahead.
    """

    reader: int
    readers: int
    writers: int


class Ledger:
    """Deltas of one forward pass, `[writer, token, d]`, the masks, and the gradients of both.

    Args:
        n_writers: rows of the buffer.
        like: any `[token, d]` tensor of the run; gives size, dtype and device.
        panel_readers: readers in the widest panel.
        masks: of all readers and writers.
        groups: token indices of each copy of the masks (token roles), None for one copy.
        between: True where nobody asks for the gradients of masks of exactly 0 or 1.
        rooms: where the large buffers come from.
    """

    def __init__(
        self,
        n_writers: int,
        like: Float[Tensor, "token d"],
        panel_readers: int,
        masks: Float[Tensor, "copies reader writer"],
        groups: list[Int[Tensor, "_"]] | None = None,
        between: bool = False,
        rooms: Rooms | None = None,
    ) -> None:
        self.between, self.rooms = between, rooms or Rooms()
        self.deltas = self.rooms.take(self, n_writers, like)
        self.partial = like.new_empty(panel_readers, *like.shape)
        self.groups = groups
        self.fused = groups is None and kernels.fused(like)
        self.given = masks
        self.masks = masks.detach() if self.fused else masks.detach().to(like.dtype)
        self._laid_out = self._for_kernels(like) if self.fused and kernels.streamed(like) else None
        self.panel = Panel(0, 0, 0)  # the open one
        self._summed = self.panel  # whose sums `partial` holds
        self._grads: dict[str, Tensor] = {}

    def _for_kernels(self, like: Tensor) -> Tensor:
        from circuitlit.masked.gpu.mixing import laid_out

        return laid_out(self.masks[0], like.dtype)

    @property
    def grad_deltas(self) -> Float[Tensor, "writer token d"]:
        """Gradient of every delta; zero until readers add to it."""
        if "deltas" not in self._grads:
            self._grads["deltas"] = self.rooms.take(self, len(self.deltas), self.deltas[0]).zero_()
        return self._grads["deltas"]

    @property
    def grad_masks(self) -> Float[Tensor, "copies reader writer"]:
        """Gradient of the masks, zero where no reader has run its backward."""
        if "masks" not in self._grads:
            self._grads["masks"] = torch.zeros_like(self.given.detach())
        return self._grads["masks"]

    def forget_gradients(self) -> None:
        """Begin a backward pass: what one before it, of the same forward, has left is not added to."""
        if self._grads:
            self._grads, self._summed = {}, Panel(0, 0, 0)

    def start(self) -> Token:
        """The first token: its backward, the last of all, hands out the masks' gradient."""
        if torch.is_grad_enabled() and not self.given.requires_grad:
            return self.deltas.new_zeros((), requires_grad=True)
        return Start.apply(self.given, self)  # type: ignore[return-value]

    def write(
        self,
        token: Token,
        first: int,
        value: Float[Tensor, "writers token d"],
        ablated: Float[Tensor, "writers token d"] | None = None,
    ) -> Token:
        """Enter what consecutive writers put out beyond their ablated output, from row `first`."""
        return Write.apply(token, value, ablated, self, first)  # type: ignore[return-value]

    def write_heads(
        self,
        token: Token,
        first: int,
        results: Float[Tensor, "head token width"],
        weight: Float[Tensor, "head width d"],
    ) -> Token:
        """Enter heads' results (less the ablated ones) through their frozen output maps."""
        return WriteHeads.apply(token, results, weight, self, first)  # type: ignore[return-value]

    def open_panel(self, token: Token, reader: int, readers: int, writers: int) -> Token:
        """Sum the first `writers` writers for all readers of a panel, which begins at row `reader` of the masks."""
        self.panel = Panel(reader, readers, writers)
        return OpenPanel.apply(token, self)  # type: ignore[return-value]

    def read(
        self,
        token: Token,
        ablated: Float[Tensor, "token d"],
        row: int,
        readers: int,
        writers: int,
        together: bool,
        tail: int = 1,
    ) -> tuple[Token, Float[Tensor, "attention token d"], Float[Tensor, "mlp token d"]]:
        """What a block's readers see: those of the attention, and those of its MLP.

        Args:
            token: the last call's.
            ablated: the ablated run's residual stream at this depth.
            row: place of the first of these readers in the open panel.
            readers: how many, the MLP's included.
            tail: how many of them are the MLP's.
            writers: of the whole model that they see.
            together: True where the MLP sees no more than the attention; else `read_on` adds the block's heads.
        """
        return Read.apply(token, ablated, self, row, readers, writers, together, tail)  # type: ignore[return-value]

    def read_again(
        self, ablated: Float[Tensor, "token d"], row: int, readers: int, writers: int
    ) -> Callable[[], Float[Tensor, "attention token d"]]:
        """What makes anew, in the backward pass, what `read` gives the attention: it need not be kept.

        The arguments are those of `read`, but `readers` counts those of the attention alone.
        """
        panel = self.panel

        def again() -> Tensor:
            if self._summed != panel:
                self.sum_up(panel, row + readers)  # behind these stand gradients already, the MLP's of this block first
            partial = self.partial[row : row + readers]
            seen = torch.empty_like(partial)
            rows = slice(panel.reader + row, panel.reader + row + readers)
            self.mix(seen, rows, slice(panel.writers, writers), partial, ablated)
            return seen

        return again

    def sum_up(self, panel: Panel, readers: int) -> None:
        """Fill `partial` with the sums of the writers ahead of a panel, for its first readers."""
        rows = slice(panel.reader, panel.reader + readers)
        self.mix(self.partial[:readers], rows, slice(0, panel.writers), None, None)
        self._summed = panel

    def read_on(
        self,
        token: Token,
        seen: Float[Tensor, "mlp token d"],
        ablated: Float[Tensor, "token d"],
        row: int,
        first: int,
        writers: int,
    ) -> tuple[Token, Float[Tensor, "mlp token d"]]:
        """What an MLP and its router see once its own block's heads have written.

        Args:
            token: the last call's.
            seen: what `read` gave it.
            ablated: what the heads add to the ablated residual stream.
            row: the MLP's place in the open panel.
            first: the first of these heads.
            writers: how many.
        """
        return ReadOn.apply(token, seen, ablated, self, row, slice(first, first + writers))  # type: ignore[return-value]

    def read_at(self, token: Token, ablated: Float[Tensor, "kept d"], tokens: Tensor) -> Float[Tensor, "kept d"]:
        """What the last reader sees at some tokens, from all writers; its backward starts everyone else's."""
        return ReadAt.apply(token, ablated, self, tokens)  # type: ignore[return-value]

    def mix(self, out: Tensor, readers: slice, writers: slice, base: Tensor | None, shared: Tensor | None) -> None:
        """Write `base + shared +` the readers' sums of some writers to `out`."""
        if self._laid_out is not None:
            from circuitlit.masked.gpu.mixing import mix

            mix(out, self._laid_out, readers, writers, self.deltas, base, shared)
            return
        masks, deltas = self.masks[:, readers, writers], self.deltas[writers]
        if base is not None and shared is not None:
            torch.add(base, shared, out=out)
        if len(deltas):
            kernels.mix(out, masks, deltas, self.groups, add=base is not None)

    def mix_backward(self, grad: Float[Tensor, "reader token d"], readers: slice, writers: slice) -> None:
        """Add to the writers' gradients, and write these readers' masks'."""
        if writers.start == writers.stop:
            return
        room = self.grad_masks[:, readers, writers]
        if self._laid_out is not None:
            from circuitlit.masked.gpu.mixing import mix_backward

            mix_backward(grad, self._laid_out, readers, writers, self.deltas, self.grad_deltas, room[0])
        else:
            masks, deltas, grad_deltas = (
                self.masks[:, readers, writers],
                self.deltas[writers],
                self.grad_deltas[writers],
            )
            room.copy_(kernels.mix_backward(grad, masks, deltas, grad_deltas, self.groups, self.between))

    def room(self, row: int, readers: int) -> Float[Tensor, "reader token d"]:
        """Where the gradient of these readers of the open panel belongs: in place of their sums, no longer needed."""
        return self.partial[row : row + readers]
