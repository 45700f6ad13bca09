"""How masks evolved over a run: which edges are in, how fast that changes, and the stages it falls into.

Everything is about the `k` best edges of each snapshot, `k` being the final circuit's count, because their number does
not move with the sparsity schedule. `evolution.json` in a run's directory holds, with S snapshots and L layers:

    format          2
    steps           [S] training steps, from the masks' start to the last snapshot
    count, n_masks  edges in the circuit, masks in all (edges times token roles)
    roles           names of the token roles; empty for one mask at all positions
    graph           n_layers, n_heads, n_kv_heads, parallel
    schedule        steps: of the whole run; knots: step or null of {warmup_end, harden_start, hard_start,
                    lr_height, lr_half}; sparsity: [S] asked for; noise: [S] scale of the gates' noise
    overlap_final   [S] chance-corrected Jaccard overlap with the last snapshot: 1 the same edges, 0 as by chance
    progress        [S] the same, rescaled to 0 at the first snapshot and 1 at the last
    overlap_previous [S] overlap with the snapshot before; first null
    churn           [S] edges that went in or out since the snapshot before; first null
    velocity        [S] (1 - overlap_previous) per hundredth of the run's steps
    undecided       [S] share of gates with a log-alpha between -2 and 2
    open            [S] expected share of edges kept, at the noise of that step
    reachable       [S] edges of the circuit that lie on a path from the input to the logits
    hard_kl         [S] KL of the circuit as it would be cut, nats, on the probe's pairs; null where not measured
    kept            {"q", "k", "v", "mlp": [S][L], "logits": [S]} edges of the circuit by their reader's layer and kind
    flow            pairs: [P][2] writer layer, reader layer (writer 0 is the input, l + 1 layer l; reader l is layer l,
                    L the logits); counts: [S][P] edges of the circuit between them; pairs that never have any are left
                    out
    log_alpha       edges: [B + 1] of bins; counts: [S][B] gates; the outer bins hold what lies beyond, too
    stages          `Timeline.to_dict()`: verdict ("learning", "not beyond chance", "no learning", "too few
                    snapshots"); stages: four of {name, observed, start, end}; change_points, all of them; criterion;
                    n_snapshots. A start, end or change point is null or {step, low, high, mark, p, p_walk, draws,
                    status} (95 % interval; mark "schedule" within one snapshot of a knot; p among so many draws of
                    walks with the run's own steps, null at the run's own start and end; p_walk is for series of
                    checkpoints; status "beyond chance" or "not beyond chance")

`stages` stands in `result.json`, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuitlit.discover.gates import Gates
from circuitlit.discover.schedule import Schedule
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.graph import Graph, MaskLayout, reachable_edges
from circuitlit.timeline.chance import DRAWS
from circuitlit.timeline.snapshots import Snapshots
from circuitlit.timeline.stages import Timeline

KINDS = ("q", "k", "v", "mlp", "logits")
BINS = np.arange(-10, 10.5, 0.5)
Row = dict[str, float]


@dataclass(frozen=True)
class MaskRun:
    """The mask files of a run, finished or not, and the settings it had.

    Attributes:
        files: by step.
        layout, count: the masks' order, and how many edges are going to be kept.
        schedule, gates, target: settings; `target` is the sparsity asked for.
        hard_kl: by step, nats.
    """

    files: Mapping[int, Path]
    layout: MaskLayout
    count: int
    schedule: Schedule
    gates: Gates
    target: float
    hard_kl: Mapping[int, float]

    @classmethod
    def read(cls, folder: Path, rows: list[Row] | None = None, last: int | None = None) -> MaskRun:
        """Read a run directory.

        Args:
            folder: with `masks/` and `.hydra/config.yaml`.
            rows: of `history.json`; None reads the file, if there is one.
            last: step after which mask files are of another run.

        Raises:
            UserError: no run, no masks, or damaged ones.
        """
        paths = {int(path.stem.split("_")[1]): path for path in sorted((folder / "masks").glob("step_*.safetensors"))}
        files = {step: path for step, path in paths.items() if last is None or step <= last}
        if not files:
            raise UserError(f"{folder}: no masks/step_*.safetensors; name the directory of a run of `train`")
        header = _header(files[max(files)])
        cfg = _settings(folder / ".hydra" / "config.yaml")
        return cls(
            files,
            MaskLayout(Graph(**header["graph"]), tuple(header["roles"]), header["sites"]),
            header["count"],
            Schedule(**_fields(cfg, "mask.schedule")),
            instantiate(cfg.mask.gates),
            cfg.sparsity.target,
            {int(row["step"]): row["hard_kl"] for row in _rows(folder) if row.get("hard_kl") is not None}
            if rows is None
            else {int(row["step"]): row["hard_kl"] for row in rows if "hard_kl" in row},
        )

    def snapshots(self) -> Snapshots:
        """A follower that has seen nothing yet."""
        return Snapshots(self.layout.graph, self.count, self.schedule, self.layout.roles)


def save_evolution(run: MaskRun, folder: Path) -> tuple[Snapshots, Timeline]:
    """Read all masks, find the stages and write `evolution.json`."""
    seen = run.snapshots()
    histograms, opened = [], []
    for step, path in sorted(run.files.items()):
        log_alpha = load_masks(path)
        seen.add(step, of_edges(run.layout, log_alpha))
        histograms.append(np.histogram(log_alpha.clamp(BINS[0], BINS[-1]).numpy(), BINS)[0].tolist())
        share = run.layout.share(run.gates.open_probability(log_alpha, run.schedule.noise(step)))
        opened.append(round(float(share), 6))
    timeline = seen.timeline(draws=DRAWS)
    content = {
        "format": 2,
        "count": seen.count,
        "n_masks": len(seen.kept[0]),
        "roles": list(seen.roles),
        "graph": asdict(seen.graph),
        **_curves(run, seen),
        "open": opened,
        **_places(seen),
        "log_alpha": {"edges": BINS.tolist(), "counts": histograms},
        "stages": timeline.to_dict(),
    }
    write_json(folder / "evolution.json", content, indent=None)
    return seen, timeline


def of_edges(layout: MaskLayout, log_alpha: Float[Tensor, "mask"]) -> Float[np.ndarray, "edge"]:
    """One number an edge (and role): with node masks the lesser of its own and its writer's log-alpha."""
    return layout.weakest(log_alpha).flatten().numpy()


