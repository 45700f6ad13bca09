"""Writers' outputs changed one node at a time in the stock forward, inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.graph.nodes import node_name, place_of
from circuitlit.masked import run_writers
from circuitlit.model import Subject

Write = Float[Tensor, "*rows d"]
Change = Callable[[str, Write], Write]


class Writers:
    """What every node of a subject writes to the residual stream, to be changed by name.

    Beside the writers of the graph there are two constants that belong to no edge: `positions`, the position
    embeddings, and `a3.bias`, the bias of a block's attention output.

    Args:
        subject: the frozen model; adapters may stay unmerged inside it.

    Raises:
        UserError: a model whose position embeddings are a writer (Tracr).
    """

    def __init__(self, subject: Subject) -> None:
        if subject.graph.inputs > 1:
            raise UserError("interventions know one input; this is a compiled program (Tracr), which has two")
        self.subject, self.graph = subject, subject.graph
        parts = [subject.anatomy.parts(block, self.graph) for block in subject.anatomy.blocks(subject.model)]
        self._out = [part.out for part in parts]
        self._bias = [part.out_bias for part in parts]
        self._scale = [part.post_scale for part in parts]

    @torch.no_grad()
    def record(self, ids: Int[Tensor, "batch pos"]) -> Callable[[str], Write]:
        """Run the subject; what it returns gives each node's write by name."""
        subject, made = self.subject, run_writers(self.subject, ids)
        places = subject.anatomy.positions

        def write(node: str) -> Write:
            if node == "input":
                return made.embed
            if node == "positions":
                assert places is not None
                table = attrgetter(places)(subject.model)
                return subject.anatomy.place(table, torch.arange(ids.shape[1], device=ids.device)[None])
            layer, head = place_of(node)
            if head is None:
                return made.mlps[:, layer]
            if head < 0:
                bias = self._bias[layer]
                return made.embed.new_zeros(made.embed.shape[-1]) if bias is None else bias
            return made.heads[:, layer].unflatten(-1, (self.graph.n_heads, -1))[..., head, :] @ self._out[layer][head]

        return write

    @contextmanager
    def changed(self, nodes: Collection[str], change: Change) -> Iterator[None]:
        """Have some nodes write `change(node, own write)`; the hooks are gone when the block ends, also on error."""
        subject, anatomy = self.subject, self.subject.anatomy
        heads: dict[int, list[int]] = {}
        with ExitStack() as hooks:

            def whole(module: nn.Module, node: str, factor: float = 1.0) -> None:
                def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
                    own = output[0] if isinstance(output, tuple) else output
                    made = change(node, own) if factor == 1 else change(node, own * factor) / factor
                    made = made.reshape(own.shape) if made.numel() == own.numel() else made.expand_as(own)
                    return (made, *output[1:]) if isinstance(output, tuple) else made

                hooks.callback(module.register_forward_hook(hook).remove)

            blocks = anatomy.blocks(subject.model)
            for node in nodes:
                if node == "input":
                    whole(subject.writes_input, node, anatomy.embed_factor)
                elif node == "positions":
                    if anatomy.positions is not None:
                        whole(attrgetter(anatomy.positions)(subject.model), node)
                else:
                    layer, head = place_of(node)
                    if head is None:
                        whole(blocks[layer].get_submodule(anatomy.mlp), node, anatomy.write_factor)
                    else:
                        heads.setdefault(layer, []).append(head)
            for layer, chosen in heads.items():
                self._change_heads(hooks, blocks[layer], layer, chosen, change)
            yield

    def _change_heads(self, hooks: ExitStack, block: nn.Module, layer: int, chosen: list[int], change: Change) -> None:
        anatomy, scale = self.subject.anatomy, self._scale[layer]
        out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
        last = out if anatomy.post_norm is None else getattr(block, anatomy.post_norm)
        seen: list[Tensor] = []

        def look(_module: nn.Module, args: tuple, output: Tensor) -> None:
            seen[:] = [args[0] if scale is None else args[0] * scale.of(output)]

        def put(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
            results = seen[0].unflatten(-1, (self.graph.n_heads, -1))
            for head in chosen:
                if head < 0:
                    bias = self._bias[layer]
                    own = output.new_zeros(output.shape[-1]) if bias is None else bias
                else:
                    own = results[..., head, :] @ self._out[layer][head]
                output = output + (change(node_name(layer, head), own) - own) / anatomy.write_factor
            return output

        hooks.callback(out.register_forward_hook(look).remove)
        hooks.callback(last.register_forward_hook(put).remove)
