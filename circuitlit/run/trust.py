"""The trust card of any saved circuit, row by row."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.build import build_procedure, build_splits, build_subject, build_workbench, plain, preset_method
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.loggers import open_loggers
from circuitlit.errors import UserError
from circuitlit.evaluate.trust.card import TrustCard, measure_trust, share_trust
from circuitlit.graph import load_circuit
from circuitlit.progress import phase, say
from circuitlit.report.trust import print_trust, write_trust
from circuitlit.report.wandb_log import log_trust


def run(cfg: DictConfig) -> TrustCard | None:
    """Make the rows of `trust.only`, and write `trust.json` and a page into the run directory.

    One of several parts makes what the others have not begun, and sums nothing up.

    Raises:
        UserError: a part that does not exist.
    """
    prepare(cfg)
    settings = plain(cfg.trust)
    place, places = settings.pop("part"), settings.pop("parts")
    if place not in range(places):
        raise UserError(f"trust.part={place} is not one of the parts 0 to {places - 1}")
    only, pairs = settings.pop("only"), settings["errors"].pop("pairs")
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        subject = build_subject(cfg)
        circuit, earlier = load_circuit(cfg.circuit, subject.graph), settings["errors"].pop("baseline")
        if earlier is not None:
            settings["errors"]["baseline"] = load_circuit(earlier, subject.graph)
        bench = build_workbench(cfg, subject, splits=build_splits(cfg, subject, pairs))
    if not circuit.n_edges:
        circuit = bench.cut(circuit.scores, circuit.provenance)
    stable, robust = settings["stable"], settings["robust"]
    stable["baseline"] = stable["baseline"] and preset_method(cfg, stable["baseline"])
    for part in (stable, robust):
        part |= build_procedure(cfg, circuit, part.pop("by"))
    settings["unique"] |= {"schedule": instantiate(cfg.mask.schedule), "gates": instantiate(cfg.mask.gates)}
    folder, own = run_dir() / "trust", {"only": only, "settings": settings, "seed": cfg.seed}
    if places > 1:
        share_trust(bench, circuit, folder, **own)
        return say(f"part {place} of {places} is done")
    found = measure_trust(bench, circuit, folder=folder, **own)
    found = finish(cfg, found, subject, write_trust, print_trust)
    with open_loggers(cfg) as loggers:
        log_trust(loggers, found, run_dir())
    return found
