"""How much memory a training step will need, reckoned before anything is loaded.

Weights and activations are counted on the meta device, where the very code of the masked forward runs on shapes alone.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from transformers import AutoModelForCausalLM

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.benchmark import MemoryPlan, MemoryPlans, dtype_of, machine_of
from circuitlit.evaluate.cost.footprint import Footprint
from circuitlit.graph import MaskLayout
from circuitlit.masked import Ablated, MaskedModel
from circuitlit.masked.ablation import Kind
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.forward import Recompute
from circuitlit.model import Subject
from circuitlit.model.packed import block_matrices

DEFAULT_GIB = 80.0
UNPACKING = 8  # bytes a number of the matrix that is being unpacked: places, values, result
# Blocks beside those of a panel; DeepSpeed's five are fitted to 35.3 GiB at 13B and 67.2 at 34B, panels of two.
AHEAD = {"deepspeed": 5, "fsdp": 1, "one_block": 0}
MASK_VECTORS = 9  # log-alphas, gradient, two moments, noise, gates, dense masks, their gradient, one temporary


@dataclass(frozen=True)
class StepShape:
    """What the memory of a training step depends on, beside the model.

    Attributes:
        pairs: in a micro-batch, on each device.
        tokens, answers: of a prompt, and of an answer.
        examples: training pairs, whose references are kept where they fit; 0 is none.
        panel, recompute: of the masked forward, see `MaskedModel`.
        ablation: what stands in for cut edges.
        cache_gib: memory for the training pairs' references.
        strategy, devices: how many processes share the work, and how.
        engine: that shares the weights out over them, or "one_block", which has a block's at a time; None for neither.
        offload: an engine keeps its weights in the host's memory.
        packed_bits: that each weight of a block's matrices takes in its file; None where it is not packed there.

    Raises:
        UserError: a number or a choice that no step has.
    """

    pairs: int
    tokens: int
    answers: int = 1
    examples: int = 0
    panel: int = 5
    recompute: Recompute = False
    ablation: Kind = "interchange"
    cache_gib: float = 4.0
    strategy: str = "single"
    devices: int = 1
    engine: Literal["deepspeed", "fsdp", "one_block"] | None = None
    offload: bool = False
    packed_bits: float | None = None

    def __post_init__(self) -> None:
        least = {"pairs": 1, "tokens": 1, "answers": 1, "examples": 0, "panel": 1, "devices": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"{name}={getattr(self, name)} is below {bound}; a step has at least as many")
        if self.recompute not in (False, True, "reads") or self.engine not in (None, *AHEAD):
            raise UserError(
                f"recompute={self.recompute} and engine={self.engine}: give one of False, True and 'reads', and one of "
                f"None, {', '.join(AHEAD)}"
            )


@checks_arguments
def plan_memory(subject: Subject, shape: StepShape, gib: float | None = None) -> MemoryPlans:
    """How much memory a training step takes, without running one, and the largest batch that fits.

    Args:
        subject: a loaded model, or the shapes of one.
        shape: of the step.
        gib: memory that may be filled; None takes the GPU's, or 80.

    Raises:
        UserError: `gib` is not positive and finite.
        ValueError: the model's class is none of transformers'.
    """
    subject, room = subject if subject.device.type == "meta" else meta_copy(subject), _room(gib)
    parts = {name: size / 2**30 for name, size in memory_parts(subject, shape).items()}
    found = MemoryPlan(
        model=subject.name,
        dtype=dtype_of(subject),
        edges=subject.graph.n_edges,
        batch=shape.pairs,
        tokens=shape.tokens,
        recompute=shape.recompute,
        strategy=shape.strategy,
        devices=shape.devices,
        gib=parts,
        total_gib=sum(parts.values()),
        room_gib=room / 2**30,
        largest_batch=largest_batch(subject, shape, room),
        panel=shape.panel,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return MemoryPlans(bench="plan", what=subject.name, machine=machine_of(device), measured=[found])


def that_fits(subject: Subject, shape: StepShape, gib: float | None = None) -> tuple[StepShape, float, float]:
    """The fastest way to run a step that its plan gives room for; the thriftiest where there is none.

    Tried are the step's own settings, then reads made anew, then whole panels, then panels of one block.

    Args:
        subject: a loaded model, or the shapes of one.
        shape: of the step.
        gib: memory that may be filled; None takes the GPU's, or 80.

    Returns:
        The step's shape, GiB that it is planned to take, and GiB that may be filled.
    """
    subject, room = subject if subject.device.type == "meta" else meta_copy(subject), _room(gib)
    ways = [(shape.panel, shape.recompute), (shape.panel, "reads"), (shape.panel, True), (1, True)]
    need = 0.0
    for panel, recompute in dict.fromkeys(ways):
        shape = replace(shape, panel=panel, recompute=recompute)
        need = sum(memory_parts(subject, shape).values())
        if need <= room:
            break
    return shape, need / 2**30, room / 2**30


def meta_copy(subject: Subject) -> Subject:
    """The shapes of a loaded model, without its adapters.

    Raises:
        ValueError: its class is none of transformers'.
    """
    config = deepcopy(subject.model.config)
    with torch.device("meta"):
        return Subject(AutoModelForCausalLM.from_config(config, dtype=subject.model.dtype), name=subject.name)


def memory_parts(subject: Subject, shape: StepShape) -> dict[str, float]:
    """Bytes of each part of a step's peak on each device.

    Args:
        subject: on the meta device.
        shape: of the step.

    Returns:
        By part: `weights` (and `gathered weights`), `masks and optimizer`, `deltas`, `delta gradients`, `panel sums`,
        `activations`, `references`.
    """
    return {
        **_weights(subject, shape),
        "masks and optimizer": 4 * MASK_VECTORS * MaskLayout(subject.graph).size,
        **_ledger(subject, shape),
        "activations": _activations(subject, shape),
        "references": _references(subject, shape),
    }


def largest_batch(subject: Subject, shape: StepShape, room: float) -> int:
    """Pairs in the largest batch whose plan fits into `room` bytes; 0 if not even one does."""
    sizes = (2, 6)  # one row alone needs fewer copies
    few, more = (sum(memory_parts(subject, replace(shape, pairs=rows)).values()) for rows in sizes)
    each = (more - few) / 4
    return max(0, int((room - few + 2 * each) // each))


def _room(gib: float | None) -> float:
    """Bytes to fill."""
    if gib is not None:
        if not 0 < gib < math.inf:
            raise UserError(f"gib={gib} is not above 0 and finite; give the memory of your device")
        return gib * 2**30
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return DEFAULT_GIB * 2**30


def step_bytes(subject: Subject, shape: StepShape) -> int:
    """Most bytes that one forward and backward pass hold at once: counted as they run on shapes alone.

    Weights, masks, references and the batch are left out. Attention is counted as fused kernels run it, without its
    probabilities; models that bound their scores (Gemma 2) have none, and theirs are counted.

    Raises:
        UserError: the model's attention is borrowed.
    """
    if subject.anatomy.borrowed:
        raise UserError("no plan can be made of attention that runs as its own code, which needs more than shapes")
    graph, config, dtype = subject.graph, subject.model.config, subject.model.dtype
    rows, length = shape.pairs, shape.tokens
    with (
        torch.device("meta"),
        patch.object(F, "scaled_dot_product_attention", _fused_attention),
        Footprint() as footprint,
    ):
        footprint.ignore(*subject.model.parameters(), *subject.model.buffers())
        ids = torch.zeros(rows, length, dtype=torch.long)
        positions = torch.zeros(rows, shape.answers, dtype=torch.long)
        masks = torch.zeros(1, graph.n_readers, graph.n_writers, requires_grad=True)
        model = MaskedModel(subject, shape.panel, shape.recompute)
        block = model.blocks[0]
        assert isinstance(block, MaskedBlock)
        layers, width = (rows, graph.n_layers, length), block.head_width * graph.n_heads
        ablated = Ablated(
            torch.zeros(rows, length, config.hidden_size, dtype=dtype),
            torch.zeros(*layers, width, dtype=dtype),
            torch.zeros(*layers, config.hidden_size, dtype=dtype),
        )
        before = footprint.restart()
        with torch.enable_grad():
            loss = model(masks, ids, ablated, positions).float().log_softmax(-1).sum()
            torch.autograd.grad(loss, masks)
    return footprint.peak - before


class _FusedAttention(Function):
    """What a fused kernel keeps of attention: its inputs and its result. It computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result's shape."""
        made = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, made)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients' shapes."""
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return _FusedAttention.apply(q, k, v)  # type: ignore[return-value]


