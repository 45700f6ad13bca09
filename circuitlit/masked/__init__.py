"""The edge-masked forward: exact, and as cheap as its arithmetic allows."""

from circuitlit.masked.ablation import Ablated, ablated_run, mean_writers, run_writers
from circuitlit.masked.forward import MaskedModel

__all__ = ["Ablated", "MaskedModel", "ablated_run", "mean_writers", "run_writers"]
