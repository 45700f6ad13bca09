"""What writers put out and readers see during a stock forward, recorded or replaced inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.model.anatomy import PostScale
from circuitlit.model.experts import router_of
from circuitlit.model.logits import final_norm
from circuitlit.model.subject import Subject


@dataclass
class Recording:
    """Outputs of all writers, filled while the model runs.

    Attributes:
        embed: what the input writes: token embeddings times their factor, without position embeddings.
        heads: per layer, the heads' results side by side, before the output projection; where a norm follows that
            projection, times the norm's factor, so that the folded projection gives what is written.
        mlps: per layer, what the MLP writes.
    """

    embed: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    heads: list[Float[Tensor, "batch pos width"]] = field(default_factory=list)
    mlps: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)


@contextmanager
def record(subject: Subject) -> Iterator[Recording]:
    """Record one forward of the stock model; the hooks are gone when the block ends, also on error."""
    recording = Recording()

    def keep_output(into: list[Tensor], factor: float, overwritten: bool = False):
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            output = output * factor if factor != 1 or overwritten else output  # a product is a copy
            flat = output.ndim == 2  # OPT's MLP flattens the tokens
            into.append(output.view_as(recording.embed[0]) if flat else output)

        return hook

    def keep_heads(scale: PostScale | None):
        def hook(_module: nn.Module, args: tuple, output: Tensor) -> None:
            recording.heads.append(args[0] if scale is None else args[0] * scale.of(output))

        return hook

    anatomy = subject.anatomy
    with ExitStack() as hooks:
        keep = keep_output(recording.embed, anatomy.embed_factor)
        hooks.callback(subject.writes_input.register_forward_hook(keep).remove)
        keep = keep_output(recording.mlps, anatomy.write_factor, anatomy.mlp_overwritten)
        for block in anatomy.blocks(subject.model):
            out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
            hooks.callback(out.register_forward_hook(keep_heads(anatomy.post_scale(block))).remove)
            hooks.callback(block.get_submodule(anatomy.mlp).register_forward_hook(keep).remove)
        yield recording


@dataclass
class Reads:
    """What every reader sees and makes of it, filled while the model runs.

    Attributes:
        attention: per layer, the residual stream ahead of the attention's norm.
        projected: per layer, outputs of the modules that make queries, keys and values.
        mlp: per layer, the residual stream ahead of the MLP's norm.
        mlp_normed: per layer, the MLP's normed input; its gradient is the MLP's alone, even if the attention reads the
            same norm.
        routed: per layer, the router's normed input, where that is a reader of its own; likewise.
        final: the residual stream ahead of the final norm (one entry).
        final_normed: what is unembedded (one entry).
    """

    attention: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    projected: list[list[Float[Tensor, "batch pos _"]]] = field(default_factory=list)
    mlp: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    mlp_normed: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    routed: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    final: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    final_normed: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)


@contextmanager
def record_reads(subject: Subject) -> Iterator[Reads]:
    """Record the readers' side of one forward of the stock model; tensors stay in the autograd graph."""
    reads = Reads()
    anatomy = subject.anatomy
    with ExitStack() as hooks:

        def watch(module: nn.Module, seen: list[Tensor] | None, made: list[Tensor] | None, first: bool = False) -> None:
            def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
                if seen is not None:
                    seen.append(args[0])
                if made is not None:
                    made.append(output)
                return output.clone() if made is not None and anatomy.borrowed else None  # some clip it in place

            hooks.callback(module.register_forward_hook(hook, prepend=first).remove)

        def own_input(_module: nn.Module, args: tuple) -> tuple:
            normed = args[0].view(reads.attention[-1].shape)  # another tensor than the attention's; OPT's has no batch
            reads.mlp_normed.append(normed)
            if subject.graph.routers:
                reads.routed.append(args[0].view(normed.shape))
            return (normed.view(args[0].shape), *args[1:])

        def look(module: nn.Module, seen: list[Tensor]) -> None:
            hooks.callback(module.register_forward_pre_hook(lambda _module, args: seen.append(args[0])).remove)

        def own_route(_module: nn.Module, args: tuple) -> tuple:
            return (reads.routed[-1].reshape(args[0].shape), *args[1:])

        for block in anatomy.blocks(subject.model):
            look(anatomy.sees_stream(block), reads.attention)
            reads.projected.append([])
            for name in anatomy.projections:
                projection = getattr(block.get_submodule(anatomy.attention), name)
                watch(projection, None, reads.projected[-1], first=True)  # ahead of hooks that change its gradient
            look(anatomy.sees_stream(block, mlp=True), reads.mlp)
            mlp = anatomy.first_mlp(block)
            hooks.callback(mlp.register_forward_pre_hook(own_input).remove)
            if subject.graph.routers:
                router = router_of(mlp)
                assert router is not None
                hooks.callback(router.register_forward_pre_hook(own_route).remove)
        watch(final_norm(subject.model), reads.final, reads.final_normed)
        yield reads


@contextmanager
def replace_writers(
    subject: Subject,
    embed: Float[Tensor, "batch pos d"] | None = None,
    heads: Mapping[int, Float[Tensor, "batch pos width"]] | None = None,
    mlps: Mapping[int, Float[Tensor, "batch pos d"]] | None = None,
) -> Iterator[None]:
    """Have some writers put out given values in the stock forward; the hooks are gone when the block ends.

    A replaced head or MLP still passes the gradient on to what it reads, through its own Jacobian where it stands. The
    replaced embedding is taken as it is, so that a leaf that requires a gradient anchors the autograd graph.

    Args:
        subject: the frozen model.
        embed: what the input writes, without position embeddings.
        heads: per layer, all heads' results side by side, before the output projection.
        mlps: per layer, what the MLP writes.
    """
    anatomy = subject.anatomy
    with ExitStack() as hooks:
        if embed is not None:
            token = embed if anatomy.embed_factor == 1 else embed / anatomy.embed_factor
            hooks.callback(subject.writes_input.register_forward_hook(lambda _module, _args, _output: token).remove)
        for layer, block in enumerate(anatomy.blocks(subject.model)):
            if heads and layer in heads:
                out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
                put = _moved_to(heads[layer])
                hooks.callback(out.register_forward_pre_hook(lambda _m, args, put=put: (put(args[0]),)).remove)
            if mlps and layer in mlps:
                before = mlps[layer] if anatomy.write_factor == 1 else mlps[layer] / anatomy.write_factor
                mlp, put = block.get_submodule(anatomy.mlp), _moved_to(before)
                hooks.callback(mlp.register_forward_hook(lambda _m, _args, output, put=put: _first(put, output)).remove)
        yield


def _first(put: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Another first output, where there are several."""
    return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)


def _moved_to(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda own: own + (value - own).detach()
