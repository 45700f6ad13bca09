"""Is a model read rightly? Identities on its own weights and on a float64 twin, and the first place that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.evaluate.check import identities
from circuitlit.evaluate.check.identities import ROWS, Prompts, random_prompts
from circuitlit.evaluate.check.place import first_difference
from circuitlit.evaluate.check.probes import taken_guess
from circuitlit.evaluate.check.twin import KeepsFloat64, float64_twin
from circuitlit.model import Subject
from circuitlit.model.files import make_cache
from circuitlit.model.load import load_subject
from circuitlit.model.trusted import key_of, reasons, record_of
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks import PairsModule

FLOOR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SLOPE = 1e-6  # of the gradient, whose central difference is no better
NOISY = 4.0  # times the model's own noise may identities differ
DIVERGED = 0.01  # nats
KL = "KL of all masks at 1 from the model, nats"
GRADIENT = "the masks' gradient is the central difference"
HEADS = "a head's queries, keys and values move its own results alone"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One identity on one model: a share of the largest number (nats for a KL) and what it may be."""

    name: str
    on: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelCheck(Result):
    """What `check_model` found.

    Attributes:
        model, model_type: name and architecture.
        status: PASSED, or FAILED if any identity does not hold.
        reasons: why the model needs a check; none for a row of the table of families.
        noise: what the stock model's own logits differ by, alone or among others and with another attention kernel.
        identities: on the model's own weights, then on its twin.
        place, remedy: the first place that differs, and the one change that mends it; None where there is none.
        tokens: of the prompts that were tried; branches beyond this length are not seen.
        key: what the check holds for (see `model.trusted`).
        guess: which anatomy of those that the names allow holds, and what probes changed in it; None with a row.
    """

    schema: ClassVar[str] = "check"
    file: ClassVar[str] = "check.json"

    model: str
    model_type: str
    status: str
    reasons: list[str]
    noise: float
    identities: list[Identity]
    place: str | None
    remedy: str | None
    tokens: int
    key: str
    guess: dict[str, Any] | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """An identity each."""
        for one in self.identities:
            yield {**vars(one), "holds": one.holds}


@checks_arguments
def check_model(
    model: Subject | str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    pairs: PairsModule | None = None,
    *,
    cache_dir: str = "~/.cache/circuitlit",
    seed: int = 0,
    **loading: Any,
) -> ModelCheck:
    """Try all identities on a model's own weights, and on a random twin of its class in float64.

    A check that passes is written down in the cache, and from then on `load_subject` takes this model.

    Args:
        model: a live model, a subject that was loaded with `unchecked=True`, or what `load_subject` takes.
        tokenizer: the model's.
        pairs: a task, of whose test pairs the first four are tried; None takes random tokens.
        cache_dir: where checks that passed are kept.
        seed: of random tokens and of the twin's weights.
        loading: further arguments of `load_subject`.

    Raises:
        UserError: the model cannot be loaded, or goes around the modules that its anatomy names, or a check that passed
            cannot be written down.
    """
    subject = model
    if not isinstance(subject, Subject):
        subject = load_subject(subject, tokenizer, cache_dir=cache_dir, unchecked=True, **loading)
    subject, guess = taken_guess(subject, seed)
    prompts = random_prompts(subject, seed) if pairs is None else _of_pairs(subject, pairs)
    with phase("own", "Trying the model's own weights"):
        noise, found = _own(subject, prompts)
    with phase("twin", "Trying a twin in float64"), KeepsFloat64():
        twin = float64_twin(subject, seed)
        tried = random_prompts(twin, seed)
        found += _twin(twin, tried)
    bad = [one for one in found if not one.holds]
    place, remedy = None, None
    if bad and bad[0].on == found[0].on:
        place, remedy = first_difference(subject, prompts, _tolerance(subject, noise))
    elif bad:
        with KeepsFloat64():
            place, remedy = first_difference(twin, tried, FLOOR[torch.float64])
    result = ModelCheck(
        model=subject.name,
        model_type=subject.model.config.model_type,
        status="FAILED" if bad else "PASSED",
        reasons=reasons(subject.model),
        noise=noise,
        identities=found,
        place=place,
        remedy=remedy,
        tokens=prompts.clean.shape[1],
        key=key_of(subject.model),
        guess=guess,
    )
    if not bad:
        kept = record_of(Path(cache_dir), result.key)
        try:
            make_cache(kept.parent)
            result.save(kept.parent).rename(kept)
        except OSError as error:
            raise UserError(
                f"paths.cache_dir={cache_dir} cannot be written ({error.strerror}), where it is kept that the check "
                "passed; choose another"
            ) from error
    return result


def _of_pairs(subject: Subject, pairs: PairsModule) -> Prompts:
    """The first pairs of a task's test."""
    batch = next(iter(pairs.test.batches(ROWS))).to(subject.device)
    if len(batch) < ROWS or not batch.has_corrupted:
        raise UserError(f"a check takes {ROWS} test pairs with corrupted prompts; leave the task out")
    return Prompts(batch.clean, batch.corrupted, batch.positions)


def _tolerance(subject: Subject, noise: float) -> float:
    return max(FLOOR[subject.model.dtype], NOISY * noise)


def _common(subject: Subject, prompts: Prompts) -> tuple[dict[str, float], float]:
    """The identities of every precision, and the KL of the model from itself with all masks at 1, in nats."""
    summed = identities.streams(subject, prompts.clean)  # first: it refuses what goes around the modules
    on, off, kl = identities.ends(subject, prompts)
    found = {
        "the residual stream is the sum of its writers": summed,
        "all masks at 1 give the model": on,
        "all masks at 0 give the corrupted run": off,
        "random masks at a few readers do what hooks do": identities.between(subject, prompts),
        "padding, company and order change nothing": identities.alone(subject, prompts),
    }
    return found, kl if math.isfinite(kl) else math.inf


def _own(subject: Subject, prompts: Prompts) -> tuple[float, list[Identity]]:
    """The model's noise, and the identities on its own weights."""
    noise = identities.noise(subject, prompts)
    found, kl = _common(subject, prompts)
    where, most = f"own, {str(subject.model.dtype).removeprefix('torch.')}", _tolerance(subject, noise)
    made = [Identity(name=name, on=where, difference=gap, tolerance=most) for name, gap in found.items()]
    return noise, [*made, Identity(name=KL, on=where, difference=kl, tolerance=DIVERGED)]


def _twin(twin: Subject, prompts: Prompts) -> list[Identity]:
    """The identities that only float64 shows, and all others again without rounding."""
    found, _ = _common(twin, prompts)
    most = dict.fromkeys(found, FLOOR[torch.float64]) | {GRADIENT: SLOPE, HEADS: 0.0}
    found[GRADIENT] = identities.gradient(twin, prompts)
    if not twin.graph.coupled:
        found[HEADS] = identities.own_heads(twin, prompts)
    return [Identity(name=n, on="twin, float64", difference=gap, tolerance=most[n]) for n, gap in found.items()]
