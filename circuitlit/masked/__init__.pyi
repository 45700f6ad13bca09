# What masked/__init__.py offers, each imported when it is first used.
from .ablation import Ablated, ablated_run, mean_writers, run_writers
from .forward import MaskedModel
from .reference import Reference, References

__all__ = [
    "Ablated",
    "MaskedModel",
    "Reference",
    "References",
    "ablated_run",
    "mean_writers",
    "run_writers",
]
