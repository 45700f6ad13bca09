"""A circuit as a smaller model: nodes that no kept edge leaves are cut out of the weights, and what that loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitlit.arguments import checks_arguments
from circuitlit.compare.effects import PairBed, plain_logits, text_kl, without_nodes
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.finetune import BehaviourChange, behaviour_change
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.heads.text import sample_passages
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.limits import passage_length
from circuitlit.model.logits import logits_at
from circuitlit.model.prune import cut_nodes, load_pruned, pruned, save_pruned
from circuitlit.model.slices import plain_copy
from circuitlit.result import Result
from circuitlit.tasks import PairsModule
from circuitlit.tasks.pair import Batch


@dataclass(frozen=True)
class BesideAblated:
    """Greatest difference of a logit to the node-ablated model's, and the greatest logit."""

    max_logit_difference: float
    max_logit: float


@dataclass(frozen=True, kw_only=True, repr=False)
class PrunedModel(Result):
    """What `prune_model` gives.

    Attributes:
        circuit, task: what was cut by, and what it was measured on.
        n_nodes: heads and MLPs of the model.
        cut: those that are gone.
        parameters: of the whole and the pruned model.
        bytes: of the pruned weights' file.
        held_out: whole against pruned model on test pairs.
        text_kl: KL(whole || pruned) on other text, nats a token.
        beside_ablated: the pruned model is the node-ablated one, up to rounding.
    """

    schema: ClassVar[str] = "pruned_model"
    file: ClassVar[str] = "pruned.json"

    circuit: str
    task: str
    n_nodes: int
    cut: list[str]
    parameters: dict[str, int]
    bytes: int
    held_out: BehaviourChange
    text_kl: Estimate
    beside_ablated: BesideAblated

    def rows(self) -> Iterator[dict[str, Any]]:
        """Accuracy and metric, whole and pruned."""
        for name in ("accuracy", "metric"):
            before, after = (getattr(self.held_out, f"{name}_{when}").value for when in ("base", "tuned"))
            yield {"held_out": name, "whole": before, "pruned": after}


@checks_arguments
def prune_model(
    subject: Subject,
    circuit: Circuit,
    data: PairsModule,
    folder: Path,
    text: Int[Tensor, "passage pos"] | None = None,
    source: str = "",
) -> PrunedModel:
    """Cut, save, reload, and measure what was lost on a task and on other text.

    Args:
        subject: the model, Llama family or GPT-2; adapters are merged.
        circuit: heads and MLPs that none of its reachable edges leaves are cut.
        data: the task's pairs.
        folder: for the smaller model; `load_pruned` reads it.
        text: passages; None samples them from the model.
        source: of the circuit, for the result.

    Raises:
        UserError: a circuit of another graph, or a model that cannot be cut.
    """
    if subject.graph != circuit.graph:
        raise UserError(f"{source or 'the circuit'} is of another graph than its model; name a run's folder")
    whole, cut = plain_copy(subject), cut_nodes(circuit.graph, circuit.reachable)
    assert whole.tokenizer is not None
    nbytes = save_pruned(whole.model, pruned(whole.model, cut), cut, whole.tokenizer, folder)
    small = load_pruned(folder).to(whole.device)  # pyright: ignore[reportArgumentType]
    bed = PairBed(whole, data.test.batches(data.eval_batch_size))

    def logits(batch: Batch) -> Tensor:
        return logits_at(small, batch.clean, batch.positions)

    outcome = bed.measure(logits)
    ids = sample_passages(whole, 16, passage_length(whole.model.config), 0) if text is None else text
    with torch.no_grad():
        moved = text_kl(whole, ids, lambda: small(ids).logits)
        first = bed.batches[0]
        masks = MaskLayout(whole.graph).dense(without_nodes(whole.graph, cut)[0].to(whole.device, torch.float32))
        ablated = References(whole, "zero").compute(first).ablated
        beside = MaskedModel(whole)(masks, first.clean, ablated, first.positions)
        off = float((beside - logits(first)).abs().max())
        size = float(plain_logits(whole, first).abs().max())
    return PrunedModel(
        circuit=source,
        task=data.splits.name,
        n_nodes=len(circuit.graph.nodes),
        cut=cut,
        parameters={"whole": _count(whole.model), "pruned": _count(small)},
        bytes=nbytes,
        held_out=behaviour_change(bed.full, outcome),
        text_kl=mean_estimate(moved, None),
        beside_ablated=BesideAblated(off, size),
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
