"""From a configuration to the things that a verb works with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from inspect import signature
from itertools import islice
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli.progress import told
from circuitlit.cli.ranks import join, mean_over_ranks, rank, started_by_launcher, world
from circuitlit.discover import MaskedLoss, optimal_writers
from circuitlit.discover.reader_gradients import Each
from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.select import Select, edge_budget
from circuitlit.masked import Ablated, MaskedModel, References, mean_writers
from circuitlit.masked.sharded import shard, share
from circuitlit.model import Subject
from circuitlit.model.limits import check_rows
from circuitlit.model.load import load_subject
from circuitlit.tasks import PairsModule, Splits
from circuitlit.tasks.faults import BadRows
from circuitlit.tasks.jsonl import DROP

log = logging.getLogger(__name__)
GATHERING = ("mask_gradients", "random_scores")  # methods that need weights only where the masked model runs
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
        known = self.references
        return References(self.subject, known.kind, known.mean)


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
    """Load the model that `model` and `adapter` describe.

    Raises:
        UserError: it cannot be loaded, or its weights are not all numbers.
    """
    model = cfg.model
    if model.source == "tracr":
        from circuitlit.model.tracr import load_tracr

        return load_tracr(model.program, model.name)
    return load_subject(
        model.path or model.name,
        source=model.source,
        name=model.name,
        revision=model.revision,
        dtype=model.dtype,
        adapter=cfg.adapter.path,
        cache_dir=cfg.paths.cache_dir,
        trust_remote_code=model.trust_remote_code,
        device="cpu" if shards(cfg) else device_of(cfg),  # sharding moves each process's share
        in_pieces=shards(cfg),
    )


def build_workbench(cfg: DictConfig, subject: Subject, model: MaskedModel | None = None) -> Workbench:
    """Pairs, masked model (made if not given) and references for one subject."""
    data = encoded(cfg, instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject)
    splits = data.splits
    for name in ("train", "test"):
        if not len(getattr(data, name)):
            source = cfg.task.build.get("path")
            remedy = f'give {source} lines with "split": "{name}"' if source else f"raise task.build.n_{name}"
            raise UserError(f"task {splits.name} has no {name} pairs; {remedy}")
    roles = splits.role_names if cfg.mask.roles else ()
    layout = MaskLayout(subject.graph, roles, cfg.mask.sites)
    model = model or masked_model(cfg, subject)
    constants = _constants(cfg, model, data)
    budget, capture = cfg.mask.cache_gib * 2**30, cfg.mask.capture and model.shards is None
    references = References(subject, cfg.ablation.kind, constants, budget, capture)
    references.fill(data.train.batches(cfg.data.batch_size, max(data.train.lengths)), len(data.train))
    target = cfg.sparsity.target
    count = 0 if target is None else edge_budget(target, layout.n_edges)
    return Workbench(subject, data, model, layout, references, count, cfg.sparsity.select)


def shards(cfg: DictConfig) -> bool:
    """True where the weights are shared out, over several processes or between a GPU and its host."""
    settings = cfg.strategy.get("shard")
    return bool(settings) and (settings.offload or world() > 1)


def masked_model(cfg: DictConfig, subject: Subject) -> MaskedModel:
    """The masked forward; its weights are shared out where the strategy says so.

    Raises:
        UserError: `mask.recompute` is none of its values.
    """
    if cfg.mask.recompute not in (True, False, "reads"):
        raise UserError(f"mask.recompute={cfg.mask.recompute} is not one of false, reads, true")
    model = MaskedModel(subject, cfg.mask.panel, shards(cfg) or cfg.mask.recompute)
    if shards(cfg):
        device = device_of(cfg)
        join(device)
        shard(model, device, subject.source, cfg.strategy.shard.offload)
        subject.source = None
        log.info("this process holds %.1f %% of the weights", 100 * share(model))
    return model


def encoded(cfg: DictConfig, splits: Splits, subject: Subject) -> PairsModule:
    """A task's pairs with their loaders; the seed orders the training pairs."""
    assert subject.tokenizer is not None
    size, pad_to, workers = cfg.data.batch_size, cfg.data.pad_to, cfg.data.num_workers
    try:
        data = PairsModule(splits, subject.tokenizer, size, cfg.seed, pad_to, workers)
    except BadRows as error:
        raise BadRows(error.faults, error.total, DROP if "drop_bad" in cfg.task.build else "") from None
    for name in ("train", "val", "test"):
        check_rows(subject.model.config, getattr(data, name).rows, name)
    return data


def attribute(
    cfg: DictConfig,
    bench: Workbench,
    rows: Sequence[int] | None = None,
    shared: bool = False,
    each: Each | None = None,
) -> EdgeScores:
    """Scores of the configured method on the training pairs, or on some of them, in batches of similar length.

    Args:
        cfg: the method's settings, and of the batches.
        bench: subject, pairs and masked model.
        rows: which training pairs; None takes all.
        shared: True gives each process its share of the batches and all of them the mean; the same scores, but for
            rounding.
        each: is given each pair's own scores, by a method that has them.

    Raises:
        UserError: sharded weights, and a method that reads weights while they are not gathered.
    """
    if bench.model.shards is not None and cfg.method.name not in GATHERING:
        raise UserError(f"method={cfg.method.name} needs whole weights; use method={GATHERING[0]}, or strategy=ddp")
    train, size = bench.data.train, cfg.data.batch_size
    pad = max(train.lengths) if cfg.data.pad_to == "max" else None
    order = train.by_length() if rows is None else sorted(rows, key=train.lengths.__getitem__)
    order = order[: None if cfg.method.max_batches is None else size * cfg.method.max_batches]
    count = -(-len(order) // size)
    numbers = _share(cfg, bench, count) if shared else None
    edges = MaskLayout(bench.subject.graph, bench.layout.roles)
    loss = bench.loss(cfg.method.objective, edges, cfg.mask.capture)
    score, batches = instantiate(cfg.method.score), train.batches(size, pad, order)
    if cfg.method.get("by_pair"):  # others take all batches at once
        batches = told(batches, "batches", count)
    if numbers is None:
        return score(loss, bench.references, batches, **({} if each is None else {"each": each}))
    own = islice(batches, numbers.start, None, numbers.step)
    more = {"numbers": numbers} if "numbers" in signature(score).parameters else {}
    pairs = sum(len(order[size * number : size * (number + 1)]) for number in numbers)
    scores = score(loss, bench.references, own, **more)
    return replace(scores, values=mean_over_ranks(scores.values, pairs, bench.subject.device))


def _share(cfg: DictConfig, bench: Workbench, count: int) -> range | None:
    """This process's batches; None where each has to see all of them."""
    if world() == 1 or not cfg.method.get("by_pair") or count < world():
        return None
    if bench.model.shards is not None and count % world():
        return None  # sharded weights make every forward one of all processes
    return range(rank(), count, world())


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
