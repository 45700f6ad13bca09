"""Programs compiled into transformers by Tracr, as subjects whose circuits are known.

Tracr (Lindner et al., arXiv 2301.05062; package `tracr-pypi`) turns a RASP program into the weights of a small
transformer without norms, whose tokens attend to all others. Here the weights become a Hugging Face model, so that
everything runs through the one masked forward. Outputs are read as tokens: of a categorical program its values, of a
numerical one the nearest of some fractions, by logits `2 x f - f^2` (a constant less the squared distance).
"""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from circuitlit.errors import UserError
from circuitlit.model.subject import Subject
from circuitlit.model.tracr_edges import true_edges
from circuitlit.tasks.tracr import BOS, PAD, PROGRAMS, inputs

SHARPNESS = 10.0  # logit of a right word
NUMBER_SHARPNESS = 1000.0  # logits per squared distance to a fraction
LINEAR = {
    "attn/query": "attention.q_proj",
    "attn/key": "attention.k_proj",
    "attn/value": "attention.v_proj",
    "attn/linear": "attention.o_proj",
    "mlp/linear_1": "mlp.0",
    "mlp/linear_2": "mlp.2",
}  # Tracr's names and ours
NEVER = -1e4  # logit of tokens that are no output


def real_tokens(ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch one one pos"]:
    """The tokens that may be attended to: those that are not padding, which is token 0."""
    return (ids != 0)[:, None, None]


class TracrConfig(PretrainedConfig):
    """Numbers of a compiled model."""

    model_type = "tracr"

    def __init__(
        self,
        hidden_size: int = 8,
        intermediate_size: int = 8,
        num_hidden_layers: int = 1,
        num_attention_heads: int = 1,
        head_dim: int = 8,
        vocab_size: int = 8,
        max_position_embeddings: int = 8,
        **rest: Any,
    ) -> None:
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.head_dim, self.vocab_size = head_dim, vocab_size
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**rest)


class TracrAttention(nn.Module):
    """Attention of every token to every token."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, width) for _ in range(3))
        self.o_proj = nn.Linear(width, config.hidden_size)
        self.heads, self.scaling = config.num_attention_heads, config.head_dim**-0.5

    def forward(
        self, x: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch one one pos"]
    ) -> Float[Tensor, "batch pos d"]:
        """The stock attention, to real tokens."""
        q, k, v = (
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q_proj, self.k_proj, self.v_proj)
        )
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=real, scale=self.scaling)
        return self.o_proj(result.transpose(1, 2).flatten(2))


class TracrBlock(nn.Module):
    """Attention and MLP, without norms."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.Identity(), nn.Identity()
        self.attention = TracrAttention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.ReLU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(
        self, x: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch one one pos"]
    ) -> Float[Tensor, "batch pos d"]:
        """Add both to the stream."""
        x = x + self.attention(self.attn_norm(x), real)
        return x + self.mlp(self.mlp_norm(x))


class TracrBody(nn.Module):
    """Embeddings and blocks."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(TracrBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Identity()

    def forward(self, input_ids: Int[Tensor, "batch pos"], use_cache: bool = False) -> SimpleNamespace:
        """The final stream."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x, real_tokens(input_ids))
        return SimpleNamespace(last_hidden_state=self.norm(x))


