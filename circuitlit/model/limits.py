"""Which prompts a model takes: how long they may be, and which tokens it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.model.families import attention_window
from circuitlit.tasks.encoded import Row
from circuitlit.tasks.faults import BadRows, Fault
from circuitlit.tasks.pair import Pair


def passage_length(config: PretrainedConfig, most: int = 48) -> int:
    """Tokens of a passage of some length, or as many as the model takes."""
    return int(min(most, longest_prompt(config)[0]))


def longest_prompt(config: PretrainedConfig) -> tuple[float, str]:
    """Most tokens of a prompt, and what bounds them; infinity where nothing does.

    Up to there attention is plainly causal, every position is known, and positions do not depend on what else is in the
    batch. Some rotary embeddings (dynamic NTK, LongRoPE) choose their frequencies by the longest row, so that a short
    prompt beside a long one would get others than alone; dynamic NTK even keeps them for later batches.
    """
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    bounds: list[tuple[float, str]] = [(positions, "the model has positions for")]
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings") or positions
            bounds.append(
                (original, "the model's original length, behind which LongRoPE positions depend on the batch")
            )
        if "dynamic" in str(rope.get("rope_type")):  # a prompt of just that length would not put frequencies back
            bounds.append(
                (positions - 1, "the model's original length, behind which NTK positions depend on the batch")
            )
        if "llama_4_scaling_beta" in rope:  # Ministral 3
            original = rope.get("original_max_position_embeddings") or positions
            bounds.append((original, "the model's original length, behind which it scales queries"))
    window = attention_window(config)
    if window is not None:
        bounds.append((window, "the model's attention window"))
    return min(bounds, key=lambda bound: bound[0])


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Parameters of the rotary embeddings, of each kind of layer where they differ."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [ropes] if "rope_type" in ropes else [one for one in ropes.values() if isinstance(one, dict)]


def check_length(config: PretrainedConfig, length: int) -> None:
    """Refuse a prompt, or rows padded to a length, that the model does not take.

    Raises:
        UserError: it is too long.
    """
    most, bound = longest_prompt(config)
    if length > most:
        raise UserError(f"{length} tokens are more than {bound} ({most:.0f}); shorten the prompt")


def check_ids(model: PreTrainedModel, ids: Int[Tensor, "batch pos"]) -> None:
    """`check_length`, and on the CPU, where it costs nothing, that the model has an embedding for every token.

    Raises:
        UserError: a prompt is too long, or a token unknown.
    """
    check_length(model.config, ids.shape[1])
    if ids.device.type == "cpu" and ids.numel():
        _check_token(model.config, int(ids.max()))


def check_rows(config: PretrainedConfig, rows: Sequence[Row], split: str, pairs: Sequence[Pair] = ()) -> None:
    """The same for encoded pairs, before any of them is on a device.

    Args:
        config: the model's.
        rows: of one split.
        split: its name, for the message.
        pairs: what the rows were made of, to name their lines; empty where that is not known.

    Raises:
        BadRows: pairs that are too long, or have a token that is unknown.
    """
    faults = []
    for number, row in enumerate(rows):
        try:
            check_length(config, len(row.clean))
            _check_token(config, max(*row.clean, *row.corrupted, *row.answer, *row.choices, row.wrong))
        except UserError as error:
            line = f" ({pairs[number].source})" if pairs and pairs[number].source else ""
            faults.append(Fault(number, f"{split} pair {number}{line}", str(error)))
    if faults:
        raise BadRows(faults, len(rows))


def check_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose own words, those added to it aside, go beyond the embedding.

    Raises:
        UserError: it is of another model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.get_vocab(with_added_tokens=False) if backend is not None else {}
    if words:
        _check_token(config, max(words.values()))


def _check_token(config: PretrainedConfig, token: int) -> None:
    if token >= config.vocab_size:
        raise UserError(
            f"the tokenizer's token {token} is beyond the model's embedding of {config.vocab_size} rows; load the "
            "tokenizer that belongs to the model, or resize the embedding"
        )
