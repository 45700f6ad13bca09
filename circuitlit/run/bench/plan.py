"""How much memory a training step will need, reckoned before anything is loaded.

Weights and activations are counted on the meta device, where the very code of the masked forward runs on shapes alone.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from circuitlit.cli.ranks import planned
from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout
from circuitlit.masked import Ablated, MaskedModel
from circuitlit.masked.block import MaskedBlock
from circuitlit.model import Subject
from circuitlit.model.load import DTYPES
from circuitlit.run.bench.data import shape_of
from circuitlit.run.bench.footprint import Footprint

DEFAULT_GIB = 80.0
MASK_VECTORS = 9  # log-alphas, gradient, two moments, noise, gates, dense masks, their gradient, one temporary


def meta_subject(cfg: DictConfig) -> Subject:
    """The model's shapes without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_of(cfg), dtype=DTYPES[cfg.model.dtype])
    return Subject(model, name=cfg.model.name)


def meta_copy(subject: Subject) -> Subject:
    """The shapes of a loaded model, without its adapters.

    Raises:
        ValueError: its class is none of transformers'.
    """
    config = deepcopy(subject.model.config)
    with torch.device("meta"):
        return Subject(AutoModelForCausalLM.from_config(config, dtype=subject.model.dtype), name=subject.name)


def plan(cfg: DictConfig, subject: Subject | None = None) -> dict[str, float]:
    """Bytes of each part of a step's peak.

    Args:
        cfg: model, mask, strategy, `data.batch_size` (pairs on each device), `tokens`, `answers` and `examples`
            (training pairs; null is one batch).
        subject: of `meta_subject`, made if not given.

    Returns:
        Bytes by part on each device: `weights` (and `gathered weights`), `masks and optimizer`, `deltas`,
        `delta gradients`, `panel sums`, `activations`, `references`.
    """
    subject = subject or meta_subject(cfg)
    return {
        **_weights(cfg, subject),
        "masks and optimizer": 4 * MASK_VECTORS * MaskLayout(subject.graph).size,
        **_ledger(cfg, subject),
        "activations": _activations(cfg, subject),
        "references": _references(cfg, subject),
    }


def largest_batch(cfg: DictConfig, room: float, subject: Subject | None = None) -> int:
    """Pairs in the largest batch whose plan fits into `room` bytes; 0 if not even one does."""
    subject, given = subject or meta_subject(cfg), cfg.copy()
    sums = []
    for rows in (2, 6):  # one row alone needs fewer copies
        given.data.batch_size = rows
        sums.append(sum(plan(given, subject).values()))
    each = (sums[1] - sums[0]) / 4
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


def step_bytes(subject: Subject, cfg: DictConfig) -> int:
    """Most bytes that one forward and backward pass hold at once: counted as they run on shapes alone.

    Weights, masks, references and the batch are left out. Attention is counted with its probabilities stored, which
    fused attention kernels avoid.
    """
    graph, config, dtype = subject.graph, subject.model.config, subject.model.dtype
    rows, length = cfg.data.batch_size, cfg.tokens
    with torch.device("meta"), Footprint() as footprint:
        footprint.ignore(*subject.model.parameters(), *subject.model.buffers())
        ids = torch.zeros(rows, length, dtype=torch.long)
        positions = torch.zeros(rows, cfg.answers, dtype=torch.long)
        masks = torch.zeros(1, graph.n_readers, graph.n_writers, requires_grad=True)
        model = MaskedModel(subject, cfg.mask.panel, sharded(cfg) or cfg.mask.recompute)
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


def _shallow(subject: Subject, layers: int) -> Subject:
    """The same model with its first layers alone."""
    config = deepcopy(subject.model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        return Subject(AutoModelForCausalLM.from_config(config, dtype=subject.model.dtype))


def _ledger(cfg: DictConfig, subject: Subject) -> dict[str, float]:
    """What grows with the number of writers, or of a panel's readers."""
    graph, model = subject.graph, subject.model
    stream = cfg.data.batch_size * cfg.tokens * model.config.hidden_size * model.dtype.itemsize
    panel = min(cfg.mask.panel, graph.n_layers)
    return {
        "deltas": graph.n_writers * stream,
        "delta gradients": graph.n_writers * stream,
        "panel sums": panel * graph.readers_per_layer * stream,
    }


def _activations(cfg: DictConfig, subject: Subject) -> float:
    """All else that a step holds at its height; of deep models reckoned from shallow ones, as it is linear in depth."""

    def beyond(model: Subject) -> float:
        return step_bytes(model, cfg) - sum(_ledger(cfg, model).values())

    layers, panel = subject.graph.n_layers, cfg.mask.panel
    if layers <= 2 * panel:
        return max(0.0, beyond(subject))
    few, more = (beyond(_shallow(subject, number)) for number in (panel, 2 * panel))
    return max(0.0, more + (more - few) / panel * (layers - 2 * panel))


def sharded(cfg: DictConfig) -> bool:
    """True where the strategy will share the weights out."""
    settings = cfg.strategy.get("shard")
    return bool(settings) and (settings.offload or planned(cfg) > 1)


def _weights(cfg: DictConfig, subject: Subject) -> dict[str, float]:
    """The weights that a device holds, and where they are shared out the blocks that are gathered at once."""
    model = subject.model
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if not sharded(cfg):
        return {"weights": whole}
    block = sum(p.nbytes for p in subject.anatomy.blocks(model)[0].parameters())
    part = block / planned(cfg)  # on its way from the host
    panel = min(cfg.mask.panel, subject.graph.n_layers)
    return {
        "weights": part if cfg.strategy.shard.offload else whole / planned(cfg),
        "gathered weights": (panel + 1) * block,  # a panel, and the next block on its way
    }


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
        "recompute": sharded(cfg) or cfg.mask.recompute,
        "strategy": cfg.strategy.name,
        "devices": planned(cfg),
        "gib": parts,
        "total_gib": sum(parts.values()),
        "room_gib": room / 2**30,
        "largest_batch": largest_batch(cfg, room, subject),
    }
