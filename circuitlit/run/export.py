"""A saved circuit in another tool's file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.graph import Circuit, export_circuit, load_circuit
from circuitlit.progress import CONSOLE


def run(cfg: DictConfig) -> Any:
    """Write the circuit `circuit` in the format `format` to `out`, or into the run directory (`pruned` always there).

    Raises:
        UserError: not a circuit, an unknown format, a file that cannot be written, or `out` with `pruned`.
    """
    if cfg.format == "pruned" and cfg.out:
        raise UserError("format=pruned writes a folder into the run's own, not to out; set hydra.run.dir=DIR instead")
    circuit = load_circuit(cfg.circuit)
    if cfg.format == "pruned":
        from circuitlit.run import pruned  # loads models, which the other formats do without

        return pruned.run(cfg, circuit)
    suffix = "pt" if cfg.format == "mib_pt" else "json"
    out = Path(cfg.out) if cfg.out else run_dir() / f"{cfg.format}.{suffix}"
    export_circuit(circuit, out, cfg.format, _width(cfg, circuit))
    CONSOLE.print(f"{circuit.n_edges:,} of {circuit.kept.numel():,} edges: {out}", highlight=False, soft_wrap=True)
    return {"out": str(out), "n_edges": circuit.n_edges}


def _width(cfg: DictConfig, circuit: Circuit) -> int:
    """The residual stream's width, which the formats want and a graph does not know."""
    model = circuit.provenance.get("model")
    width = cfg.d_model or (model.get("d_model") if isinstance(model, dict) else None)
    if not isinstance(width, int):
        raise UserError(f"{cfg.circuit} does not say how wide its model is; give it: d_model=768")
    return width
