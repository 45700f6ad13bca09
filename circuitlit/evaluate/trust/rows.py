"""The rows that each part of the trust card gives, with their bars."""

from __future__ import annotations

from typing import Any

from circuitlit.evaluate.ablations import Ablations
from circuitlit.evaluate.generalisation import Generalisation
from circuitlit.evaluate.model_errors import ModelErrors
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.claims import Claims
from circuitlit.evaluate.trust.rivals import Rivals
from circuitlit.evaluate.trust.robustness import Perturbed, Robustness
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.evaluate.trust.stability import Halves, Stability

RIGHT, WRONG, KAPPA, MATCHED, BIASED = 0.95, 0.6, 0.6, 0.2, 0.2  # bars of errors
CORE = 0.44  # of the edges: 1,000 of 2,261, which five seeds shared
WORDS, OTHER = 1.25, 2.0  # bars of generalisation, times the KL share of the pairs that it is compared with


def claims_of(found: Claims) -> list[TrustRow]:
    """Those of a part that is made of rows."""
    return found.claims


def error_rows(found: ModelErrors) -> list[TrustRow]:
    """Agreement with right and wrong answers, kappa, and the controls."""
    said, main = found.main
    why, both = main.reason, main.n_right + main.n_wrong
    of: dict[str, Any] = {"sentences": found.n_sentences}
    right, few = main.right, None
    if found.least is not None and main.n_right < found.least:
        right, few = None, f"the model is right on {main.n_right} pairs, {found.least} right answers are needed"
    rows = [
        TrustRow.of(f"errors.{name}", f"{figure}, {said}", estimate, bar, why=reason, pairs=pairs, **of)
        for name, figure, estimate, bar, reason, pairs in (
            ("right", "agreement, model right", right, RIGHT, few, main.n_right),
            ("wrong", "agreement, model wrong", main.wrong, WRONG, why, main.n_wrong),
            ("kappa", "kappa of right and wrong", main.kappa, KAPPA, why, both),
        )
    ]
    matched, biased = found.matched, found.biased
    rows.append(
        TrustRow.of(
            "errors.matched",
            "right minus wrong, equal margins",
            matched and matched.gap,
            MATCHED,
            side="within",
            why=matched.reason if matched else "pairs have no wrong answer",
            pairs=matched and matched.n,
            **of,
        )
    )
    figure, errors = "agreement, model wrong, minus a biased baseline's", found.candidates and found.candidates.n_wrong
    rows.append(
        TrustRow.of("errors.biased", figure, biased and biased.beaten_by, BIASED, why=found.no_bias, pairs=errors, **of)
    )
    return rows


def ablation_rows(found: Ablations) -> list[TrustRow]:
    """The KL share under every ablation, held against that of random circuits. Least and largest are named."""
    ends = found.ends
    said = {one.kind: end for one, end in zip(ends, (", the least", ", the largest"), strict=True)} if ends else {}
    return [
        TrustRow.of(
            f"ablations.{one.kind}",
            f"KL over that of no edges, {one.kind}{said.get(one.kind, '')}; bar: random circuits",
            one.share,
            one.random and one.random.value,
            "at most",
            why=one.reason,
            pairs=found.n_pairs,
            draws=found.n_random,
            sentences=found.n_sentences,
        )
        for one in found.kinds
    ]


def generalisation_rows(found: Generalisation) -> list[TrustRow]:
    """The loss on each changed kind of pairs."""
    return [
        TrustRow.of(
            f"generalises.{one.name}",
            f"KL share, {one.name}, over {one.than} pairs'",
            one.ratio,
            WORDS if one.name == "words" else OTHER,
            side="at most",
            why=one.reason,
            pairs=one.n_pairs,
            sentences=one.n_sentences,
        )
        for one in found.axes
    ]


