"""The one quantity that mask learning and mask gradients share: a batch's mean objective under some masks."""

from __future__ import annotations

from dataclasses import fields

from jaxtyping import Float
from torch import Tensor

from circuitlit.graph import MaskLayout
from circuitlit.masked import Ablated, MaskedModel, Reference
from circuitlit.masked.captured import CapturedLoss
from circuitlit.objective import Objective
from circuitlit.tasks.pair import Batch


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
        capture = capture and layout.copies == 1 and model.shards is None  # no gathering inside a graph
        self._call = CapturedLoss(self._loss) if capture else self._loss

    def __call__(self, masks: Float[Tensor, "mask"], batch: Batch, reference: Reference) -> Float[Tensor, ""]:
        """The loss, in the objective's unit."""
        tensors = list(vars(batch).values())
        return self._call(masks, reference.teacher, *vars(reference.ablated).values(), *tensors)

    def _loss(self, masks: Tensor, teacher: Tensor, *tensors: Tensor) -> Tensor:
        writers = len(fields(Ablated))
        ablated, rows = Ablated(*tensors[:writers]), Batch(*tensors[writers:])
        logits = self.model(self.layout.dense(masks), rows.clean, ablated, rows.positions, rows.roles)
        return self.objective(logits, teacher, rows).mean()
