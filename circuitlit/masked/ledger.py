"""The ledger: what every writer adds beyond the ablated run, and the masked sums that readers take of it.

With `y` a writer's output in the circuit, `c` what it puts out when ablated and `z` the masks (1 = kept), a reader sees

    x = sum_w [ z_w y_w + (1 - z_w) c_w ] = C + sum_w z_w d_w        d = y - c,  C = sum_w c_w (the ablated stream)

so one buffer of deltas `d` is all that has to be kept. Readers are summed by panels of consecutive layers: `open_panel`
takes the writers ahead of a panel for all its readers in one product, `read` adds the panel's own writers. The buffers
are shared by the calls below, so a `token` is passed from call to call: it makes autograd run their backwards in the
opposite order, by when all later readers have added their share to a writer's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from circuitlit.masked.kernels import mix, mix_backward

Token = Float[Tensor, ""]


class Ledger:
    """Deltas of one forward pass, `[writer, token, d]`, and their gradients.

    Args:
        n_writers: rows of the buffer.
        like: any `[token, d]` tensor of the run; gives size, dtype and device.
        panel_readers: readers in the widest panel.
        groups: token indices of each copy of the masks (token roles), None for one copy.
    """

    def __init__(
        self,
        n_writers: int,
        like: Float[Tensor, "token d"],
        panel_readers: int,
        groups: list[Int[Tensor, "_"]] | None = None,
    ) -> None:
        self.deltas = like.new_empty(n_writers, *like.shape)
        self.partial = like.new_empty(panel_readers, *like.shape)
        self.groups = groups
        self._grad_deltas: Tensor | None = None
        self._grad_partial: Tensor | None = None

    @property
    def grad_deltas(self) -> Float[Tensor, "writer token d"]:
        """Gradient of every delta; zero until readers add to it."""
        if self._grad_deltas is None:
            self._grad_deltas = torch.zeros_like(self.deltas)
        return self._grad_deltas

    @property
    def grad_partial(self) -> Float[Tensor, "reader token d"]:
        """Gradient of the open panel's partial sums; every `read` fills its own rows."""
        if self._grad_partial is None:
            self._grad_partial = torch.empty_like(self.partial)
        return self._grad_partial

    def start(self) -> Token:
        """The first token."""
        return self.deltas.new_zeros((), requires_grad=torch.is_grad_enabled())

    def write(self, token: Token, first: int, delta: Float[Tensor, "writers token d"]) -> Token:
        """Enter consecutive writers' deltas, from row `first`."""
        return _Write.apply(token, delta, self, first)  # type: ignore[return-value]

    def open_panel(self, token: Token, masks: Float[Tensor, "copies readers writers"]) -> Token:
        """Sum the first `writers` writers for all readers of a panel."""
        return _OpenPanel.apply(token, masks, self)  # type: ignore[return-value]

    def read(
        self,
        token: Token,
        masks: Float[Tensor, "copies readers writers"],
        ablated: Float[Tensor, "token d"],
        row: int,
        first: int,
    ) -> tuple[Token, Float[Tensor, "readers token d"]]:
        """What some readers of the open panel see.

        Args:
            token: the last call's.
            masks: of these readers, for the panel's own writers only.
            ablated: the ablated run's residual stream at this depth.
            row: place of the first of these readers in the panel.
            first: first writer that `open_panel` left out.
        """
        return _Read.apply(token, masks, ablated, self, row, first)  # type: ignore[return-value]

    def read_at(
        self, token: Token, masks: Float[Tensor, "copies writer"], ablated: Float[Tensor, "kept d"], tokens: Tensor
    ) -> Float[Tensor, "kept d"]:
        """What the last reader sees at some tokens, from all writers; its backward starts everyone else's."""
        return _ReadAt.apply(token, masks, ablated, self, tokens)  # type: ignore[return-value]


class _Write(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, delta: Tensor, ledger: Ledger, first: int) -> Tensor:
        ctx.ledger, ctx.rows = ledger, slice(first, first + len(delta))
        ledger.deltas[ctx.rows] = delta
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], ctx.ledger.grad_deltas[ctx.rows], None, None


class _OpenPanel(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, masks: Tensor, ledger: Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.save_for_backward(masks)
        partial = ledger.partial[: masks.shape[1]]
        mix(partial, masks, ledger.deltas[: masks.shape[2]], ledger.groups, add=False)
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ledger, (masks,) = ctx.ledger, ctx.saved_tensors
        readers, writers = masks.shape[1:]
        grad_masks = mix_backward(
            ledger.grad_partial[:readers], masks, ledger.deltas[:writers], ledger.grad_deltas[:writers], ledger.groups
        )
        return grads[0], grad_masks, None


class _Read(Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor, masks: Tensor, ablated: Tensor, ledger: Ledger, row: int, first: int
    ) -> tuple[Tensor, Tensor]:
        ctx.ledger, ctx.row, ctx.first = ledger, row, first
        ctx.save_for_backward(masks)
        seen = ledger.partial[row : row + masks.shape[1]] + ablated
        if masks.shape[2]:
            mix(seen, masks, ledger.deltas[first : first + masks.shape[2]], ledger.groups)
        return token.clone(), seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ledger, (masks,) = ctx.ledger, ctx.saved_tensors
        grad = grads[1].contiguous()
        own = slice(ctx.first, ctx.first + masks.shape[2])
        ledger.grad_partial[ctx.row : ctx.row + masks.shape[1]] = grad
        grad_masks = torch.zeros_like(masks)
        if masks.shape[2]:
            grad_masks = mix_backward(grad, masks, ledger.deltas[own], ledger.grad_deltas[own], ledger.groups)
        grad_ablated = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grads[0], grad_masks, grad_ablated, None, None, None


class _ReadAt(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, masks: Tensor, ablated: Tensor, ledger: Ledger, tokens: Tensor) -> Tensor:
        ctx.ledger = ledger
        per_token = masks[_copy_of(ledger, tokens)]
        ctx.save_for_backward(masks, tokens)
        return ablated + torch.einsum("tw,wtd->td", per_token, ledger.deltas[:, tokens])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ledger, (masks, tokens) = ctx.ledger, ctx.saved_tensors
        copy = _copy_of(ledger, tokens)
        grad_per_token = torch.einsum("td,wtd->tw", grads[0], ledger.deltas[:, tokens])
        grad_masks = torch.zeros_like(masks).index_add_(0, copy, grad_per_token)
        ledger.grad_deltas.index_add_(1, tokens, torch.einsum("tw,td->wtd", masks[copy], grads[0]))
        return grads[0].new_zeros(()), grad_masks, grads[0], None, None


def _copy_of(ledger: Ledger, tokens: Int[Tensor, "kept"]) -> Int[Tensor, "kept"]:
    """Which copy of the masks holds at each token."""
    if ledger.groups is None:
        return torch.zeros_like(tokens)
    copies = torch.zeros(ledger.deltas.shape[1], dtype=torch.long, device=tokens.device)
    for copy, members in enumerate(ledger.groups):
        copies[members] = copy
    return copies[tokens]
