"""How a circuit is found anew, on other pairs, with another seed, start or ablation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from circuitlit.discover import HardConcrete, SigmoidTopK, UniformGradient, mask_gradients
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.find import GATES, SCHEDULE, fitted_masks
from circuitlit.evaluate.trust.identity import identity_of
from circuitlit.graph import Circuit, EdgeScores

MASKS = tuple(gates.name for gates in (HardConcrete, SigmoidTopK, UniformGradient))
START = Method.of(mask_gradients, steps=5, draws=1)


@dataclass(frozen=True)
class Procedure:
    """An attribution, or masks that start from one.

    Attributes:
        method: the attribution.
        schedule: of the masks' training; None where the circuit is the attribution's own.
        gates: the masks' family.
        error_weight: share of the loss that the model's errors have together; None weighs all pairs alike.
    """

    method: Method
    schedule: Schedule | None = None
    gates: Gates = GATES
    error_weight: float | None = None

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        method: Method | None,
        masks: bool | None,
        schedule: Schedule | None,
        gates: Gates | None,
        error_weight: float | None,
    ) -> Procedure:
        """That of `measure_stability`'s arguments.

        Raises:
            UserError: it is not said how the circuit was found.
        """
        made = circuit.scores
        if masks if masks is not None else made.kind == "gate" or made.method in MASKS:
            return cls(method or START, schedule or SCHEDULE, gates or GATES, error_weight)
        if method is None:
            raise UserError(
                f"how the circuit was found is not known, its file names {made.method}; give the "
                "method, or masks=True (trust.stable.by=masks)"
            )
        return cls(method)

    @property
    def text(self) -> str:
        """In words."""
        if self.schedule is None:
            return self.method.name
        return f"{self.gates.name}, {self.schedule.steps} steps from {self.method.name}"

    @property
    def identity(self) -> dict[str, Any]:
        """All that a circuit depends on, beside pairs and model."""
        own = {"method": identity_of(self.method), "schedule": str(self.schedule), "gates": str(self.gates)}
        return own | {"error_weight": self.error_weight}

    def __call__(self, bench: Workbench, seed: int, start: str = "method") -> EdgeScores:
        """Scores on the training pairs of a workbench.

        Args:
            bench: of the circuit's size.
            seed: of gate noise and of the pairs' order.
            start: of masks: "method", or "equal" for masks that are all open.
        """
        if self.schedule is None:
            return bench.score(self.method)
        bench = replace(bench, data=bench.data.with_seed(seed))
        scores = None if start == "equal" else bench.score(self.method)
        settings: dict[str, Any] = {"schedule": self.schedule, "gates": self.gates, "error_weight": self.error_weight}
        return fitted_masks(bench, scores, seed=seed, **settings)[0].scores()
