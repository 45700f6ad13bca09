"""An experiment of one's own wins over whatever its verb says by itself, and the command line over both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from circuitlit.cli.main import VERBS

CONF = Path(__file__).parent.parent / "conf"
PRESETS = {"method": "relp", "logger": "csv", "callbacks": "headless", "adapter": "ia3"}  # no verb chooses these
LEFT_OUT = ("defaults", "hydra", "verb")


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Whole names of the settings that a file sets."""
    for name, value in content.items():
        if isinstance(value, dict) and "_target_" not in value:
            yield from leaves(value, f"{prefix}{name}.") if name not in LEFT_OUT else ()
        elif name not in LEFT_OUT:
            yield f"{prefix}{name}"


def written(folder: Path, group: str, values: dict[str, Any], **more: Any) -> str:
    """A preset of one's own, `mine`, and the word that has Hydra find it."""
    content = OmegaConf.create()
    for name, value in values.items():
        OmegaConf.update(content, name, value, force_add=True)
    (folder / group).mkdir()
    head = "# @package _global_\n" if group == "experiment" else ""
    text = yaml.safe_dump({**more, **OmegaConf.to_container(content)})  # type: ignore[dict-item]
    (folder / group / "mine.yaml").write_text(head + text)
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize("verb", VERBS)
def test_an_experiment_wins_over_its_verb_and_the_command_line_over_both(verb: str, tmp_path: Path) -> None:
    files = [CONF / "base.yaml", CONF / f"{verb}.yaml"]
    names = [name for file in files for name in leaves(yaml.safe_load(file.read_text()))]
    assert len(names) > 20
    values = dict.fromkeys([*names, "hydra.run.dir"], "mine")
    chosen = [{f"override /{group}": preset} for group, preset in PRESETS.items()]
    word = written(tmp_path, "experiment", values, defaults=chosen)
    told = names[-3:]
    words = [word, "experiment=mine", *(f"{name}=theirs" for name in told), "logger=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(verb, words, return_hydra_config=True)
    found = {name: OmegaConf.select(cfg, name) for name in values}
    assert found == values | dict.fromkeys(told, "theirs") and cfg.verb == verb
    assert {group: cfg.hydra.runtime.choices[group] for group in PRESETS} == PRESETS | {"logger": "none"}


def test_a_preset_wins_over_what_holds_for_all_verbs(tmp_path: Path) -> None:
    word = written(tmp_path, "sparsity", {"target": 0.9, "select": "greedy"})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", [word, "sparsity=mine"]).sparsity == {"target": 0.9, "select": "greedy"}


def test_what_conftest_keeps_of_a_composition_is_not_what_a_command_changes() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first = compose("train", ["seed=3"])
        own = first.mask.schedule.steps
        first.mask.schedule.steps = own + 1
        second = compose("train", ["mask.schedule.lr=7"])
    assert second.mask.schedule.steps == own
    assert (first.seed, second.seed) == (3, 0) and second.mask.schedule.lr == 7 != first.mask.schedule.lr
