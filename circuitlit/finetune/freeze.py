"""Nodes whose weights stay as they are while the rest of a model is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph.nodes import known_nodes
from circuitlit.model import Subject
from circuitlit.model.adapters import has_adapters
from circuitlit.model.slices import slices


class Frozen(Callback):
    """Puts some nodes' weights back after every step, so that they are exactly what they were.

    Keys and values of grouped-query attention are frozen only with all heads of their group.

    Args:
        subject: whose model is tuned, all weights.
        nodes: heads and MLPs.

    Raises:
        UserError: an unknown node, or a model with adapters, which change what frozen weights do.
    """

    def __init__(self, subject: Subject, nodes: Sequence[str]) -> None:
        if has_adapters(subject.model):
            raise UserError("tune.freeze needs adapter=none: an adapter's factors go on frozen modules, too")
        self.nodes, self._subject = known_nodes(subject.graph, nodes), subject
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights."""
        self._kept = [(part, part.clone()) for part in slices(self._subject, self.nodes)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Put them back."""
        for part, own in self._kept:
            part.copy_(own)
