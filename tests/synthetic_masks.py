"""Mask runs without a model: log-alphas under Adam, the exact shift of every step and the schedule of a real run.

Settings of the detection were chosen on seeds from 1000 on; the tests use seeds below 200.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from circuitlit.discover import Schedule
from circuitlit.discover.gates import HardConcrete
from circuitlit.graph import Graph, MaskLayout
from circuitlit.timeline import Snapshots

SCHEDULE = Schedule(150, 0.3, start_sparsity=0.9, warmup=0.5, harden=0.5, final_noise=0.1)
GRAPH = Graph(5, 6, 6)  # 1,606 edges
TARGET = 0.95


@dataclass(frozen=True)
class Gradients:
    """What pushes the masks.

    Attributes:
        signal: size of a needed edge's push by its noise; 0 is a run that learns nothing.
        needed: edges that the task needs, by the number of edges kept; the others are pushed out a little.
        inside: True lets pushes and noise be as large as a gate is undecided, as those through real gates are.
        shared: share of the noise's variance that comes from five patterns over all edges.
    """

    signal: float = 0.0
    needed: float = 1.5
    inside: bool = True
    shared: float = 0.0


def simulated(
    seed: int, gradients: Gradients, start: str = "equal", schedule: Schedule = SCHEDULE, every: int = 5
) -> Snapshots:
    """A run from equal masks, or from given ranks of which a needed edge has the better ones."""
    draw, gates, size = np.random.default_rng(seed), HardConcrete(0.4), GRAPH.n_edges
    count = round((1 - TARGET) * size)
    push = np.full(size, -0.2)
    needed = draw.permutation(size)[: round(gradients.needed * count)]
    push[needed] = draw.exponential(size=len(needed))
    values = np.zeros(size) if start == "equal" else 3 * (draw.normal(size=size) + (push > 0))
    patterns = draw.normal(size=(5, size)) / np.sqrt(5)
    first, second = np.zeros(size), np.zeros(size)
    seen = Snapshots(MaskLayout(GRAPH), count, schedule, TARGET, gates)
    seen.add(0, torch.from_numpy(values).float())
    for step in range(schedule.steps):
        scale = schedule.noise(step)
        values = values + float(gates.bisected(torch.from_numpy(values), schedule.open_share(step, TARGET), scale))
        opened = gates.open_probability(torch.from_numpy(values), scale).numpy()
        weight = 4 * opened * (1 - opened) + 0.01 if gradients.inside else np.ones(size)
        noise = np.sqrt(1 - gradients.shared) * draw.normal(size=size)
        noise += np.sqrt(gradients.shared) * draw.normal(size=5) @ patterns
        gradient = weight * (noise - gradients.signal * push)
        gradient -= weight * gradient.sum() / weight.sum()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        move = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        values = values - schedule.lr * schedule.lr_factor(step) * move
        if (step + 1) % every == 0:
            seen.add(step + 1, torch.from_numpy(values).float())
    return seen