class TracrForCausalLM(PreTrainedModel):
    """A compiled program with logits over its outputs."""

    config_class = TracrConfig
    base_model_prefix = "transformer"

    def __init__(self, config: TracrConfig) -> None:
        super().__init__(config)
        self.transformer = TracrBody(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings."""
        return self.transformer.tokens

    def get_output_embeddings(self) -> nn.Module:
        """From the stream to the outputs' logits."""
        return self.head


def compile_program(program: str) -> tuple[TracrForCausalLM, PreTrainedTokenizerFast]:
    """Compile one of `PROGRAMS`.

    Args:
        program: "reverse" (the tokens from last to first) or "proportion" (at each token, which share of the tokens so
            far were x).

    Returns:
        Its transformer, and a tokenizer that knows its inputs and its outputs; words are parted by spaces.

    Raises:
        UserError: no such program, or Tracr is not installed.
    """
    if program not in PROGRAMS:
        raise UserError(f"model.program={program} is not one of {', '.join(PROGRAMS)}")
    try:
        from tracr.compiler import compiling, lib
        from tracr.rasp import rasp
    except ImportError as error:
        raise UserError("Tracr is not installed; run: pip install 'circuitlit[tracr]'") from error
    vocabulary, length = PROGRAMS[program]
    source = lib.make_reverse(rasp.tokens)
    if program == "proportion":
        source = rasp.numerical(lib.make_frac_prevs(rasp.numerical(rasp.tokens == "x")))
    made = compiling.compile_rasp_to_model(source, vocab=set(vocabulary), max_seq_len=length, compiler_bos=BOS)
    outputs = None if program == "reverse" else fractions(length)
    return _assemble(made, source.label, outputs)


def fractions(length: int) -> list[Fraction]:
    """All shares of up to `length` things, ascending."""
    return sorted({Fraction(part, whole) for whole in range(1, length + 1) for part in range(whole + 1)})


def _assemble(
    made: Any, label: str, outputs: list[Fraction] | None
) -> tuple[TracrForCausalLM, PreTrainedTokenizerFast]:
    """Tracr's parameters as a Hugging Face model; `outputs` are the numbers that a numerical output is rounded to."""
    numbers, parameters = made.model_config, {name: _tensors(part) for name, part in made.params.items()}
    tokens = made.input_encoder.encoding_map
    known = sorted(tokens, key=lambda word: (word != PAD, word))  # padding is token 0
    words = [*known, *map(str, outputs or [])]
    config = TracrConfig(
        hidden_size=len(made.residual_labels),
        intermediate_size=numbers.mlp_hidden_size,
        num_hidden_layers=numbers.num_layers,
        num_attention_heads=numbers.num_heads,
        head_dim=numbers.key_size,
        vocab_size=len(words),
        max_position_embeddings=parameters["pos_embed"]["embeddings"].shape[0],
    )
    model = TracrForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embedded = parameters["token_embed"]["embeddings"][[tokens[word] for word in known]]
        model.transformer.tokens.weight[: len(known)] = embedded
        model.transformer.positions.weight.copy_(parameters["pos_embed"]["embeddings"])
        for layer, block in enumerate(model.transformer.blocks):
            for theirs, ours in LINEAR.items():
                linear, part = block.get_submodule(ours), parameters[f"transformer/layer_{layer}/{theirs}"]
                assert isinstance(linear, nn.Linear)
                linear.weight.copy_(part["w"].t())
                linear.bias.copy_(part["b"])
        _read_out(model.head, [str(name) for name in made.residual_labels], label, words, outputs)
    vocabulary = {word: index for index, word in enumerate(words)}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token=BOS))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return model, PreTrainedTokenizerFast(tokenizer_object=splitter, unk_token=BOS)


def _tensors(part: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value.tolist()) for name, value in part.items()}


def _read_out(
    head: nn.Linear, directions: list[str], label: str, words: list[str], outputs: list[Fraction] | None
) -> None:
    """Logits from the output variable's directions of the stream."""
    head.bias.fill_(NEVER)
    for place, direction in enumerate(directions):
        variable, _, value = direction.partition(":")
        if variable != label:
            continue
        if outputs is None:
            head.weight[words.index(value), place] = SHARPNESS
            head.bias[words.index(value)] = 0.0
        for number in outputs or []:
            token, target = words.index(str(number)), float(number)
            head.weight[token, place] = 2 * target * NUMBER_SHARPNESS
            head.bias[token] = -(target**2) * NUMBER_SHARPNESS


def load_tracr(program: str, name: str = "tracr") -> Subject:
    """A compiled program as a subject that knows its true edges.

    Args:
        program: as in `compile_program`.
        name: short name for tables and folders.
    """
    model, tokenizer = compile_program(program)
    subject = Subject(model, tokenizer, name, {"source": "tracr", "program": program})
    by_length: dict[int, list[str]] = {}
    for words in inputs(program):
        by_length.setdefault(len(words), []).append(" ".join((BOS, *words)))
    prompts = [tokenizer(texts, return_tensors="pt")["input_ids"] for texts in by_length.values()]
    subject.true_edges = true_edges(subject, prompts)
    return subject
