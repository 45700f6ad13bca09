"""What every writer puts out during a stock forward, recorded inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.model.anatomy import PostScale
from circuitlit.model.subject import Subject


@dataclass
class Recording:
    """Outputs of all writers, filled while the model runs.

    Attributes:
        embed: token embeddings, without position embeddings.
        heads: per layer, the heads' results side by side, before the output projection; where a norm follows that
            projection, times the norm's factor, so that the folded projection gives what is written.
        mlps: per layer, the MLP's output.
    """

    embed: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)
    heads: list[Float[Tensor, "batch pos width"]] = field(default_factory=list)
    mlps: list[Float[Tensor, "batch pos d"]] = field(default_factory=list)


@contextmanager
def record(subject: Subject) -> Iterator[Recording]:
    """Record one forward of the stock model; the hooks are gone when the block ends, also on error."""
    recording = Recording()

    def keep_output(into: list[Tensor]):
        def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            into.append(output.view(*(recording.embed or [output])[0].shape))  # OPT's MLP flattens the tokens

        return hook

    def keep_heads(scale: PostScale | None):
        def hook(_module: nn.Module, args: tuple, output: Tensor) -> None:
            recording.heads.append(args[0] if scale is None else args[0] * scale.of(output))

        return hook

    anatomy = subject.anatomy
    with ExitStack() as hooks:
        hooks.callback(subject.embed.register_forward_hook(keep_output(recording.embed)).remove)
        for block in anatomy.blocks(subject.model):
            out = getattr(getattr(block, anatomy.attention), anatomy.out)
            hooks.callback(out.register_forward_hook(keep_heads(anatomy.post_scale(block))).remove)
            hooks.callback(getattr(block, anatomy.mlp).register_forward_hook(keep_output(recording.mlps)).remove)
        yield recording
