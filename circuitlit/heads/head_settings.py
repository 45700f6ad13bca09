"""What `score_heads` looks at; the defaults are those of conf/heads.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from circuitlit.errors import UserError
from circuitlit.masked.ablation import KINDS

SCORES = ("repeats", "successor", "copying", "direct_effect", "copy_suppression")


REPEATED = ("induction", "previous_token", "duplicate_token")  # checked by the loss on repeated tokens


ON_TASK = {  # checked by the task's metric; the effect that ranks them
    "name_mover": "direct_effect",
    "negative_name_mover": "direct_effect",
    "copy_suppression": "direct_effect",
    "s_inhibition": "effect_on_name_movers",
}


@dataclass(frozen=True)
class Repeats:
    """Sequences of random tokens that are said twice: how many, tokens before the repetition, with a first token."""

    sequences: int = 16
    length: int = 32
    bos: bool = True


@dataclass(frozen=True)
class Passages:
    """Other text: passages, tokens in each, and how many of them copy suppression runs for every head."""

    count: int = 200
    length: int = 61
    used: int = 8


@dataclass(frozen=True)
class AlgorithmSearch:
    """How the IOI algorithm is looked for, where a task has the roles io, s1 and s2.

    Attributes:
        run: False leaves it out.
        parts: how far up: "B" (heads that act on the logits) is quick, "C" and "D" path patch every head once.
        copy_suppression: look for copy suppression, too.
        suppressors: in at most so many heads, those with the largest direct effects; None takes all.
        through_mlps: path patches run through MLPs, too, as in Wang et al.
        receivers: at most so many heads of a part receive the next part's path patches.
    """

    run: bool = True
    parts: Literal["B", "C", "D"] = "D"
    copy_suppression: bool = True
    suppressors: int | None = 20
    through_mlps: bool = False
    receivers: int = 8


@dataclass(frozen=True)
class CausalChecks:
    """Ablations of each role's heads, beside random sets: whose, by what, and at most how many sets (None: enough)."""

    run: bool = True
    roles: list[str] = field(default_factory=lambda: [*REPEATED, *ON_TASK])
    ablation: Literal["interchange", "mean", "zero"] = "interchange"
    draws: int | None = None


@dataclass(frozen=True)
class BackupSearch:
    """Who takes over when the name movers are ablated: at most so many random sets and directions (None: enough)."""

    run: bool = True
    draws: int | None = None


@dataclass(frozen=True)
class HeadSettings:
    """What `score_heads` looks at.

    Attributes:
        scores: of `SCORES`.
        pairs: held-out pairs for copying and everything on the task.
        top: heads of a role in the table and in its causal check.
        circuit: where a circuit is from whose heads the roles and shares are; a note for the result.
        repeats, passages, algorithm, causal, backup: see these.
        thresholds: above these a head has a role.
    """

    scores: list[str] = field(default_factory=lambda: list(SCORES[:4]))
    pairs: int = 16
    top: int = 5
    circuit: str | None = None
    repeats: Repeats = Repeats()
    passages: Passages = Passages()
    algorithm: AlgorithmSearch = AlgorithmSearch()
    thresholds: dict[str, float] = field(
        default_factory=lambda: {
            **dict.fromkeys(REPEATED, 0.4),
            "successor": 0.5,
            "copying": 0.1,
            "copy_suppression": 0.1,
        }
    )
    causal: CausalChecks = CausalChecks()
    backup: BackupSearch = BackupSearch()

    def __post_init__(self) -> None:
        choices: list[tuple[str, Sequence[str], Sequence[str]]] = [
            ("scores", self.scores, SCORES),
            ("causal.roles", self.causal.roles, (*REPEATED, *ON_TASK)),
            ("causal.ablation", [self.causal.ablation], KINDS),
            ("algorithm.parts", [self.algorithm.parts], ("B", "C", "D")),
        ]
        for name, values, allowed in choices:
            unknown = [value for value in values if value not in allowed]
            if unknown:
                raise UserError(f"heads.{name}: '{unknown[0]}' is unknown; choose from {', '.join(allowed)}")