def rival_rows(found: Rivals) -> list[TrustRow]:
    """Whether the circuit is the only one, and its core; neither has a bar. Bounds of u are what rivals leave open."""
    sizes: dict[str, Any] = {"pairs": found.n_pairs, "groups": found.n_sentences}
    least, core = Estimate(found.u, found.u_low, found.u), found.core / found.n_edges
    said = f"least share of edges that a rival has in common: {found.verdict}; {found.why}"
    return [
        TrustRow.of("unique.u", said, least, **sizes),
        TrustRow.of("unique.core", "share of edges in all accepted rivals", Estimate(core, core, core), **sizes),
    ]


def stability_rows(found: Stability) -> list[TrustRow]:
    """The core, the consensus, and how alike circuits are by each cause of change."""
    rows = [row for one in found.halves for row in _half_rows(found, one)]
    for cause in found.causes:
        said = f"J*, {cause.changed or cause.name}: mean, least and largest"
        rows.append(TrustRow.of(f"stable.{cause.name}", said, cause.alike, why=cause.reason, draws=cause.n_circuits))
    return rows


def robustness_rows(found: Robustness) -> list[TrustRow]:
    """How alike circuits stay at each share of perturbed pairs; would other pairs have changed them less?"""
    return [row for one in found.perturbed for row in _perturbed_rows(found, one)]


def _perturbed_rows(found: Robustness, one: Perturbed) -> list[TrustRow]:
    name, why = f"robust.{one.kind}_{100 * one.share:g}", one.reason
    facts: dict[str, Any] = {"groups": found.n_sentences, "draws": len(one.each), "why": why}
    said = f"J* with the unperturbed pairs' circuit, {one.share:.0%} {one.kind}"
    if one.beyond_degrees and one.replaced:
        said += f"; beyond equal degrees {one.beyond_degrees.value:.3f}; as many replaced {one.replaced.value:.3f}"
    beyond, worse = one.minus_replaced, one.kl_minus_replaced
    no_kl = {"why": why or "no test pairs were asked for", "pairs": found.n_pairs}
    return [
        TrustRow.of(name, said, one.alike, **facts),
        TrustRow.of(f"{name}_beside", "that minus J* with as many pairs replaced by others", beyond, 0.0, **facts),
        TrustRow.of(
            f"{name}_kl", "KL on unperturbed pairs, minus that with replaced ones", worse, 0.0, "at most", **no_kl
        ),
    ]


def core_row(name: str, one: Halves, n_edges: int, share: float, procedure: str) -> TrustRow:
    """The edges that nearly all circuits of halves keep; the lower end leaves out those that chance may put there."""
    core = None if one.reason else Estimate(one.core, max(0.0, one.core - one.bound), one.core)
    said = (
        f"of {n_edges:,} edges, those in {share:.0%} of {one.n_circuits} {procedure} circuits of halves of the {one.of}"
    )
    said += f"; at least: without the {one.bound:.0f} that chance may put there"
    return TrustRow.of(name, said, core, round(CORE * n_edges), draws=one.n_circuits, why=one.reason)


def _half_rows(found: Stability, one: Halves) -> list[TrustRow]:
    of, why, draws = one.of, one.reason, one.n_circuits
    alike = f"J* of circuits of the two halves of the {of}; interval: other halves of these"
    alone = f"{found.procedure} is an attribution itself, or none was asked for"
    beyond, consensus = (
        f"J* of the halves of the {of} minus {found.baseline or 'an attribution'}'s",
        "KL, consensus minus its members",
    )
    same = one.consensus_minus_members
    return [
        core_row(f"stable.core_{of}", one, found.n_edges, found.share, found.procedure),
        TrustRow.of(f"stable.consensus_{of}", consensus, same, 0.0, "at most", why=why, draws=draws),
        TrustRow.of(f"stable.{of}", alike, one.alike, why=why, draws=draws),
        TrustRow.of(f"stable.beyond_{of}", beyond, one.beyond, 0.0, why=why or alone, draws=draws),
    ]
