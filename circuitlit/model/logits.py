"""Logits: the one place that turns the residual stream into them, whatever an architecture does on the way.

On the way are the final norm, the unembedding with its bias, a factor (Cohere, Granite) and a bound (Gemma 2). Nobody
else calls the unembedding; `tests/test_logits.py` compares every user with the stock model's own logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, masking_utils

from circuitlit.errors import UserError
from circuitlit.model.families import anatomy_of, final_softcap, logit_factor
from circuitlit.model.limits import check_ids
from circuitlit.model.linear import affine, unwrap
from circuitlit.products import fast_products

MULTIPLE = 8


def unembedder(model: PreTrainedModel) -> nn.Module:
    """The module that unembeds, for those that move, compare or share out its weights; `unembed` runs it.

    Raises:
        UserError: there is none, so that this is no language model.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UserError(f"a subject is a Hugging Face causal language model; a {type(model).__name__} is none")
    return head


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the unembedding is the embedding transposed."""
    return getattr(unembedder(model), "weight", None) is getattr(model.get_input_embeddings(), "weight", None)


def unembed(
    model: PreTrainedModel, normed: Float[Tensor, "*rows d"], tokens: Int[Tensor, "token"] | None = None
) -> Float[Tensor, "*rows said"]:
    """Logits of normed residual vectors.

    Args:
        model: without a PEFT wrapper; adapters may be inside.
        normed: what comes out of the final norm.
        tokens: whose logits are wanted, without gradients to weights; None is the whole vocabulary.
    """
    head, factor, cap = unembedder(model), logit_factor(model.config), final_softcap(model.config)
    if tokens is None:
        with fast_products(normed):
            logits = unembedded(normed, head) if uneven(normed, head) else head(normed)
    else:
        weight, bias = affine(head)
        logits = normed @ weight[:, tokens] if bias is None else normed @ weight[:, tokens] + bias[tokens]
    logits = logits if factor == 1 else logits * factor
    return logits if cap is None else cap * torch.tanh(logits / cap)


def read_out(
    model: PreTrainedModel, stream: Float[Tensor, "*rows d"], tokens: Int[Tensor, "token"] | None = None
) -> Float[Tensor, "*rows said"]:
    """Logits of residual vectors ahead of the final norm."""
    return unembed(model, final_norm(model)(stream), tokens)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm ahead of the unembedding."""
    return attrgetter(anatomy_of(model.config).final_norm)(model)


def final_hidden(
    model: PreTrainedModel, ids: Int[Tensor, "batch pos"], before: Cache | None = None
) -> Float[Tensor, "batch pos d"]:
    """Final normed residual stream of the stock forward. Rows are padded on the right, so causality hides pads.

    Args:
        model: without a PEFT wrapper.
        ids: the prompts, or what follows the tokens of `before`.
        before: keys and values of the tokens ahead, to which those of `ids` are added; None where there are none.

    Raises:
        UserError: rows that the model does not take; see `longest_prompt`.
    """
    check_ids(model, ids)
    with fast_products(ids), _one_prompt_a_row():
        kept = {"use_cache": False} if before is None else {"past_key_values": before, "use_cache": True}
        return model.base_model(input_ids=ids, **kept).last_hidden_state


@contextmanager
def _one_prompt_a_row() -> Iterator[None]:
    """Keep the library from asking a GPU, and waiting for it, whether rows hold several prompts."""
    asks = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asks


def logits_at(
    model: nn.Module, ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch answer vocab"]:
    """Stock logits at some positions only, of a model with or without a PEFT wrapper; gradients flow."""
    stock = unwrap(model)
    return unembed(stock, take_positions(final_hidden(stock, ids), positions))


def take_positions(
    stream: Float[Tensor, "batch pos d"], positions: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch answer d"]:
    """The vectors at each row's own positions."""
    return torch.take_along_dim(stream, positions[..., None], 1)


def uneven(hidden: Tensor, head: nn.Module) -> bool:
    """Whether a GPU's fast products refuse the logits' rows: in half precision these must be multiples of 16 bytes."""
    alone = not head._forward_pre_hooks and "forward" not in vars(head)  # weights that are shared out are whole in it
    plain = type(head) is nn.Linear and head.bias is None and alone
    return hidden.is_cuda and hidden.element_size() == 2 and plain and len(head.weight) % MULTIPLE > 0  # type: ignore[arg-type]


def unembedded(hidden: Float[Tensor, "*rows d"], head: nn.Module) -> Float[Tensor, "*rows vocab"]:
    """The logits by two products, of the tokens up to a multiple of 8 and of the few others."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    even = len(weight) // MULTIPLE * MULTIPLE
    most, rest = F.linear(hidden, weight[:even]), F.linear(hidden, weight[even:])
    if most.requires_grad:
        most.register_hook(torch.Tensor.contiguous)  # of a row's gradient it would get a part, uneven again
    return torch.cat([most, rest], -1)
