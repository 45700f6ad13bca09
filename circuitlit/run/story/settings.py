"""The settings of a story's parts: one tuning run a way, and the other verbs on the same task and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli.build import plain
from circuitlit.cli.configs import composed, entries
from circuitlit.errors import UserError
from circuitlit.evaluate.testing import LEAST_DRAWS
from circuitlit.timeline.telling import story_draws

_SHARED = ("task", "model", "method", "ablation", "sparsity", "mask", "data", "evaluate", "paths", "strategy", "seed")
_LEAST = 2  # a story compares


@dataclass(frozen=True)
class Way:
    """One way to tune: its label and the settings of `finetune`."""

    name: str
    cfg: DictConfig


def check(cfg: DictConfig) -> None:
    """Refuse settings that no story can be told with.

    Raises:
        UserError: too few random sets, data without corrupted prompts, or a checkpoint to go on from.
    """
    if cfg.story.draws is not None and cfg.story.draws < LEAST_DRAWS:
        raise UserError(f"story.draws={cfg.story.draws} is too few random sets; take at least {LEAST_DRAWS}")
    if cfg.tune.data:
        raise UserError("a story needs a task with corrupted prompts; leave tune.data out and choose a task")
    if cfg.ckpt_path is not None:
        raise UserError("ckpt_path is for one tuning run; a story that was stopped goes on in the same hydra.run.dir")


def ways_of(cfg: DictConfig) -> list[Way]:
    """The story's ways to tune.

    Raises:
        UserError: fewer than two.
    """
    entered = entries(cfg.story.ways, "adapter")
    if len(entered) < _LEAST:
        raise UserError(
            "story.ways must hold at least two ways to tune: [lora,none] or {name: LABEL, with: [settings]}"
        )
    ways = []
    for entry in entered:
        own = composed(*entry.settings)
        own.story = None
        ways.append(Way(entry.name, own))
    return ways


def circuit_task(task: DictConfig, n_train: int, n_val: int, n_test: int | None = None) -> DictConfig:
    """A task with the pairs that circuits of tuned models are scored on: validation pairs, and the test pairs."""
    build = {
        "_target_": "circuitlit.tasks.apart",
        "_partial_": True,
        "build": plain(task.build),
        "n_train": n_train,
        "n_val": n_val,
        "n_test": n_test,
    }
    return OmegaConf.create({**plain(task), "build": build})


def story_task(cfg: DictConfig) -> DictConfig:
    """The task of a story's circuits."""
    return circuit_task(cfg.task, cfg.story.circuit_pairs, cfg.story.probe_pairs, cfg.story.test_pairs)


def most_draws(cfg: DictConfig) -> int:
    """Most random sets for each comparison: enough for every claim that the story's page makes."""
    return cfg.story.draws or story_draws(len(cfg.story.ways), len(cfg.story.layers))


def verb_settings(cfg: DictConfig, verb: str, changes: dict[str, Any]) -> DictConfig:
    """Settings of another verb on the story's task and model.

    Args:
        cfg: the story's settings; `story.with.VERB` changes the verb's own.
        verb: compare, evolve or intervene.
        changes: what this part of the story sets.
    """
    own = compose(verb)
    OmegaConf.set_struct(own, False)
    for group in _SHARED:
        own[group] = cfg[group]
    own.trainer.accelerator = cfg.trainer.accelerator
    own.task = story_task(cfg)
    if verb == "evolve":
        own.evolve.part = 0  # of 1: this process measures all
        own.evolve.draws = most_draws(cfg)
        own.evolve.heads.run = False
        own.evolve.smallest = cfg.story.smallest
        own.evolve.probe_pairs = cfg.story.probe_pairs
    if verb == "intervene":
        own.intervene.draws = most_draws(cfg)
        own.intervene.passages = cfg.story.passages
        own.text = cfg.story.text
    if verb == "compare":
        own.compare.draws = most_draws(cfg)
        own.compare.probe_pairs = cfg.story.probe_pairs
    more = cfg.story["with"].get(verb) or {}
    made = OmegaConf.merge(own, OmegaConf.create({verb: more}), OmegaConf.create(changes))
    assert isinstance(made, DictConfig)
    return made
