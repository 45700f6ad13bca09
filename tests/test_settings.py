"""The schema of all settings: nothing in conf/ that it does not know, nothing in it that conf/ does not have."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli import QUICK_LOOK, call, settings
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from hypothesis import assume, example, given
from hypothesis import strategies as st

from circuitlit.cli import targets
from circuitlit.cli.arguments import setting
from circuitlit.cli.main import VERBS
from circuitlit.cli.schema import check_settings
from circuitlit.cli.settings import SETTINGS
from circuitlit.cli.verb_settings import OF_VERBS
from circuitlit.errors import UserError
from circuitlit.objective import UNITS

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
GIVEN = {  # what the code gives to each kind of target, beside the settings
    "TASKS": {"tokenizer"},
    "METHODS": {"loss", "references", "batches", "each", "each_batch", "numbers", "absent"},
    "GATES": set(),
    "LEARNERS": {*"args kwargs loss references initial target schedule gates seed constraint_gradient".split()},
    "SCHEDULES": set(),
    "ADAPTERS": {"model", "steps"},
    "TUNERS": {"args", "more", "model", "optimisation", "seed", "reference"},
    "LOGGERS": set(),
    "STRATEGIES": set(),
}


def test_every_verb_has_its_settings() -> None:
    assert set(OF_VERBS) == set(VERBS)


def test_no_setting_is_declared_that_no_configuration_has() -> None:
    written = {key for file in CONF.rglob("*.yaml") for key in _keys(file)}
    for key in [*SETTINGS, *(key for own in OF_VERBS.values() for key in own)]:
        assert key in written, key


@pytest.mark.parametrize("group", GIVEN)
def test_what_a_target_is_made_of_is_its_signature(group: str) -> None:
    for target, declared in getattr(targets, group).items():
        if target.startswith("circuitlit."):
            assert set(inspect.signature(get_object(target)).parameters) - GIVEN[group] == set(declared), target


def test_every_objective_may_be_named() -> None:
    path = targets.LOSSES["hydra.utils.get_method"]["path"]
    for objective in UNITS:
        assert path.fault("x", f"{objective.__module__}.{objective.__name__}") is None


@given(st.text())
@example("a b=c,d")
@example("it's (not) [a] {list}: 電路\\")
@example("'")
@example('"x"y"')
def test_a_path_is_taken_as_it_stands(text: str) -> None:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    assume(text.strip() and text not in ("null", "???") and "${" not in text and text[0] != "~" and not quoted)
    assume(not any("\ud800" <= letter <= "\udfff" for letter in text) and "\0" not in text)
    read = OverridesParser.create().parse_override(setting("train", f"paths.runs={text}"))
    assert read.key_or_group == "paths.runs" and read.value() == text


def test_lists_may_be_written_as_in_yaml_and_home_as_in_a_shell() -> None:
    parse = OverridesParser.create().parse_override
    words = setting("study", "study.tasks=[{name: 二 one, with: [task=ioi, seed=3]}]")
    assert parse(words).value() == [{"name": "二 one", "with": ["task=ioi", "seed=3"]}]
    for words in ("paths.runs=~/runs", "paths.runs='~/runs'", 'paths.runs="~/runs"', "hydra.run.dir='~/runs'"):
        assert parse(setting("train", words)).value() == f"{Path.home()}/runs"
    assert setting("train", "+seed=3") == "seed=3" and setting("train", "logger=null") == "logger=none"
    assert setting("train", "adapter.build.rank_pattern.up=3").startswith("++")
    with pytest.raises(UserError, match=r"study.tasks\[0\].wiht"):
        setting("study", "study.tasks=[{name: x, with: [], wiht: 3}]")


def test_home_in_lists_of_paths() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("report", ["runs=['~/','~']", "hydra.runtime.output_dir=/out"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        cfg = compose("report", ["runs=['~/','~']"])
    check_settings(cfg, "report")
    assert list(cfg.runs) == [f"{Path.home()}/", str(Path.home())]


def test_a_run_in_folders_with_any_name(local: Path, tmp_path: Path) -> None:
    place = tmp_path / "it's (1) = 電路, [x] {y} ~"
    shutil.copytree(local, place / "in")
    call(*settings(place / "in", place / "out", "logger=none"), verb="attribute")
    assert json.loads((place / "out" / "result.json").read_text())["steps"] == 0


def test_a_quick_look_at_a_task(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path), *QUICK_LOOK, verb="attribute")
    assert json.loads((tmp_path / "result.json").read_text())["n_pairs"] == 7


def test_mistakes_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from circuitlit.cli.main import run_verb
for words in (["mask.sites=node"], ["model=local", "model.path=nowhere", "hydra.run.dir=" + sys.argv[1]]):
    try:
        run_verb("train", ["train.py", *words])
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "never")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["1", "False", "1", "False"], shown.stderr
    assert shown.stderr.count("error: ") == 2


@pytest.mark.parametrize("command", [["train.py"], ["-m", "circuitlit"]])
def test_the_version(command: list[str]) -> None:
    shown = subprocess.run([sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith("circuitlit 0.") and not shown.stderr


def _keys(file: Path) -> set[str]:
    """Whole names of the settings and sections that a file of conf/ holds."""
    content, group = yaml.safe_load(file.read_text()) or {}, file.relative_to(CONF).parts[:-1]
    prefix = "" if "@package _global_" in file.read_text() or not group else f"{group[0]}."

    def under(start: str, node: object) -> set[str]:
        if not isinstance(node, dict):
            return set()
        return {f"{start}{key}" for key in node}.union(*(under(f"{start}{key}.", node[key]) for key in node))

    return under(prefix, content) | {".".join(group)}