def load_masks(path: Path) -> Float[Tensor, "mask"]:
    """The log-alphas of a snapshot.

    Raises:
        UserError: not a readable file.
    """
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor("log_alpha").float()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({error}); delete the file, or write the run again") from error


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "np") as opened:
            return json.loads((opened.metadata() or {})["circuitlit"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a mask file of this version ({error}); write the run again") from error


def _settings(path: Path) -> DictConfig:
    try:
        cfg = OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); name the directory of a run of `train`") from error
    assert isinstance(cfg, DictConfig)
    return cfg


def _fields(cfg: DictConfig, node: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.select(cfg, node), resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items() if name != "_target_"}


def _rows(folder: Path) -> list[Row]:
    path = folder / "history.json"
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text())["rows"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it, or write the run again") from error


def _curves(run: MaskRun, seen: Snapshots) -> dict[str, Any]:
    """One number a snapshot."""
    steps, schedule = seen.steps, run.schedule
    final = seen.overlap_final()
    moved = 1 - final[0]
    later = range(1, len(steps))
    return {
        "steps": steps,
        "schedule": {
            "steps": schedule.steps,
            "knots": seen.knots(),
            "sparsity": _rounded([1 - schedule.open_share(step, run.target) for step in steps]),
            "noise": _rounded([schedule.noise(step) for step in steps]),
        },
        "overlap_final": _rounded(final),
        "progress": _rounded((final - final[0]) / moved if moved > 0 else np.ones(len(steps))),
        "overlap_previous": [None, *_rounded([seen.overlap_previous(at) for at in later])],
        "churn": [None, *[seen.churn(at) for at in later]],
        "velocity": _rounded(seen.velocity()),
        "undecided": _rounded(seen.undecided),
        "hard_kl": [run.hard_kl.get(step) for step in steps],
    }


def _places(seen: Snapshots) -> dict[str, Any]:
    """Where in the model the circuit's edges are: by reader, by pairs of layers, and how many can be reached."""
    graph = seen.graph
    layers = graph.n_layers
    per_layer = graph.readers_per_layer
    reader, writer = graph.reader_of.numpy(), graph.writer_of.numpy()
    reader_layer = reader // per_layer  # the logits, last, get n_layers
    bounds = np.cumsum([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])
    kind = np.where(reader_layer == layers, 4, np.searchsorted(bounds, reader % per_layer, side="right"))
    writer_layer = (writer - graph.inputs) // graph.writers_per_layer + 1  # the inputs get 0
    by_kind, flows, reachable = [], [], []
    for flat in seen.kept:
        kept = flat.reshape(-1, graph.n_edges)
        weight = kept.sum(0)
        by_kind.append(_counts(kind * (layers + 1) + reader_layer, weight, (5, layers + 1)))
        flows.append(_counts(writer_layer * (layers + 1) + reader_layer, weight, (layers + 1, layers + 1)))
        reachable.append(int(reachable_edges(graph, torch.from_numpy(kept)).sum()))
    counts = np.stack(by_kind)
    flow = np.stack(flows)
    pairs = np.argwhere(flow.any(0))
    return {
        "reachable": reachable,
        "kept": {
            **{name: counts[:, place, :layers].tolist() for place, name in enumerate(KINDS[:4])},
            "logits": counts[:, 4, layers].tolist(),
        },
        "flow": {"pairs": pairs.tolist(), "counts": flow[:, pairs[:, 0], pairs[:, 1]].tolist()},
    }


def _counts(code: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(code, weight, shape[0] * shape[1]).astype(int).reshape(shape)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 6) for value in values]
