"""What `bench` measures, on models of the configured shape with random weights."""

from __future__ import annotations

import gc
from typing import Any

import torch
from omegaconf import DictConfig

from circuitlit.cli.build import build_method, device_of
from circuitlit.cli.checks import run_dir
from circuitlit.cli.learn import learn
from circuitlit.cli.random_model import meta_subject, random_subject, shape_of
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.attribution import time_attribution
from circuitlit.evaluate.cost.benchmark import AttributionTimes, MemoryPlans, StepTimes
from circuitlit.evaluate.cost.memory import memory_parts, meta_copy, plan_memory, that_fits
from circuitlit.evaluate.cost.training import steps_to_take, time_training
from circuitlit.model.packed import bits_of
from circuitlit.progress import CONSOLE
from circuitlit.run.bench.data import random_scores, random_workbench, step_shape


def memory(cfg: DictConfig) -> MemoryPlans:
    """Of one step at each of `dtypes`, or else in `model.dtype`; nothing is loaded."""
    shape = step_shape(cfg, cfg.tokens, cfg.answers, cfg.examples or 0, bits_of(shape_of(cfg)))
    given, found = cfg.copy(), []
    for dtype in cfg.dtypes or [cfg.model.dtype]:
        given.model.dtype = dtype
        found.append(plan_memory(meta_subject(given), shape, cfg.gib))
    return found[0].replaced(measured=[row for one in found for row in one.measured])


def steps(cfg: DictConfig) -> StepTimes:
    """One training step at each of `dtypes`."""
    found = [_step(cfg, dtype) for dtype in wanted_dtypes(cfg)]
    return found[0].replaced(measured=[row for one in found for row in one.measured])


def scaling(cfg: DictConfig) -> StepTimes:
    """Steps at a quarter, half and all of the layers, half and double the tokens, and 200 to 100,000 examples.

    References are computed in every step, so that the number of examples is all that changes.
    """
    cfg.mask.cache_gib = 0
    depth = "n_layer" if "n_layer" in cfg.model.architecture else "num_hidden_layers"
    layers = cfg.model.architecture[depth]
    changes: list[dict[str, Any]] = [{depth: max(1, layers // part)} for part in (4, 2)]
    changes += [{"tokens": max(1, cfg.tokens // 2)}, {}, {"tokens": 2 * cfg.tokens}]
    changes += [{"examples": number} for number in (200, 10_000, 100_000)]
    found = []
    for change in changes:
        given = cfg.copy()
        for name, value in change.items():
            (given.model.architecture if name == depth else given)[name] = value
        _raise_positions(given)
        found.append(_step(given, wanted_dtypes(cfg)[0]))
    unchanged = found[changes.index({})]
    return unchanged.replaced(bench="scaling", measured=[row for one in found for row in one.measured])


def length(cfg: DictConfig) -> StepTimes | MemoryPlans:
    """A step at 128 tokens, twice as many, and so on to `tokens`, each run as fast as its plan gives room for.

    Lengths that do not fit are said and left out. With `plan` nothing is run, and every length has its plan.
    """
    found: list[Any] = []
    room = 0.0
    longest, dtype = cfg.tokens, wanted_dtypes(cfg)[-1] if cfg.dtypes or not cfg.plan else cfg.model.dtype
    lengths = [tokens for tokens in (128 * 2**power for power in range(12)) if tokens < longest]
    for tokens in [*lengths, longest]:
        given = cfg.copy()
        given.tokens, given.model.dtype = tokens, dtype
        given.callbacks.probe_every = 0  # its pairs are more than a batch of long ones
        _raise_positions(given)
        examples = cfg.examples or 0
        shape, need, room = that_fits(meta_subject(given), step_shape(given, tokens, cfg.answers, examples), cfg.gib)
        given.mask.panel, given.mask.recompute = shape.panel, shape.recompute
        way = f"mask.panel={shape.panel} mask.recompute={str(shape.recompute).lower()}"
        text = f"{tokens:,} tokens: {need:.3g} of {room:.3g} GiB with {way}"
        CONSOLE.print(text if need <= room else f"{text}: does not fit", highlight=False, soft_wrap=True)
        if cfg.plan:
            found.append(memory(given))
        elif need <= room:
            found.append(_step(given, dtype))
    if not found:
        raise UserError(f"no length fits into {room:.3g} GiB; lower data.batch_size={cfg.data.batch_size} or tokens")
    return found[-1].replaced(bench="length", measured=[row for one in found for row in one.measured])


def _raise_positions(cfg: DictConfig) -> None:
    """Give the shape as many positions as prompts have tokens."""
    shape = cfg.model.architecture
    for name in {"n_positions", "max_position_embeddings"} & set(shape):
        shape[name] = max(cfg.tokens, shape[name])


def _step(cfg: DictConfig, dtype: str) -> StepTimes:
    """With a new random batch each time, unless `examples` says how many there are."""
    number, micro_batches = steps_to_take(cfg.warmup, cfg.repeats), cfg.trainer.accumulate_grad_batches
    cfg.mask.schedule.steps = number
    gc.collect()  # what the step before held
    examples = cfg.examples or number * micro_batches * cfg.data.batch_size
    bench = random_workbench(cfg, random_subject(cfg, dtype), examples)
    shape = step_shape(cfg, cfg.tokens, cfg.answers, examples, bench.subject.provenance.get("packed_bits"))
    return time_training(
        bench,
        repeats=cfg.repeats,
        warmup=cfg.warmup,
        train=lambda watchers: learn(cfg, bench, random_scores(bench, cfg.seed), run_dir(), watchers),
        micro_batches=micro_batches,
        planned_gib=sum(memory_parts(meta_copy(bench.subject), shape).values()) / 2**30,
        profile=run_dir() / f"profile-{dtype}.txt" if cfg.profile else None,
    )


def attribution(cfg: DictConfig) -> AttributionTimes:
    """Scores of all edges by `method` on random batches."""
    found = []
    for dtype in wanted_dtypes(cfg):
        examples = cfg.examples or cfg.repeats * cfg.data.batch_size
        bench = random_workbench(cfg, random_subject(cfg, dtype), examples)
        found.append(time_attribution(bench, build_method(cfg)))
    return found[0].replaced(measured=[row for one in found for row in one.measured])


def wanted_dtypes(cfg: DictConfig) -> list[str]:
    """Those asked for; else float32, and bfloat16 where the device multiplies it and need not emulate it."""
    if cfg.dtypes is not None:
        return list(cfg.dtypes)
    if device_of(cfg).type != "cpu" or has_bfloat16():
        return ["float32", "bfloat16"]
    text = "bfloat16 is left out: this CPU lacks it, and emulating it is slow; dtypes=[bfloat16] asks for it"
    CONSOLE.print(text, highlight=False, soft_wrap=True)
    return ["float32"]


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