def _shallow(subject: Subject, layers: int) -> Subject:
    """The same model with its first layers alone."""
    config = deepcopy(subject.model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        return Subject(AutoModelForCausalLM.from_config(config, dtype=subject.model.dtype))


def _ledger(subject: Subject, shape: StepShape) -> dict[str, float]:
    """What grows with the number of writers, or of a panel's readers."""
    graph, model = subject.graph, subject.model
    stream = shape.pairs * shape.tokens * model.config.hidden_size * model.dtype.itemsize
    panel = min(shape.panel, graph.n_layers)
    return {
        "deltas": graph.n_writers * stream,
        "delta gradients": graph.n_writers * stream,
        "panel sums": panel * graph.readers_per_layer * stream,
    }


def _activations(subject: Subject, shape: StepShape) -> float:
    """All else that a step holds at its height; of deep models reckoned from shallow ones, as it is linear in depth."""

    def beyond(model: Subject) -> float:
        return step_bytes(model, shape) - sum(_ledger(model, shape).values())

    layers, panel = subject.graph.n_layers, shape.panel
    if layers <= 2 * panel:
        return max(0.0, beyond(subject))
    few, more = (beyond(_shallow(subject, number)) for number in (panel, 2 * panel))
    return max(0.0, more + (more - few) / panel * (layers - 2 * panel))


def _weights(subject: Subject, shape: StepShape) -> dict[str, float]:
    """The weights that a device holds, and those that an engine gathers or unpacks: a panel's blocks, and some more."""
    model, layers = subject.model, subject.graph.n_layers
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if shape.engine is None:
        return {"weights": whole}
    kept, at_once, unpacking = whole / shape.devices, shape.panel + AHEAD[shape.engine], 0.0
    if shape.engine == "one_block":
        kept = whole
        if shape.packed_bits is not None:
            matrices = [module.weight for module in block_matrices(model, model.config).values()]
            kept += sum(shape.packed_bits / 8 * own.numel() - own.nbytes for own in matrices)
            unpacking = UNPACKING * max(own.numel() for own in matrices)
        elif not shape.offload:
            at_once = 0  # plain weights stay
    block = sum(p.nbytes for p in subject.anatomy.blocks(model)[0].parameters())
    gathered = min(at_once, layers) * block + unpacking
    return {"weights": kept / layers if shape.offload else kept, "gathered weights": gathered}


def _references(subject: Subject, shape: StepShape) -> float:
    """Ablated writers and teacher of one batch, and of all training pairs where their cache may hold them."""
    graph, config = subject.graph, subject.model.config
    writers = 1 + 2 * graph.n_layers  # about: heads' results are as wide as the stream in most models
    written = shape.tokens * writers * config.hidden_size * subject.model.dtype.itemsize
    teacher = 4 * shape.answers * config.vocab_size
    cache = shape.examples * (teacher + (written if shape.ablation == "interchange" else 0))  # constants are shared
    fits = cache <= shape.cache_gib * 2**30
    return shape.pairs * (written + teacher) + (cache if fits else 0)
