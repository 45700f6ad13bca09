"""A model's weight change as figures: its size, where it is, how concentrated, and the directions that are new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from circuitlit.compare.matrices import Concentration, concentration, intruder_dimensions
from circuitlit.compare.weights import PartChange, linears
from circuitlit.model import Subject
from circuitlit.model.linear import affine


@dataclass(frozen=True, kw_only=True)
class Distribution(Concentration):
    """Where a change's energy (squared norm) is.

    Attributes:
        share: of each place.
    """

    share: dict[str, float]


@dataclass(frozen=True)
class Intruders:
    """New directions; see `intruder_dimensions`.

    Attributes:
        top: leading directions of each module that are looked at; 0 looked at none.
        thresholds: of the cosine.
        modules: intruders at each threshold, of every module that changed.
    """

    top: int
    thresholds: list[float]
    modules: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class WeightSpread:
    """How far a model's weights moved, and where.

    Attributes:
        relative: norm of the change over the norm of all weights.
        distribution: over layers ("layer"), kinds of part ("kind") and nodes ("node").
    """

    relative: float | None
    distribution: dict[str, Distribution]


@dataclass(frozen=True, kw_only=True)
class WeightChange(WeightSpread):
    """The same in full.

    Attributes:
        norm: of the change.
        unchanged, still: share of weights that did not move, or by no more than rounding; see `MatrixChange`.
        intruders: new directions.
        parts: every part.
    """

    norm: float
    unchanged: float
    still: float
    intruders: Intruders
    parts: list[PartChange]

    @classmethod
    def of(cls, parts: list[PartChange], intruders: Intruders) -> WeightChange:
        """Sum up all parts."""
        count = sum(part.numel for part in parts)
        return cls(
            norm=_norm_of(parts),
            relative=relative_change(parts),
            unchanged=sum(part.change.unchanged * part.numel for part in parts) / count,
            still=sum(part.change.still * part.numel for part in parts) / count,
            distribution=distribution(parts),
            intruders=intruders,
            parts=parts,
        )


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Size, reach and concentration of a weight change.

    Attributes:
        relative, unchanged: as in `WeightChange`.
        modules, of_modules: weight matrices with any change, and all (a head's slices count as one each).
        layers: layers with any change.
        layers_80: the fewest layers that hold 80 % of its energy, most first.
        gini, entropy: of the energy over layers.
        node_gini: of the energy over nodes.
        effective_rank: mean over the changed matrices.
    """

    relative: float | None
    unchanged: float
    modules: int
    of_modules: int
    layers: int
    layers_80: list[int]
    gini: float | None
    entropy: float | None
    node_gini: float | None
    effective_rank: float

    @classmethod
    def of(cls, parts: list[PartChange]) -> Reach:
        """Of all parts."""
        matrices = [part for part in parts if part.kind not in ("bias", "norm")]
        moved = [part for part in matrices if part.change.norm > 0]
        by_layer, by_node = (distribution(parts)[place] for place in ("layer", "node"))
        shares = {int(layer): share for layer, share in by_layer.share.items()}
        return cls(
            relative=relative_change(parts),
            unchanged=sum(part.change.unchanged * part.numel for part in parts) / sum(part.numel for part in parts),
            modules=len(moved),
            of_modules=len(matrices),
            layers=sum(share > 0 for share in shares.values()),
            layers_80=fewest(shares, 0.8),
            gini=by_layer.gini,
            entropy=by_layer.entropy,
            node_gini=by_node.gini,
            effective_rank=sum(part.change.effective_rank for part in moved) / len(moved) if moved else 0.0,
        )


def relative_change(parts: Iterable[PartChange]) -> float | None:
    """Norm of some parts' change over that of their weights; None where there are none."""
    parts = list(parts)
    base = sum(part.change.base_norm**2 for part in parts) ** 0.5
    return _norm_of(parts) / base if base else None


def _norm_of(parts: Iterable[PartChange]) -> float:
    return sum(part.change.norm**2 for part in parts) ** 0.5


def fewest(shares: Mapping[int, float], enough: float) -> list[int]:
    """The fewest places that together hold a share of the whole, largest first; none where there is nothing."""
    chosen, total = [], 0.0
    for place in sorted(shares, key=lambda place: (-shares[place], place)):
        if total >= enough - 1e-12 or not shares[place]:
            break
        chosen.append(place)
        total += shares[place]
    return chosen


def distribution(changes: list[PartChange]) -> dict[str, Distribution]:
    """Where the change's energy (squared norm) is: by layer, by kind of part and by node, with its concentration.

    Keys and values shared by a group of heads are split evenly over it.
    """
    by: dict[str, dict[str, float]] = {"layer": {}, "kind": {}, "node": {}}
    for part in changes:
        energy = part.change.norm**2
        if part.layer is not None:
            by["layer"][str(part.layer)] = by["layer"].get(str(part.layer), 0.0) + energy
        by["kind"][part.kind] = by["kind"].get(part.kind, 0.0) + energy
        for node in part.nodes:
            by["node"][node] = by["node"].get(node, 0.0) + energy / len(part.nodes)
    spread = {}
    for name, energies in by.items():
        total = sum(energies.values())
        shares = {place: value / total if total else 0.0 for place, value in energies.items()}
        spread[name] = Distribution(**vars(concentration(torch.tensor(list(energies.values())))), share=shares)
    return spread


def node_changes(changes: list[PartChange]) -> dict[str, float]:
    """Relative change of every writer: the norm of all its parts' change over the norm of their weights."""
    of_node: dict[str, list[PartChange]] = {}
    for part in changes:
        for node in part.nodes:
            of_node.setdefault(node, []).append(part)
    return {node: relative_change(parts) or 0.0 for node, parts in of_node.items()}


def module_intruders(
    base: Subject, tuned: Subject, top: int = 10, thresholds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8)
) -> Intruders:
    """Intruder dimensions of every linear module of the blocks that changed, one count a threshold."""
    found: dict[str, list[int]] = {}
    if not top:
        return Intruders(top, list(thresholds), found)
    blocks = [subject.anatomy.blocks(subject.model) for subject in (base, tuned)]
    for layer, pair in enumerate(zip(*blocks, strict=True)):
        ours, theirs = (dict(linears(block)) for block in pair)
        for name, module in ours.items():
            before, after = affine(module)[0], affine(theirs[name])[0]
            if not torch.equal(before, after):
                found[f"{layer}.{name}"] = intruder_dimensions(before, after, top, thresholds)
    return Intruders(top, list(thresholds), found)
