"""The mask files of a run, finished or not, and the settings it had: what its timeline is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuitlit.discover.schedule import Schedule
from circuitlit.errors import UserError
from circuitlit.graph import Graph, MaskLayout
from circuitlit.timeline.snapshots import Snapshots

Row = dict[str, float]


def mask_files(folder: Path) -> dict[int, Path]:
    """The files of a `masks` folder by step, first to last."""
    paths = sorted(folder.glob("step_*.safetensors"))
    return dict(sorted((int(path.stem.split("_")[1]), path) for path in paths))


def read_snapshots(folder: Path) -> Snapshots:
    """Read the masks of a run directory.

    Args:
        folder: with `masks/` and `.hydra/config.yaml`.

    Raises:
        UserError: no run, no masks, or damaged ones.
    """
    files = mask_files(folder / "masks")
    if not files:
        raise UserError(f"{folder}: no masks/step_*.safetensors; name the directory of a run of `train`")
    header = _header(files[max(files)])
    cfg = _settings(folder / ".hydra" / "config.yaml")
    seen = Snapshots(
        MaskLayout(Graph(**header["graph"]), tuple(header["roles"]), header["sites"]),
        header["count"],
        Schedule(**_fields(cfg, "mask.schedule")),
        cfg.sparsity.target,
        instantiate(cfg.mask.gates),
    )
    for step, path in files.items():
        seen.add(step, load_masks(path))
    return seen


def read_curves(folder: Path) -> list[Row]:
    """Rows of a run's `history.json`; none where it has not written any.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "history.json"
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text())["rows"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it, or write the run again") from error


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
