# ruff: noqa: D102 (forward and backward are autograd's)
"""The ledger's calls as autograd sees them: each with its backward, chained by a token that runs them in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from circuitlit.products import batched_product

if TYPE_CHECKING:
    from circuitlit.masked.ledger import Ledger


class Start(Function):
    """The first token; its backward hands out the masks' gradient."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, ledger: Ledger) -> Tensor:
        ctx.ledger = ledger
        return ledger.deltas.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.ledger.grad_masks, None


class Write(Function):
    """`Ledger.write`: a writer's output less its ablated output enters the deltas."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, value: Tensor, ablated: Tensor | None, ledger: Ledger, first: int) -> Tensor:
        ctx.ledger, ctx.rows = ledger, slice(first, first + len(value))
        if ablated is None:
            ledger.deltas[ctx.rows] = value
        else:
            torch.sub(value, ablated, out=ledger.deltas[ctx.rows])
        return token.view_as(token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = ctx.ledger.grad_deltas[ctx.rows]
        return grads[0], grad, -grad if ctx.needs_input_grad[2] else None, None, None


class WriteHeads(Function):
    """`Ledger.write_heads`: heads' results enter the deltas through their output maps."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, results: Tensor, weight: Tensor, ledger: Ledger, first: int) -> Tensor:
        ctx.ledger, ctx.rows = ledger, slice(first, first + len(results))
        ctx.save_for_backward(weight)  # not as an attribute: recomputing lets go of what is saved
        batched_product(results, weight, ledger.deltas[ctx.rows])
        return token.view_as(token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        deltas = ctx.ledger.grad_deltas[ctx.rows]
        grad = batched_product(deltas, weight.transpose(1, 2), deltas.new_empty(*deltas.shape[:2], weight.shape[1]))
        return grads[0], grad, None, None, None


class OpenPanel(Function):
    """`Ledger.open_panel`: one product for all readers of a panel."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, ledger: Ledger) -> Tensor:
        ctx.ledger, ctx.panel = ledger, ledger.panel
        ledger.sum_up(ledger.panel, ledger.panel.readers)
        return token.view_as(token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        reader, readers, writers = ctx.panel
        ctx.ledger.mix_backward(ctx.ledger.room(0, readers), slice(reader, reader + readers), slice(0, writers))
        return grads[0], None


class Read(Function):
    """`Ledger.read`: what a block's readers see."""

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        ablated: Tensor,
        ledger: Ledger,
        row: int,
        readers: int,
        writers: int,
        together: bool,
        tail: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.ledger, ctx.row, ctx.tail = ledger, row, tail
        ctx.readers = slice(ledger.panel.reader + row, ledger.panel.reader + row + readers)
        ctx.writers = slice(ledger.panel.writers, writers)
        partial = ledger.partial[row : row + readers]
        seen = torch.empty_like(partial)
        ledger.mix(seen, ctx.readers, ctx.writers, partial, ablated)
        attention, mlp = seen[:-tail], seen[-tail:]
        if together:
            mlp = mlp.clone()  # kept by the MLP's norm, as a view it would keep all of `seen`
        else:
            ctx.mark_non_differentiable(mlp)
            ctx.set_materialize_grads(False)  # of zeros, which nobody reads
        return token.view_as(token), attention, mlp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        ledger: Ledger = ctx.ledger
        room, attention = ledger.room(ctx.row, ctx.readers.stop - ctx.readers.start), grads[1]
        if attention is None:  # nobody read it
            room[: -ctx.tail] = 0
        elif attention.data_ptr() != room.data_ptr() or not attention.is_contiguous():
            room[: -ctx.tail] = attention
        if (mlp := grads[2]) is not None:  # the MLP reads together with attention
            room[-ctx.tail :] = mlp
        ledger.mix_backward(room, ctx.readers, ctx.writers)
        grad_ablated = room.sum(0) if ctx.needs_input_grad[1] else None
        return grads[0], grad_ablated, None, None, None, None, None, None


class ReadOn(Function):
    """`Ledger.read_on`: an MLP hears its own block's heads, too."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, seen: Tensor, ablated: Tensor, ledger: Ledger, row: int, writers: slice
    ) -> tuple[Tensor, Tensor]:
        ctx.ledger, ctx.row, ctx.writers = ledger, row, writers
        ctx.readers = slice(ledger.panel.reader + row, ledger.panel.reader + row + len(seen))
        out = torch.empty_like(seen)
        ledger.mix(out, ctx.readers, writers, seen, ablated)
        return token.view_as(token), out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        room = ctx.ledger.room(ctx.row, len(grads[1]))
        room.copy_(grads[1])
        ctx.ledger.mix_backward(room, ctx.readers, ctx.writers)
        return grads[0], None, grads[1].sum(0) if ctx.needs_input_grad[2] else None, None, None, None


class ReadAt(Function):
    """`Ledger.read_at`: what the last reader sees at some tokens."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, ablated: Tensor, ledger: Ledger, tokens: Tensor) -> Tensor:
        ctx.ledger = ledger
        ctx.save_for_backward(tokens)
        per_token = _last(ledger)[_copy_of(ledger, tokens)]
        return ablated + torch.einsum("tw,wtd->td", per_token, ledger.deltas[:, tokens])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ledger, (tokens,) = ctx.ledger, ctx.saved_tensors
        ledger.forget_gradients()
        copy = _copy_of(ledger, tokens)
        grad_per_token = torch.einsum("td,wtd->tw", grads[0], ledger.deltas[:, tokens])
        room = ledger.grad_masks
        room[:, -1] = torch.zeros_like(room[:, -1]).index_add_(0, copy, grad_per_token.to(room.dtype))
        ledger.grad_deltas.index_add_(1, tokens, torch.einsum("tw,td->wtd", _last(ledger)[copy], grads[0]))
        return grads[0].new_zeros(()), grads[0], None, None


def _last(ledger: Ledger) -> Float[Tensor, "copies writer"]:
    """Masks of the last reader."""
    return ledger.masks[:, -1].to(ledger.deltas.dtype)


def _copy_of(ledger: Ledger, tokens: Int[Tensor, "kept"]) -> Int[Tensor, "kept"]:
    """Which copy of the masks holds at each token."""
    if ledger.groups is None:
        return torch.zeros_like(tokens)
    copies = torch.zeros(ledger.deltas.shape[1], dtype=torch.long, device=tokens.device)
    for copy, members in enumerate(ledger.groups):
        copies[members] = copy
    return copies[tokens]
