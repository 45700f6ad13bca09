"""The running command's configuration, composed again with other settings, for series of runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from circuitlit.cli.arguments import setting
from circuitlit.cli.presets import known_presets
from circuitlit.cli.schema import check_settings
from circuitlit.errors import UserError
from circuitlit.files import file_name

ONE_MODEL = ("model", "adapter")  # a series of runs loads one
PAIRS_ALONE = (*ONE_MODEL, "ablation", "mask", "sparsity", "objective", "method")  # where entries only give pairs


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


def typed() -> set[str]:
    """The settings that stand in the command itself."""
    return {_key(override) for override in HydraConfig.get().overrides.task}


def check_shared(own: DictConfig, whole: DictConfig, label: str, groups: Iterable[str]) -> None:
    """Refuse an entry that changes what is made once for all entries, for nobody would look at its own.

    Args:
        own: the entry's configuration.
        whole: the command's.
        label: of the entry, with its list.
        groups: what all entries share.

    Raises:
        UserError: it changes one of them.
    """
    changed = next((group for group in groups if _plain(own, group) != _plain(whole, group)), None)
    if changed:
        raise UserError(f"{label} sets {changed}, which is one for all entries; set it beside the list")


def _plain(cfg: DictConfig, group: str) -> object:
    return OmegaConf.to_container(cfg[group], resolve=True) if group in cfg else None


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def preset(group: str, name: str) -> DictConfig:
    """A group as one of its presets has it, whatever the command or its experiment set for the one that it chose."""
    config_name = HydraConfig.get().job.config_name
    assert config_name is not None
    return compose(config_name, [f"{group}={name}"])[group]


@dataclass(frozen=True)
class Entry:
    """A task, method or learner of a series of runs.

    Attributes:
        name: its label.
        settings: what makes it.
        cost: of one of its cells, a mask run's being 1; None is what such cells usually cost. A study in parts shares
            them out by it.
    """

    name: str
    settings: tuple[str, ...]
    cost: float | None = None


def entries(items: ListConfig | None, group: str) -> list[Entry]:
    """A list of presets, or of labels with settings, as entries.

    Raises:
        UserError: an item is neither a preset's name nor {name, with}, a label is there twice, or it is the name of a
            preset that the item does not take.
    """
    made = []
    for item in items or []:
        if isinstance(item, str):
            made.append(Entry(item, (f"{group}={item}",)))
        elif isinstance(item, DictConfig) and {"name", "with"} <= set(item) <= {"name", "with", "cost"}:
            settings = tuple(str(word) for word in item["with"])
            _check_label(str(item.name), settings, group)
            made.append(Entry(str(item.name), settings, item.get("cost")))
        else:
            raise UserError(f"'{item}' is neither a preset of {group} nor {{name: LABEL, with: [settings]}}")
    labels = [file_name(entry.name) for entry in made]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UserError(f"two entries of {group} are called '{twice}'; give each a name of its own")
    return made


def _check_label(label: str, settings: Iterable[str], group: str) -> None:
    """Refuse a label that is a preset's name where another preset would run: a label chooses nothing."""
    chosen = HydraConfig.get().runtime.choices.get(group)
    if label in known_presets(group) and label != chosen and group not in map(_key, settings):
        raise UserError(
            f"{{name: {label}}} is a label, and {group}={chosen} would run under it; write {group}={label} among the "
            "entry's settings, or another name"
        )
