"""From a configuration to the things that a verb works with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from circuitlit.discover import MaskedLoss, optimal_writers
from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.select import Select, edge_budget
from circuitlit.masked import Ablated, MaskedModel, References, mean_writers
from circuitlit.masked.sharded import shard, share
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.run.ranks import started_by_launcher
from circuitlit.tasks import PairsModule, Splits

log = logging.getLogger(__name__)
PACKAGES = ("circuitlit", "torch", "lightning", "transformers", "peft", "hydra-core", "wandb")


@dataclass(frozen=True)
class Workbench:
    """A subject, its task's pairs and the masked model, ready for any method.

    Attributes:
        subject: the frozen model, on its device.
        data: encoded pairs and their loaders.
        model: the masked forward.
        layout: what the mask vector holds.
        references: teacher and ablated writers; the training split's are cached where they fit.
        count: edges that the circuit is to keep; 0 where the method says how many (sparsity=own).
        select: how a circuit is cut from scores.
        losses: those made so far by `loss`, with their captured CUDA graphs.
    """

    subject: Subject
    data: PairsModule
    model: MaskedModel
    layout: MaskLayout
    references: References
    count: int
    select: Select = "top_k"
    losses: dict[tuple, MaskedLoss] = field(default_factory=dict, compare=False)

    def loss(self, objective: DictConfig, layout: MaskLayout, capture: bool) -> MaskedLoss:
        """The objective under masks; the same one again for equal settings, so that a step is captured only once.

        A captured step keeps the matmul precision that it was captured with.
        """
        key = (str(plain(objective)), layout.roles, layout.sites, capture, torch.get_float32_matmul_precision())
        if key not in self.losses:
            self.losses[key] = MaskedLoss(self.model, layout, instantiate(objective), capture)
        return self.losses[key]

    def cut(self, scores: EdgeScores, provenance: dict[str, object] | None = None) -> Circuit:
        """The circuit of the wanted size, as it is delivered."""
        return Circuit.cut(scores, self.count or own_size(scores), provenance, self.select)

    def fresh_references(self) -> References:
        """References without the training split's cache, for other splits."""
        return References(self.subject, self.references.kind, self.references.mean)


def own_size(scores: EdgeScores) -> int:
    """Edges that the method itself keeps.

    Raises:
        UserError: it keeps none.
    """
    kept = scores.details["kept"]
    assert isinstance(kept, int)
    if kept == 0:
        raise UserError(f"{scores.method} kept no edge; lower method.score.threshold")
    return kept


def device_of(cfg: DictConfig) -> torch.device:
    """The device that the Trainer is going to use."""
    wanted = cfg.trainer.accelerator
    on_gpu = torch.cuda.is_available() and wanted in ("auto", "gpu", "cuda")
    if wanted in ("gpu", "cuda") and not on_gpu:
        raise UserError(f"trainer.accelerator={wanted} but no GPU is visible; leave it at auto")
    if on_gpu and started_by_launcher():  # one process a GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cuda" if on_gpu else "cpu")


def build_subject(cfg: DictConfig) -> Subject:
    """Load the model that `model` and `adapter` describe."""
    model = cfg.model
    if model.source == "tracr":
        from circuitlit.model.tracr import load_tracr

        return load_tracr(model.program, model.name)
    return load_subject(
        name=model.name,
        source=model.source,
        path=model.path,
        revision=model.revision,
        dtype=model.dtype,
        adapter=cfg.adapter.path,
        cache_dir=cfg.paths.cache_dir,
        trust_remote_code=model.trust_remote_code,
        device="cpu" if cfg.strategy.get("shard") else device_of(cfg),  # sharding moves each process's share
    )


def build_workbench(cfg: DictConfig, subject: Subject) -> Workbench:
    """Pairs, masked model and references for one subject."""
    data = encoded(cfg, instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject)
    splits = data.splits
    for name in ("train", "test"):
        if not len(getattr(data, name)):
            raise UserError(f"task {splits.name} has no {name} pairs; raise task.build.n_{name} or give the file some")
    roles = splits.role_names if cfg.mask.roles else ()
    layout = MaskLayout(subject.graph, roles, cfg.mask.sites)
    sharded = cfg.strategy.get("shard")
    model = MaskedModel(subject, cfg.mask.panel, cfg.mask.recompute or bool(sharded))
    if sharded:
        shard(model, sharded.offload, sharded.persist)
        log.info("this process holds %.1f %% of the weights", 100 * share(model))
    constants = _constants(cfg, model, data)
    references = References(subject, cfg.ablation.kind, constants, cfg.mask.cache_gib * 2**30)
    references.fill(data.train.batches(cfg.data.batch_size, max(data.train.lengths)), len(data.train))
    target = cfg.sparsity.target
    count = 0 if target is None else edge_budget(target, layout.n_edges)
    return Workbench(subject, data, model, layout, references, count, cfg.sparsity.select)


def encoded(cfg: DictConfig, splits: Splits, subject: Subject) -> PairsModule:
    """A task's pairs with their loaders; the seed orders the training pairs."""
    assert subject.tokenizer is not None
    settings = cfg.data
    return PairsModule(splits, subject.tokenizer, settings.batch_size, cfg.seed, settings.pad_to, settings.num_workers)


def attribute(cfg: DictConfig, bench: Workbench, rows: Sequence[int] | None = None) -> EdgeScores:
    """Scores of the configured method on the training pairs, or on some of them, in batches of similar length."""
    train = bench.data.train
    pad = max(train.lengths) if cfg.data.pad_to == "max" else None
    order = train.by_length() if rows is None else sorted(rows, key=train.lengths.__getitem__)
    batches = islice(train.batches(cfg.data.batch_size, pad, order), cfg.method.max_batches)
    edges = MaskLayout(bench.subject.graph, bench.layout.roles)
    loss = bench.loss(cfg.method.objective, edges, cfg.mask.capture)
    return instantiate(cfg.method.score)(loss, bench.references, batches)


def _constants(cfg: DictConfig, model: MaskedModel, data: PairsModule) -> Ablated | None:
    """What stands in for the writers where the ablation is by constants."""
    kind, subject = cfg.ablation.kind, model.subject
    if kind not in ("mean", "optimal"):
        return None
    pad = max(data.train.lengths) if cfg.ablation.positional else None
    batches = [batch.to(subject.device) for batch in data.train.batches(cfg.data.batch_size, pad)]
    mean = mean_writers(subject, batches, cfg.ablation.positional)
    if kind == "mean":
        return mean
    start = References(subject, "mean", mean)
    return optimal_writers(
        model, start, instantiate(cfg.objective.loss), batches, cfg.ablation.steps, cfg.ablation.lr, cfg.seed
    )


def provenance(cfg: DictConfig, subject: Subject) -> dict[str, Any]:
    """Where a result comes from: weights, settings, versions, machine."""
    device = subject.device
    return {
        "command": " ".join(sys.argv),
        "model": {"name": subject.name, "d_model": subject.model.config.hidden_size, **subject.provenance},
        "task": plain(cfg.task),
        "adapter": plain(cfg.adapter),
        "ablation": cfg.ablation.kind,
        "mask": plain(cfg.mask),
        "seed": cfg.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain Python types."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
