"""The running command's configuration, composed again with other settings."""

from __future__ import annotations

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from circuitlit.run.arguments import setting
from circuitlit.run.schema import check_settings


def composed(*settings: str) -> DictConfig:
    """The command's own configuration with some settings changed.

    Raises:
        UserError: one of them does not exist or is not of its kind.
    """
    keys = {_key(word) for word in settings}
    hydra = HydraConfig.get()
    own = [override for override in hydra.overrides.task if _key(override) not in keys]
    verb = hydra.job.config_name
    assert verb is not None
    cfg = compose(verb, [*own, *(setting(verb, word) for word in settings)])
    check_settings(cfg, verb)
    return cfg


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def preset(group: str, name: str) -> DictConfig:
    """A group as one of its presets has it, whatever the command or its experiment set for the one that it chose."""
    config_name = HydraConfig.get().job.config_name
    assert config_name is not None
    return compose(config_name, [f"{group}={name}"])[group]
