"""The settings of the verbs trust and rivals and what each may be."""

from __future__ import annotations

from circuitlit.cli.kinds import Kind, choice, flag, listed, number, share, text, whole
from circuitlit.cli.presets import preset
from circuitlit.cli.settings import CIRCUIT, COUNT, SOME

PARTS = ("preserved", "chance", "errors", "ablations", "generalises", "minimal", "stable", "robust", "unique")
RIVALS: dict[str, Kind] = {  # of the verb rivals, and of the trust card's part
    "shares": listed(share()),
    "starts": listed(choice("removed", "whole", "equal"), 1),
    "precision": share(zero=False),
    "within": share(zero=False),
    "exact": share(),
    "draws": COUNT,
    "probe_pairs": COUNT,
    "pairs": COUNT,
    "control": flag(),
}
STABILITY: dict[str, Kind] = {  # of the trust card's part
    "by": choice("auto", "masks", "attribution"),
    "causes": listed(choice("pairs", "sentences", "seed", "start", "ablation"), 1),
    "halves": whole(2),
    "resamples": whole(2),
    "seeds": whole(2),
    "share": share(zero=False),
    "pairs": SOME,
    "baseline": preset("method") | None,
}
ROBUSTNESS: dict[str, Kind] = {  # of the trust card's part
    "by": choice("auto", "masks", "attribution"),
    "kinds": listed(choice("noise", "mixed", "swapped"), 1),
    "shares": listed(share()),
    "draws": whole(2),
    "resamples": whole(2),
    "pairs": SOME,
}
TRUST: dict[str, Kind] = {
    "circuit": CIRCUIT,
    "trust.only": listed(choice(*PARTS), 1),
    "trust.part": SOME | None,
    "trust.parts": COUNT,
    "trust.preserved.pairs": COUNT,
    "trust.chance.draws": COUNT,
    "trust.chance.pairs": COUNT,
    "trust.minimal.edges": COUNT,
    "trust.minimal.random": whole(20),
    "trust.minimal.knockouts": SOME,
    "trust.minimal.pairs": COUNT,
    "trust.errors.pairs": COUNT | None,
    "trust.errors.most": COUNT,
    "trust.errors.least": COUNT,
    "trust.errors.within": number(0),
    "trust.errors.baseline": CIRCUIT | None,
    "trust.ablations.pairs": COUNT,
    "trust.ablations.positional": flag(),
    "trust.ablations.steps": COUNT,
    "trust.ablations.lr": number(above=0, most=1e6),
    "trust.ablations.random": SOME,
    "trust.ablations.random_pairs": COUNT,
    "trust.generalises.pairs": COUNT,
    "trust.generalises.front": text(),
    **{f"trust.stable.{name}": kind for name, kind in STABILITY.items()},
    **{f"trust.robust.{name}": kind for name, kind in ROBUSTNESS.items()},
    **{f"trust.unique.{name}": kind for name, kind in RIVALS.items()},
}
