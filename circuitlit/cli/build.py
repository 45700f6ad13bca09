"""From a configuration to the things that a verb works with."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli.configs import preset
from circuitlit.cli.presets import known_presets
from circuitlit.cli.ranks import join, mean_over_ranks, rank, started_by_launcher, world
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Ablation, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.verdict import Bars
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.masked import MaskedModel
from circuitlit.masked.engines import deepspeed_shard, fsdp_shard
from circuitlit.masked.one_block import one_block
from circuitlit.model import Subject
from circuitlit.model.limits import check_rows
from circuitlit.model.load import load_subject
from circuitlit.progress import say
from circuitlit.result import PACKAGES, version
from circuitlit.tasks import Pairs, PairsModule, in_chat
from circuitlit.tasks.faults import BadRows
from circuitlit.tasks.jsonl import DROP
from circuitlit.tasks.splits import SPLITS

log = logging.getLogger(__name__)


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


def build_subject(cfg: DictConfig, unchecked: bool = False) -> Subject:
    """Load the model that `model` and `adapter` describe; `unchecked` also one that needs a check first.

    Raises:
        UserError: it cannot be loaded, its weights are not all numbers, or it needs a check.
    """
    model = cfg.model
    if model.source == "tracr":
        from circuitlit.model.tracr import load_tracr

        return load_tracr(model.program, model.name)
    if model.source == "random":
        from circuitlit.cli.random_model import random_reader

        return random_reader(cfg)
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
        unchecked=unchecked,
    )


def build_workbench(
    cfg: DictConfig, subject: Subject, model: MaskedModel | None = None, splits: Pairs | None = None
) -> Workbench:
    """Pairs, masked model (both made if not given) and references for one subject."""
    data = build_pairs(cfg, subject) if splits is None else encoded(cfg, splits, subject)
    for name in ("train", "test"):
        if not len(getattr(data, name)):
            source = cfg.task.build.get("path")
            remedy = f'give {source} lines with "split": "{name}"' if source else f"raise task.build.n_{name}"
            raise UserError(f"task {data.splits.name} has no {name} pairs; {remedy}")
    more = {key: value for key, value in cfg.ablation.items() if key != "kind"}
    return Workbench.build(
        subject,
        data,
        cfg.sparsity.target,
        Ablation(cfg.ablation.kind, objective=instantiate(cfg.objective.loss), **more),
        select=cfg.sparsity.select,
        roles=cfg.mask.roles,
        sites=cfg.mask.sites,
        model=model or masked_model(cfg, subject),
        capture=cfg.mask.capture,
        cache_gib=cfg.mask.cache_gib,
        host_gib=cfg.mask.host_gib,
        precision=training_precision(cfg, subject),
        seed=cfg.seed,
    )


def training_precision(cfg: DictConfig, subject: Subject) -> str | None:
    """Of float32 matrix products while masks are trained; None on a CPU, which has but one."""
    return cfg.matmul_precision if subject.device.type == "cuda" else None


def build_method(cfg: DictConfig) -> Method:
    """The attribution method of the group `method`."""
    own = cfg.method
    return Method(own.name, instantiate(own.score), instantiate(own.objective), own.max_batches)


ENGINES = {"deepspeed": deepspeed_shard, "fsdp": fsdp_shard, "one_block": one_block}


def shards(cfg: DictConfig) -> bool:
    """True where the weights are shared out, over several processes or between a GPU and its host, or stay packed."""
    return bool(cfg.strategy.get("shard"))


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
        join(device, alone=True)
        ENGINES[cfg.strategy.shard.engine](model, device, subject.source, cfg.strategy.shard.offload)
        subject.source = None
        log.info("this process holds %.1f %% of the weights", 100 * model.shards.share)
    return model


def build_pairs(cfg: DictConfig, subject: Subject) -> PairsModule:
    """The pairs of the group `task`, encoded for a model, with their loaders."""
    return encoded(cfg, instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject)


def build_splits(cfg: DictConfig, subject: Subject, wanted: int | None) -> Pairs:
    """A task's pairs, with test pairs of a larger draw behind its own; fewer than wanted where there are no more."""
    build, own = partial(instantiate, cfg.task.build), cfg.task.build.get("n_test")
    splits = build()(tokenizer=subject.tokenizer)
    if wanted is None or own is None:
        return splits
    size, words = wanted, {"n_new_words": 0} if "n_new_words" in cfg.task.build else {}
    while size > own:
        try:
            larger = build(n_test=size, **words)(tokenizer=subject.tokenizer)
        except UserError:  # so many cannot be made
            size //= 2
        else:
            splits = splits.with_more_tests(larger, wanted)
            break
    if len(splits.test) < wanted:
        say(f"task {cfg.task.name} gives {len(splits.test)} test pairs, not the {wanted} of trust.errors.pairs")
    return splits


