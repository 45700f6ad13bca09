"""A smaller model: heads and MLPs that a circuit does without are cut out of the weights, and write nothing any more.

The folder of such a model holds `pruned.json`, which says what is gone; `load_pruned` reads it. The weights' file has a
name that nobody else looks for: transformers would draw at random what is cut. Of every group of heads that share keys
and values as many stay as in the fullest group of the layer, the spare ones with an output of nought, for attention
wants groups of equal size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.files import save_tensors, write_json
from circuitlit.graph import Graph
from circuitlit.graph.select import nodes_of
from circuitlit.model.families import anatomy_of, graph_of
from circuitlit.surroundings import as_it_was

FORMAT = 1
WEIGHTS = "pruned.safetensors"


class _Silent(nn.Module):
    """An attention without heads: its output bias alone, which belongs to the residual stream."""

    def __init__(self, bias: Tensor | None, width: int) -> None:
        super().__init__()
        self.width = width
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, hidden_states: Float[Tensor, "batch pos d"], *_args: Any, **_more: Any) -> tuple[Tensor, None]:
        """Nothing but the bias, in the place of the attention's output and weights."""
        nothing = torch.zeros_like(hidden_states)
        return nothing if self.bias is None else nothing + self.bias, None


class _Nothing(nn.Module):
    """The place of an MLP that is cut."""

    def forward(self, hidden_states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Nought."""
        return torch.zeros_like(hidden_states)


def cut_nodes(graph: Graph, kept: Bool[Tensor, "copies edge"]) -> list[str]:
    """Heads and MLPs that no kept edge leaves; give it a circuit's reachable edges."""
    return [name for name, there in zip(graph.nodes, nodes_of(graph, kept).tolist(), strict=True) if not there]


def pruned(model: PreTrainedModel, cut: Collection[str]) -> PreTrainedModel:
    """A copy without some heads and MLPs: it equals the model with these nodes zero-ablated.

    Args:
        model: Llama family or GPT-2, without adapters.
        cut: names of heads and MLPs.

    Raises:
        UserError: another architecture, or adapters.
    """
    small = copy.deepcopy(model)
    with torch.no_grad():
        _carve(small, graph_of(model.config), set(cut), values=True)
    return small


def save_pruned(
    model: PreTrainedModel, small: PreTrainedModel, cut: Collection[str], tokenizer: PreTrainedTokenizerBase, to: Path
) -> int:
    """Write a folder that `load_pruned` reads; returns the bytes of its weights.

    Args:
        model: the whole model, for its configuration.
        small: of `pruned`.
        cut: the nodes that are gone.
        tokenizer: saved with it.
        to: the folder.
    """
    to.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(to)
    tokenizer.save_pretrained(to)
    save_tensors(to / WEIGHTS, _unique(small), {"format": "pt"})
    write_json(to / "pruned.json", {"format": FORMAT, "cut": sorted(cut), "dtype": str(small.dtype).split(".")[1]})
    return (to / WEIGHTS).stat().st_size


def load_pruned(folder: Path | str) -> PreTrainedModel:
    """The smaller model of a folder, in eval mode.

    Raises:
        UserError: the folder holds none.
    """
    folder = Path(folder)
    try:
        said = json.loads((folder / "pruned.json").read_text())
        cut, dtype = set(said["cut"]), getattr(torch, said["dtype"])
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder} is no pruned model ({error}); make one: export format=pruned circuit=RUN") from error
    config = AutoConfig.from_pretrained(folder)
    with torch.no_grad(), as_it_was():  # random weights are drawn first
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `to` would round rotary frequencies
        _carve(model, graph_of(config), cut, values=False)
        missing, more = model.load_state_dict(weights, strict=False)
        model.tie_weights()
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(_unique(model))
    if set(missing) - tied or more:
        raise UserError(f"{folder}: weights and pruned.json do not fit each other; export the model again")
    return model.eval().requires_grad_(False)


