"""The edge-masked forward: exact, and as cheap as its arithmetic allows."""

from circuitlit.masked.ablation import Ablated, ablated_run, mean_writers, run_writers
from circuitlit.masked.forward import MaskedModel
from circuitlit.masked.reference import Reference, References

__all__ = ["Ablated", "MaskedModel", "Reference", "References", "ablated_run", "mean_writers", "run_writers"]
