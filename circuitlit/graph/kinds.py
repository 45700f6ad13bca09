"""The kind of scores in a file; files of format 1 do not say it, but for the name of the method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

EFFECTS = ("eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "mask_gradients", "relp", "exact", "acdc")
SHARES = ("information_flow", "edge_pruning_2024", "random_scores")
GATES = {
    "hard_concrete": {"threshold": 0.4 * math.log(0.1 / 1.1)},
    "sparse_difference": {"threshold": 2 / 3 * math.log(0.1 / 1.1)},
    "sigmoid_topk": {"softness": 0.5},
}


def kind_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `kind`, `unit`, `threshold` and `softness` of the scores that a file's header describes.

    In format 1 whatever was ranked by magnitude was an effect, and what was not, and is not known, a gate.
    """
    if "kind" in header:
        return {name: header[name] for name in ("kind", "unit", "threshold", "softness") if name in header}
    method = str(header["method"])
    if method in SHARES or method.startswith(("consensus of ", "mean of both")):
        return {"kind": "share"}
    if header["ranks_by_magnitude"] or method in EFFECTS:
        return {"kind": "effect"}
    return {"kind": "gate", **GATES.get(method, {})}