def _unique(model: PreTrainedModel) -> dict[str, Tensor]:
    """All tensors by name, a tied one once."""
    seen: dict[int, str] = {}
    found = {}
    for name, value in model.state_dict().items():
        if value.numel() and seen.setdefault(value.data_ptr(), name) != name:
            continue
        found[name] = value.contiguous()
    return found


def _carve(model: PreTrainedModel, graph: Graph, cut: set[str], values: bool) -> None:
    """Replace modules in place by smaller ones; `values=False` leaves their weights to be loaded."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise UserError("the model has adapters; merge them before it is cut")
    anatomy = anatomy_of(model.config)
    if anatomy.borrowed:
        raise UserError("heads of attention that runs as its own code cannot be cut out; take another model")
    if graph.inputs > 1:
        raise UserError("a compiled program (Tracr) cannot be cut smaller; take a model of the Llama family or GPT-2")
    if anatomy.post_norm is not None:
        raise UserError(
            "behind this model's attention is a norm that all heads share, so none can be cut out; take another"
        )
    for layer, block in enumerate(anatomy.blocks(model)):
        kept = [head for head in range(graph.n_heads) if f"a{layer}.h{head}" not in cut]
        attention = block.get_submodule(anatomy.attention)
        if not kept:
            silent = _Silent(getattr(attention, anatomy.out).bias, model.config.hidden_size)
            block.set_submodule(anatomy.attention, silent)
        elif len(kept) < graph.n_heads:
            _carve_attention(model, attention, graph, kept, values)
        if f"m{layer}" in cut:
            if anatomy.mlp_chain:
                raise UserError("this architecture's MLPs cannot be cut out; take a model of the Llama family or GPT-2")
            block.set_submodule(anatomy.mlp, _Nothing())


def _carve_attention(model: PreTrainedModel, attention: Any, graph: Graph, kept: list[int], values: bool) -> None:
    kind = model.config.model_type
    if kind == "gpt2":
        width = attention.head_dim
        columns = torch.cat([_rows(kept, width) + part * graph.n_heads * width for part in range(3)])
        attention.c_attn.weight = _part(attention.c_attn.weight[:, columns])
        attention.c_attn.bias = _part(attention.c_attn.bias[columns])
        attention.c_attn.nf = len(columns)
        attention.c_proj.weight = _part(attention.c_proj.weight[_rows(kept, width)])
        attention.num_heads, attention.split_size = len(kept), len(kept) * width
        return
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")):
        raise UserError(
            f"heads of the architecture '{kind}' cannot be cut out; take a model of the Llama family or GPT-2"
        )
    width, group = attention.head_dim, graph.n_heads // graph.n_kv_heads
    groups = sorted({head // group for head in kept})
    most = max(sum(head // group == one for head in kept) for one in groups)
    heads, spare = [], []
    for one in groups:
        own = [head for head in kept if head // group == one]
        others = [head for head in range(one * group, (one + 1) * group) if head not in own][: most - len(own)]
        spare += [len(heads) + len(own) + place for place in range(len(others))]
        heads += own + others
    for name, rows in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups)):
        _slice_rows(getattr(attention, name), _rows(rows, width))
    out = attention.o_proj
    out.weight = _part(out.weight[:, _rows(heads, width)])
    out.in_features = len(heads) * width
    if values and spare:
        out.weight[:, _rows(spare, width)] = 0
    attention.num_key_value_groups = most
    for name, number in (("num_heads", len(heads)), ("num_key_value_heads", len(groups))):
        if hasattr(attention, name):  # StableLM's own shapes
            setattr(attention, name, number)


def _slice_rows(linear: Any, rows: Tensor) -> None:
    linear.weight = _part(linear.weight[rows])
    if linear.bias is not None:
        linear.bias = _part(linear.bias[rows])
    linear.out_features = len(rows)


def _rows(heads: list[int], width: int) -> Tensor:
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


def _part(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().contiguous(), requires_grad=False)
