"""How much memory a training step will need, reckoned before anything is loaded.

Weights and activations are counted on the meta device, where the very code of the masked forward runs on shapes alone.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout
from circuitlit.masked import Ablated, MaskedModel
from circuitlit.masked.block import MaskedBlock
from circuitlit.model import Subject
from circuitlit.model.load import DTYPES
from circuitlit.run.bench_data import shape_of

DEFAULT_GIB = 80.0
MASK_VECTORS = 9  # log-alphas, gradient, two moments, noise, gates, dense masks, their gradient, one temporary
LOGIT_VECTORS = 5  # logits, float32 log-probabilities, teacher, two temporaries of the loss


def meta_subject(cfg: DictConfig) -> Subject:
    """The model's shapes without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_of(cfg), dtype=DTYPES[cfg.model.dtype])
    return Subject(model, name=cfg.model.name)


def plan(cfg: DictConfig, subject: Subject | None = None) -> dict[str, float]:
    """Bytes of each part of a step's peak.

    Args:
        cfg: model, mask, `data.batch_size`, `tokens`, `answers` and `examples` (training pairs; null is one batch).
        subject: of `meta_subject`, made if not given.

    Returns:
        Bytes by part: `weights`, `masks and optimizer`, `deltas`, `delta gradients`, `panel sums`, `activations`,
        `references`, `logits`.
    """
    subject = subject or meta_subject(cfg)
    graph, config = subject.graph, subject.model.config
    size, rows, length = subject.model.dtype.itemsize, cfg.data.batch_size, cfg.tokens
    stream = rows * length * config.hidden_size * size
    panel = min(cfg.mask.panel, graph.n_layers)
    weights = sum(tensor.nbytes for tensor in (*subject.model.parameters(), *subject.model.buffers()))
    saved = saved_bytes(subject, rows, length, cfg.answers, panel)
    return {
        "weights": weights,
        "masks and optimizer": 4 * MASK_VECTORS * MaskLayout(graph).size,
        "deltas": graph.n_writers * stream,
        "delta gradients": graph.n_writers * stream,
        "panel sums": 2 * panel * graph.readers_per_layer * stream,
        "activations": saved * panel / graph.n_layers if cfg.mask.recompute else saved,
        "references": _references(cfg, subject),
        "logits": LOGIT_VECTORS * 4 * rows * cfg.answers * config.vocab_size,
    }


def largest_batch(cfg: DictConfig, room: float) -> int:
    """Pairs in the largest batch whose plan fits into `room` bytes; 0 if not even one does."""
    subject, given = meta_subject(cfg), cfg.copy()
    sums = []
    for rows in (2, 4):  # one row alone needs fewer copies
        given.data.batch_size = rows
        sums.append(sum(plan(given, subject).values()))
    each = (sums[1] - sums[0]) / 2
    return max(0, int((room - sums[0] + 2 * each) // each))


def room_of(cfg: DictConfig) -> float:
    """Bytes to fill: `gib`, or the GPU's memory, or 80 GiB.

    Raises:
        UserError: `gib` is not positive.
    """
    if cfg.gib is not None:
        if cfg.gib <= 0:
            raise UserError(f"gib={cfg.gib} is not above 0; give the memory of your device")
        return cfg.gib * 2**30
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return DEFAULT_GIB * 2**30


def saved_bytes(subject: Subject, rows: int, length: int, answers: int, panel: int) -> int:
    """Bytes that the masked forward keeps for its backward pass, weights, ledger and masks left out.

    Attention is counted with its probabilities stored, which fused attention kernels avoid.
    """
    graph, config, dtype = subject.graph, subject.model.config, subject.model.dtype
    kept: dict[int, int] = {}
    alive: list[Tensor] = []
    frozen = {p.untyped_storage()._cdata for p in subject.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no address is used twice
        if storage._cdata not in frozen:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        ids = torch.zeros(rows, length, dtype=torch.long)
        positions = torch.zeros(rows, answers, dtype=torch.long)
        masks = torch.zeros(1, graph.n_readers, graph.n_writers, requires_grad=True)
        model = MaskedModel(subject, panel)
        block = model.blocks[0]
        assert isinstance(block, MaskedBlock)
        width = block.head_width * graph.n_heads
        layers = (rows, graph.n_layers, length)
        ablated = Ablated(
            torch.zeros(rows, length, config.hidden_size, dtype=dtype),
            torch.zeros(*layers, width, dtype=dtype),
            torch.zeros(*layers, config.hidden_size, dtype=dtype),
        )
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(masks, ids, ablated, positions)
    given = {t.untyped_storage()._cdata for t in (masks, ablated.embed, ablated.heads, ablated.mlps)}
    return sum(size for storage, size in kept.items() if storage not in given)


def _references(cfg: DictConfig, subject: Subject) -> float:
    """Ablated writers and teacher of one batch, and of all training pairs where their cache may hold them."""
    graph, config = subject.graph, subject.model.config
    writers = 1 + 2 * graph.n_layers  # about: heads' results are as wide as the stream in most models
    pair = cfg.tokens * writers * config.hidden_size * subject.model.dtype.itemsize
    pair += 4 * cfg.answers * config.vocab_size
    cache = (cfg.examples or 0) * pair
    fits = cfg.ablation.kind == "interchange" and cache <= cfg.mask.cache_gib * 2**30
    return cfg.data.batch_size * pair + (cache if fits else 0)


def summary(cfg: DictConfig) -> dict[str, Any]:
    """The plan in GiB, its sum, and the largest batch that fits."""
    subject, room = meta_subject(cfg), room_of(cfg)
    parts = {name: size / 2**30 for name, size in plan(cfg, subject).items()}
    return {
        "model": cfg.model.name,
        "dtype": cfg.model.dtype,
        "edges": subject.graph.n_edges,
        "batch": cfg.data.batch_size,
        "tokens": cfg.tokens,
        "recompute": cfg.mask.recompute,
        "gib": parts,
        "total_gib": sum(parts.values()),
        "room_gib": room / 2**30,
        "largest_batch": largest_batch(cfg, room),
    }