def encoded(cfg: DictConfig, splits: Pairs, subject: Subject) -> PairsModule:
    """A task's pairs with their loaders; the seed orders the training pairs."""
    assert subject.tokenizer is not None
    splits = replace(splits, name=cfg.task.name)
    if cfg.data.get("chat"):
        splits = in_chat(splits, subject.tokenizer)
    size, pad_to, workers = cfg.data.batch_size, cfg.data.pad_to, cfg.data.num_workers
    try:
        data = PairsModule(splits, subject.tokenizer, size, cfg.seed, pad_to, workers, cfg.data.eval_batch_size)
    except BadRows as error:
        raise BadRows(error.faults, error.total, DROP if "drop_bad" in cfg.task.build else "") from None
    for name in SPLITS:
        check_rows(subject.model.config, getattr(data, name).rows, name, getattr(data.splits, name))
    return data


BARS = ("controls", "control_pairs", "probe_pairs", "max_kl_share", "least_pairs", "smoke", "published_pairs")


def build_bars(cfg: DictConfig) -> Bars:
    """What a circuit is compared with, and has to clear."""
    return Bars(**{name: cfg.evaluate[name] for name in BARS})


def build_baselines(cfg: DictConfig) -> list[Method]:
    """The attributions of `evaluate.baselines`."""
    return [preset_method(cfg, name) for name in cfg.evaluate.baselines]


def preset_method(cfg: DictConfig, name: str) -> Method:
    """An attribution as its preset has it."""
    own = cfg.copy()
    own.method = preset("method", name)
    return build_method(own)


def build_procedure(cfg: DictConfig, circuit: Circuit, by: str) -> dict[str, Any]:
    """How a circuit is found anew: the arguments of `measure_stability` and `measure_robustness` that say so.

    An attribution's circuit is found by `method` if that is its own, else by the preset that has its name.
    """
    made, method = circuit.scores.method, build_method(cfg)
    if by == "auto" and circuit.scores.kind == "effect" and made != method.name:
        method = preset_method(cfg, made) if made in known_presets("method") else None
    return {
        "method": method,
        "masks": None if by == "auto" else by == "masks",
        "schedule": instantiate(cfg.mask.schedule),
        "gates": instantiate(cfg.mask.gates),
        "error_weight": cfg.objective.get("error_weight"),
    }


def attribute(cfg: DictConfig, bench: Workbench, shared: bool = False) -> EdgeScores:
    """Scores of the configured method on the training pairs.

    Args:
        cfg: the method's settings.
        bench: subject, pairs and masked model.
        shared: True gives each process its share of the batches and all of them the mean; the same scores, but for
            rounding.
    """
    method = build_method(cfg)
    rows = bench.batch_rows(method)
    part = _share(method, bench, len(rows)) if shared else None
    scores = bench.score(method, part=part)
    if part is None:
        return scores
    pairs = sum(len(rows[number]) for number in part)
    return replace(scores, values=mean_over_ranks(scores.values, pairs, bench.subject.device))


def _share(method: Method, bench: Workbench, count: int) -> range | None:
    """This process's batches; None where each has to see all of them."""
    if world() == 1 or not method.traits.mean_of_pairs or count < world():
        return None
    if bench.model.shards is not None and count % world():
        return None  # sharded weights make every forward one of all processes
    return range(rank(), count, world())


def provenance(cfg: DictConfig, subject: Subject) -> dict[str, Any]:
    """Where a result comes from: weights, settings, versions, machine."""
    device = subject.device
    return {
        "command": " ".join(sys.argv),
        "model": {"name": subject.name, "d_model": subject.model.config.hidden_size, **subject.provenance},
        "task": plain(cfg.task),
        **({"chat": True} if cfg.data.get("chat") else {}),
        "adapter": plain(cfg.adapter),
        "ablation": cfg.ablation.kind,
        "mask": plain(cfg.mask),
        "seed": cfg.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {name: version(name) for name in PACKAGES},
    }


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain Python types."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
