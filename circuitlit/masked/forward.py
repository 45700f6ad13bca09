"""The edge-masked forward of a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from circuitlit.masked.ablation import Ablated
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.borrowed import Told, tell
from circuitlit.masked.kernels import fused
from circuitlit.masked.ledger import Ledger, Token
from circuitlit.masked.live import LiveBlock
from circuitlit.masked.rooms import Rooms
from circuitlit.masked.short_attention import Rotary
from circuitlit.masked.tokens import Tokens, needed_tokens, picked
from circuitlit.model.families import layer_kinds
from circuitlit.model.limits import check_length
from circuitlit.model.logits import final_norm
from circuitlit.model.subject import Subject

Recompute = bool | Literal["reads"]
SHAPES = 16  # of prompts for which is kept what borrowed attention is told


class MaskedModel(nn.Module):
    """Runs a subject with a mask on every edge; shares the subject's weights.

    All masks 1 gives the stock model's logits, all masks 0 the ablated run's. Any real mask is legal; values between
    mix the clean and the ablated output of a writer.

    Args:
        subject: the frozen model.
        panel: consecutive blocks whose reads share one product; more is faster and takes more memory.
        recompute: what the backward pass makes anew instead of storing it: "reads", what readers see, by far the most
            of it, at the cost of one more product a panel; True, all activations of each panel; False, nothing.
        live: True reads the weights anew in every forward, so that the model's LoRA adapters can be trained; without it
            they are folded into the weights once.
    """

    recompute: Recompute

    def __init__(self, subject: Subject, panel: int = 5, recompute: Recompute = False, live: bool = False) -> None:
        super().__init__()
        self.subject = subject
        self.graph = subject.graph
        self.panel, self.recompute = panel, recompute
        self.shards: Any = None  # an engine's, where the weights are not always there (engines.py, one_block.py)
        anatomy, model = subject.anatomy, subject.model
        self.blocks = nn.ModuleList(
            LiveBlock(anatomy, block, self.graph, layer)
            if live
            else MaskedBlock(anatomy.parts(block, self.graph), self.graph, layer)
            for layer, block in enumerate(anatomy.blocks(model))
        )
        for block in self.blocks:
            block.reread = recompute == "reads"  # type: ignore[assignment]
        self.final_norm = final_norm(model)
        self.rooms = Rooms()
        self._told: dict[tuple, list[Told]] = {}

    def forward(
        self,
        masks: Float[Tensor, "copies reader writer"],
        ids: Int[Tensor, "batch pos"],
        ablated: Ablated,
        positions: Int[Tensor, "batch answer"],
        roles: Int[Tensor, "batch pos"] | None = None,
        between: bool = False,
        shared: Int[Tensor, "batch"] | None = None,
        alike: int = 0,
    ) -> Float[Tensor, "batch answer vocab"]:
        """Logits of the masked model at the answer positions.

        Args:
            masks: one matrix, or one for every role: `MaskLayout.dense` makes them.
            ids: clean prompts, padded on the right.
            ablated: outputs of all writers where their edges are cut.
            positions: where logits are wanted.
            roles: which copy of the masks holds at each token; needed with several copies.
            between: True where nobody asks for the gradients of masks of exactly 0 or 1; they may be left at 0.
            shared: of each prompt, tokens at its start on which `ablated` is this model's run of the same tokens; on a
                CPU they cost next to nothing.
            alike: tokens that all prompts, clean and corrupted ones, begin with; a CPU computes them once.
        """
        batch, length = ids.shape
        self.check_length(length)
        embedded = self.subject.embedded(ids).flatten(0, 1)
        stream = ablated.embed.flatten(0, 1)
        here = embedded.device.type == "cpu" and not fused(embedded)  # where finding them waits for no device
        tokens = needed_tokens(length, positions, shared, alike) if here and self.leaves_out_tokens() else None
        embedded = picked(embedded, tokens)
        groups = _groups(None if roles is None else picked(roles.flatten(), tokens), masks.shape[0])
        readers = self.panel * self.graph.readers_per_layer
        ledger = Ledger(self.graph.n_writers, embedded, readers, masks, groups, between, self.rooms)
        token = ledger.write(ledger.start(), 0, embedded[None], picked(stream, tokens)[None])
        if self.graph.inputs > 1:
            cut = ablated.positions.flatten(0, 2)
            token = ledger.write(token, 1, self.written_positions(batch, length)[None], cut[None])
            stream = stream + cut
        stream = stream + self.position_embeddings(batch, length)
        rotary, real = self.turns(ids, embedded), self.real_tokens(ids)
        for start in range(0, len(self.blocks), self.panel):
            args = (ledger, token, stream, ablated, start, rotary, real, tokens)
            if self.recompute is True and torch.is_grad_enabled():
                token, stream = checkpoint(
                    self._run_panel, *args, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
                )
            else:
                token, stream = self._run_panel(*args)
        flat = (positions + length * torch.arange(batch, device=ids.device)[:, None]).flatten()
        flat = flat if tokens is None else tokens.sources(flat)
        final = ledger.read_at(token, stream[flat], flat if tokens is None else tokens.place_of(flat))
        return self.subject.unembed(self.final_norm(final)).unflatten(0, positions.shape)

    def _run_panel(
        self,
        ledger: Ledger,
        token: Token,
        stream: Tensor,
        ablated: Ablated,
        start: int,
        rotary: Sequence[Rotary | Told | None],
        real: Tensor | None,
        tokens: Tokens | None,
    ) -> tuple[Token, Tensor]:
        graph = self.graph
        stop = min(start + self.panel, len(self.blocks))
        first_reader = graph.reader_rows(start).start
        readers = (stop - start) * graph.readers_per_layer
        token = ledger.open_panel(token, first_reader, readers, graph.writers_before(start))
        heads = ablated.heads[:, start:stop].transpose(0, 1).contiguous()
        mlps = ablated.mlps[:, start:stop].transpose(0, 1).flatten(1, 2)
        for number, layer in enumerate(range(start, stop)):
            row = number * graph.readers_per_layer
            token, stream = self.blocks[layer](
                ledger, token, row, stream, heads[number], mlps[number], rotary[layer], real, tokens
            )
        return token, stream

    def leaves_out_tokens(self) -> bool:
        """Whether some tokens' vectors are the ablated run's whatever the masks: where nothing but masks varies."""
        frozen = self.shards is None and not any(isinstance(block, LiveBlock) for block in self.blocks)
        return frozen and self.graph.inputs == 1 and self.subject.anatomy.causal

    def check_length(self, length: int) -> None:
        """Refuse prompts that the stock model does not take, or on which its attention is not plainly causal.

        Raises:
            UserError: the prompt is too long.
        """
        check_length(self.subject.model.config, length)

    def written_positions(self, batch: int, length: int) -> Float[Tensor, "token d"]:
        """Position embeddings of all tokens, where they are a writer."""
        return self.subject.positions(length).repeat(batch, 1)

    def real_tokens(self, ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch one one pos"] | None:
        """The tokens to attend to, where tokens attend to later ones too: padding (token 0) lies among those."""
        return None if self.subject.anatomy.causal else (ids != 0)[:, None, None]

    def position_embeddings(self, batch: int, length: int) -> Float[Tensor, "token d"] | float:
        """Learned position embeddings of all tokens: a constant of the residual stream; 0 where there are none."""
        anatomy = self.subject.anatomy
        if anatomy.positions is None:
            return 0.0
        table = attrgetter(anatomy.positions)(self.subject.model)
        return anatomy.place(table, torch.arange(length, device=self.subject.device)).repeat(batch, 1)

    def turns(self, ids: Int[Tensor, "batch pos"], like: Tensor) -> Sequence[Rotary | Told | None]:
        """What every block's attention needs beside queries, keys and values: `rotary`, or what borrowed ones are told.

        This depends on the shape of the prompts alone, so the stock run that tells it is made once for each shape.
        """
        if not self.subject.anatomy.borrowed:
            return self.rotary(like, ids.shape[1])
        key = (*ids.shape, ids.device, self.subject.model.dtype)
        if key not in self._told:
            if len(self._told) >= SHAPES:
                self._told.clear()
            self._told[key] = tell(self.subject, ids)
        return self._told[key]

    def rotary(self, like: Tensor, length: int) -> list[Rotary | None]:
        """Every block's cosines and sines for prompts of a length, in the dtype of `like`; None without rotation."""
        anatomy = self.subject.anatomy
        if anatomy.rotary is None or anatomy.rotate is None:
            return [None] * len(self.blocks)
        module = attrgetter(anatomy.rotary)(self.subject.model)
        places = torch.arange(length, device=like.device)[None]
        kinds = layer_kinds(self.subject.model.config)
        if anatomy.rotary_by_layer:
            made = {kind: Rotary(anatomy.rotate, *module(like, places, kind)) for kind in sorted(set(kinds))}
        else:
            made = dict.fromkeys(kinds, Rotary(anatomy.rotate, *module(like, places)))
        return [None if layer in anatomy.unrotated else made[kind] for layer, kind in enumerate(kinds)]


def _groups(roles: Tensor | None, copies: int) -> list[Tensor] | None:
    if copies == 1:
        return None
    if roles is None:
        raise ValueError(f"{copies} copies of the masks need the role of every token")
    return [(roles == copy).nonzero().flatten() for copy in range(copies)]
