"""The one quantity that mask learning and mask gradients share: a batch's mean objective under some masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

from jaxtyping import Float
from torch import Tensor

from circuitlit.graph import MaskLayout
from circuitlit.masked import Ablated, MaskedModel, Reference
from circuitlit.masked.captured import CapturedLoss
from circuitlit.objective import UNITS, Objective, each_pair
from circuitlit.tasks.pair import Batch

Gate = Callable[..., Float[Tensor, "mask"]]


class MaskedLoss:
    """Mean objective of a batch as a differentiable function of the flat mask vector.

    Args:
        model: the masked forward.
        layout: what the flat vector holds.
        objective: per-example loss; 0 (or least) where the circuit matches the full model.
        capture: True replays a CUDA graph for each batch shape on a GPU.
    """

    def __init__(self, model: MaskedModel, layout: MaskLayout, objective: Objective, capture: bool = True) -> None:
        self.model, self.layout, self.objective = model, layout, objective
        self.capture = capture and layout.copies == 1 and model.subject.captures
        self.capture &= model.shards is None  # no gathering inside a graph
        self._calls: dict[Gate | None, Callable[..., Float[Tensor, ""]]] = {}

    def release(self) -> None:
        """Let go of captured graphs and their memory; the next call captures anew."""
        self._calls.clear()

    @property
    def unit(self) -> str:
        """The objective's unit, and so that of effects on it; empty for an objective of your own."""
        return UNITS.get(self.objective, "")

    def __call__(
        self,
        masks: Float[Tensor, "mask"],
        batch: Batch,
        reference: Reference,
        gate: Gate | None = None,
        inputs: tuple[Tensor, ...] = (),
    ) -> Float[Tensor, ""]:
        """The loss, in the objective's unit.

        Args:
            masks: the flat vector, or what `gate` makes it of.
            batch: the pairs.
            reference: their teacher and ablated writers.
            gate: makes masks of `masks` and `inputs`; captured with the rest.
            inputs: what else it needs, noise for example.
        """
        if gate not in self._calls:
            loss = partial(self._loss, gate, len(inputs))
            self._calls[gate] = CapturedLoss(loss) if self.capture else loss
        tensors = (reference.teacher, *vars(reference.ablated).values(), *vars(batch).values())
        if reference.shared is not None:
            tensors = (*tensors, reference.shared)
        return self._calls[gate](masks, *inputs, *tensors)

    def _loss(self, gate: Gate | None, extra: int, masks: Tensor, *tensors: Tensor) -> Tensor:
        inputs, teacher, tensors = tensors[:extra], tensors[extra], tensors[extra + 1 :]
        writers = len(fields(Ablated))
        ablated, rows = Ablated(*tensors[:writers]), Batch(*tensors[writers : writers + len(fields(Batch))])
        shared = tensors[-1] if len(tensors) > writers + len(fields(Batch)) else None
        between = getattr(gate, "between", False)
        if gate is not None:
            masks = gate(masks, *inputs)
        logits = self.model(self.layout.dense(masks), rows.clean, ablated, rows.positions, rows.roles, between, shared)
        return each_pair(self.objective, logits, teacher, rows).mean()
