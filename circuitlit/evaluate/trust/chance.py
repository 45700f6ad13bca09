"""Is a circuit better than chance? Its rank among random circuits of its size, and among its own shuffles."""

from __future__ import annotations

from collections.abc import Mapping

from circuitlit.evaluate.found import Measured
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.testing import LEVEL, enough_draws
from circuitlit.evaluate.trust.row import TrustRow


def chance_rows(own: Measured, controls: Mapping[str, Measured]) -> list[TrustRow]:
    """A row for each kind of random circuit: p of a KL as low as the circuit's, corrected for all kinds (Holm).

    Args:
        own: the circuit on the pairs that random circuits ran on.
        controls: by kind, of `measure_controls`.
    """
    claims = sum(one.p_holm is not None for one in controls.values())
    return [_row(kind, one, own, claims) for kind, one in controls.items()]


def no_other(kind: str, draws: int) -> str:
    """Why a circuit has no p where every draw is the circuit itself."""
    if draws < enough_draws(1):  # so few may all be the circuit where there are others
        return few_draws(draws)
    alike = "these degrees" if kind == "shuffled" else "this size"
    return f"no other circuit has {alike}, as far as {draws} draws tell"


def few_draws(draws: int) -> str:
    """Why a rank among so few says nothing."""
    return f"{draws} circuits cannot give a p below {LEVEL}"


def _row(kind: str, one: Measured, own: Measured, claims: int) -> TrustRow:
    assert own.kl and one.kl and one.n_circuits is not None
    if one.p_holm is None:
        said, why = f"p of {kind} circuits being as close as this one", no_other(kind, one.n_circuits)
        facts = {"pairs": one.n_pairs, "draws": one.n_circuits}
        return TrustRow.of(f"chance.{kind}", said, None, LEVEL, side="at most", why=why, **facts)
    figure = f"p of {kind} circuits (KL {one.kl.value:.3f}) being as close as this one ({own.kl.value:.3f}), Holm"
    least = claims / (1 + one.n_circuits)
    few = few_draws(one.n_circuits) if least >= LEVEL else None
    p = None if few else Estimate(one.p_holm, one.p_holm, one.p_holm)
    facts = {"pairs": one.n_pairs, "draws": one.n_circuits, "p": one.p_holm}
    return TrustRow.of(f"chance.{kind}", figure, p, LEVEL, side="at most", why=few, **facts)
