"""The heads and MLPs that matter in a circuit: measured effects beside random nodes, roles, attention, writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, mean_estimate
from circuitlit.graph import Circuit
from circuitlit.heads.explain.behaviour import Seen, look
from circuitlit.heads.explain.effects import largest, leading_nodes, node_effects, random_nodes, whole_model
from circuitlit.heads.explain.explanation import LeadingNode, Look, NodeEffect, Nodes
from circuitlit.heads.explain.head_roles import head_roles
from circuitlit.objective import Outcome
from circuitlit.progress import phase


def find_leading(
    bench: Workbench,
    chosen_on: TestBed,
    circuit: Circuit,
    effects: Float[Tensor, "role edge"],
    *,
    heads: int,
    mlps: int,
    pairs: int,
    examples: int,
    seed: int,
) -> Nodes:
    """Measure the nodes with the largest estimated effects, and random ones; see `explain_circuit`."""
    test, choose = bench.data.test, bench.data.to_choose_on
    rows = test.spread(pairs)
    bed = TestBed.of(bench, test, rows)
    candidates = leading_nodes(circuit, effects, *(-(-count * 5 // 3) for count in (heads, mlps)))
    with phase("ablation", "Ablating the leading nodes, and random ones"):
        chosen = largest(chosen_on, circuit, list(candidates), heads, mlps)
        whole = whole_model(bed, bench.references.kind)
        own = node_effects(bed, circuit, chosen, whole)
        random = node_effects(bed, circuit, random_nodes(circuit, chosen, seed), whole)
    shares = {name: _shares(candidates[name], choose.role_names) for name in chosen}
    with phase("roles", "Looking where they attend"):
        looks, roles, scores, reason = _known(
            bench, rows[:examples], rows, shares, list(candidates), choose.spread(pairs), seed
        )
    leading = [
        LeadingNode(
            **vars(effect),
            estimate=float(candidates[effect.name].sum()),
            beyond=_beyond(effect, random),
            acts_at=shares[effect.name],
            roles=roles.get(effect.name, []),
            scores=scores.get(effect.name, {}),
            look=looks.get(effect.name),
        )
        for effect in sorted(own, key=lambda one: -abs(one.in_circuit.value or 0.0))
    ]
    inside = bed.run(circuit.kept)
    return Nodes(
        metric=_metric_name(bed.full),
        circuit=mean_estimate(inside.metric.double(), inside.group),
        full=mean_estimate(bed.full.metric.double(), bed.full.group),
        n_pairs=len(inside.kl),
        n_sentences=len(inside.group.unique()),
        leading=leading,
        random=random,
        random_in_circuit=_mean_size([one.in_circuit for one in random]),
        random_in_model=_mean_size([one.in_model for one in random]),
        reason=reason,
    )


def _known(
    bench: Workbench,
    shown: Sequence[int],
    rows: Sequence[int],
    shares: dict[str, dict[str, float]],
    candidates: Sequence[str],
    chosen_on: Sequence[int],
    seed: int,
) -> tuple[dict[str, Look], dict[str, list[str]], dict[str, dict[str, float]], str]:
    """Attention, writes, roles and scores of nodes, or why there are none."""
    heads = [name for name in candidates if name[0] == "a"]  # more heads than are shown: roles depend on others
    try:
        looks = look(Seen.of(bench, rows, len(shown)), {name: next(iter(of)) for name, of in shares.items()})
        roles, scores = head_roles(bench, heads, chosen_on, seed)
        return looks, roles, scores, ""
    except UserError as error:
        return {}, {}, {}, str(error)


def _shares(of_node: Float[Tensor, "role"], names: Sequence[str]) -> dict[str, float]:
    """Shares of a node's estimate by token role, largest first."""
    size = of_node.abs() / of_node.abs().sum().clamp(min=torch.finfo(of_node.dtype).tiny)
    return dict(sorted(zip(names, size.tolist(), strict=True), key=lambda one: -one[1]))


def _beyond(effect: NodeEffect, random: Sequence[NodeEffect]) -> bool:
    others = [abs(one.in_circuit.value or 0.0) for one in random if one.name[0] == effect.name[0]]
    bounds = effect.in_circuit.bounds
    if bounds is None or not others:
        return False
    return bounds[0] > max(others) or bounds[1] < -max(others)


def _mean_size(effects: Sequence[Estimate]) -> Estimate:
    sizes = torch.tensor([abs(one.value or 0.0) for one in effects], dtype=torch.float64)
    return mean_estimate(sizes, None) if len(sizes) else Estimate()


def _metric_name(full: Outcome) -> str:
    if bool(full.prob_diff.isfinite().all()):
        return "probability difference"
    return "log-probability" if bool(full.logit_diff.isnan().all()) else "logit difference"
