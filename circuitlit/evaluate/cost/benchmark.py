"""What measurements of time and memory give."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from circuitlit.model import Subject
from circuitlit.result import PACKAGES, Result, version
from circuitlit.surroundings import matmul_precision


@dataclass(frozen=True, kw_only=True, repr=False)
class Benchmark(Result):
    """Base of all measurements of time and memory.

    Attributes:
        bench: what was measured: "step", "scaling", "length", "eap", "run" or "plan".
        what: of which model, and on which batch.
        machine: where: device, precision of matrix products, version of Python, and of packages.
        measured: what was found, an entry a setting.
    """

    schema: ClassVar[str] = "bench"
    file: ClassVar[str] = "bench.json"

    bench: str
    what: str
    machine: dict[str, Any]
    measured: list[Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a setting."""
        yield from map(asdict, self.measured)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One training step; seconds are medians.

    Attributes:
        dtype, layers, edges: of the model.
        batch, micro_batches, tokens, examples: pairs in a micro-batch, micro-batches in a step, tokens in a prompt, and
            training pairs.
        step, low, high: seconds of a step, and their quartiles.
        stock: seconds of the stock model's forward and backward on the same tokens; None where it was not run.
        to_stock: ratio of the two.
        traffic_bytes, to_traffic: what the mixing products move at least, and ratio of the step to the time of that.
        devices, peak_gib, peaks_gib: processes, and the most memory that any of them, and each of them, held; on a CPU
            without what the process held beside its weights before.
        planned_gib: what was expected; None where nothing was.
        cached: True where references were made ahead of the steps.
        phases: seconds of each part of the step; none where the GPU was profiled.
        panel, recompute: of the masked forward, see `MaskedModel`.
    """

    dtype: str
    layers: int
    edges: int
    batch: int
    micro_batches: int
    tokens: int
    examples: int
    step: float
    low: float
    high: float
    stock: float | None
    to_stock: float | None
    traffic_bytes: int
    to_traffic: float
    devices: int
    peak_gib: float
    peaks_gib: list[float]
    planned_gib: float | None
    cached: bool
    phases: dict[str, float]
    panel: int | None = None
    recompute: bool | str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class StepTimes(Benchmark):
    """What `time_training` found."""

    schema: ClassVar[str] = "step_times"
    measured: list[StepTime]


@dataclass(frozen=True, kw_only=True)
class AttributionTime:
    """Scores of all edges by one method.

    Attributes:
        method: its name.
        dtype, edges: of the model.
        batches: that were timed.
        batch_seconds: median of a batch.
        stock: seconds of the stock model's forward and backward on a batch, median.
        to_stock: ratio of the two.
    """

    method: str
    dtype: str
    edges: int
    batches: int
    batch_seconds: float
    stock: float
    to_stock: float


@dataclass(frozen=True, kw_only=True, repr=False)
class AttributionTimes(Benchmark):
    """What `time_attribution` found."""

    schema: ClassVar[str] = "attribution_times"
    measured: list[AttributionTime]


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """A whole run of `train`: its seconds in all and by phase, its steps, and how it ended."""

    seconds: float
    phases: dict[str, float]
    steps: int
    status: str | None


@dataclass(frozen=True, kw_only=True, repr=False)
class RunTimes(Benchmark):
    """Where the seconds of whole runs go."""

    schema: ClassVar[str] = "run_times"
    measured: list[RunTime]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of one training step on each device, reckoned.

    Attributes:
        model, dtype, edges: name, numbers' type and edges of the model.
        batch, tokens, panel, recompute: the step's, see `StepShape`.
        strategy, devices: how many processes share the work, and how.
        gib: of each part.
        total_gib: their sum.
        room_gib: what may be filled.
        largest_batch: pairs with which a step fits; 0 if not even one does.
    """

    model: str
    dtype: str
    edges: int
    batch: int
    tokens: int
    recompute: bool | str
    strategy: str
    devices: int
    gib: dict[str, float]
    total_gib: float
    room_gib: float
    largest_batch: int
    panel: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class MemoryPlans(Benchmark):
    """What `plan_memory` reckoned."""

    schema: ClassVar[str] = "memory_plans"
    measured: list[MemoryPlan]


def machine_of(device: torch.device) -> dict[str, Any]:
    """This machine, for `Benchmark.machine`."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "precision": matmul_precision(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def said(subject: Subject, pairs: int, tokens: int, micro_batches: int = 1) -> str:
    """A model and its batch in words, for `Benchmark.what`."""
    times = f"{micro_batches} micro-batches of " if micro_batches > 1 else ""
    weights = ", random weights" if subject.provenance.get("source") == "random weights" else ""
    return f"{subject.name}, {times}{pairs} x {tokens} tokens{weights}"


def dtype_of(subject: Subject) -> str:
    """The type of a model's numbers, as in "bfloat16"."""
    return str(subject.model.dtype).removeprefix("torch.")
