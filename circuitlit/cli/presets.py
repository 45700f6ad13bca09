"""Which presets there are: those of conf/, and those of the folders that Hydra is told of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from circuitlit.cli.kinds import Kind
from circuitlit.cli.wording import no_preset, shown

PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """The configuration tree: beside the package in a checkout, inside it when installed."""
    beside = PACKAGE.parent / "conf"
    return beside if (beside / "base.yaml").is_file() else PACKAGE / "conf"


@cache
def presets() -> dict[str, list[str]]:
    """The presets in conf/ of every group, but for Hydra's own groups."""
    groups = (folder for folder in sorted(conf_dir().iterdir()) if folder.is_dir() and folder.name != "hydra")
    return {group.name: sorted(file.stem for file in group.glob("[!_]*.yaml")) for group in groups}


def known_presets(group: str) -> list[str]:
    """The presets of a group, of conf/ and of any other folder that Hydra looks through; none before it does."""
    if not (GlobalHydra.instance().is_initialized() and HydraConfig.initialized()):
        return []
    folders = [source.path for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]
    return sorted({file.stem for folder in folders for file in Path(folder, group).glob("[!_]*.yaml")})


def preset(group: str) -> Kind:
    """The name of a preset of a group, of conf/ or of any other folder that Hydra has been told of."""

    def fault(key: str, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"{key}={shown(value)} is not a preset of {group}"
        options = known_presets(group)
        return f"{key}: {no_preset(group, value, options)}" if options and value not in options else None

    return Kind(f"a preset of {group}", fault)
