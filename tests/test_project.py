"""The layout is the argument: parts import only earlier parts, public names resolve, every config composes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, ListConfig, OmegaConf

import circuitlit
from circuitlit.cli.main import VERBS
from circuitlit.cli.schema import check_settings
from circuitlit.model import graph_of
from circuitlit.model.load import config_from

ROOT = Path(__file__).parent.parent
ORDER = [
    "errors",
    "arguments",
    "files",
    "lock",
    "plain_types",
    "store",
    "result",
    "progress",
    "products",
    "surroundings",
    "tasks",
    "graph",
    "model",
    "masked",
    "objective",
    "discover",
    "evaluate",
    "heads",
    "finetune",
    "compare",
    "timeline",
    "report",
    "watch",
    "cli",
    "run",
]
CONF = ROOT / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra")
OPTIONS = {group: [f"{group}={p.stem}" for p in sorted((CONF / group).glob("[!_]*.yaml"))] for group in GROUPS}
ALONE = ("compat", "debug", "experiment")  # they set what other groups set; presets of the others go side by side
BESIDE = zip_longest(*(OPTIONS[group] for group in GROUPS if group not in ALONE))
CHOICES = [[one] for group in ALONE for one in OPTIONS[group]] + [[one for one in row if one] for row in BESIDE]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def nodes_by_path() -> Iterator[tuple[str, list[ast.AST]]]:
    """Every module of a part, with what it says."""
    for path in sorted((ROOT / "circuitlit").glob("*/**/*.py")):
        yield path.relative_to(ROOT / "circuitlit").as_posix(), list(ast.walk(ast.parse(path.read_text())))


def test_parts_import_only_earlier_parts() -> None:
    for path, nodes in nodes_by_path():
        own = path.partition("/")[0]
        for node in nodes:
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("circuitlit."):
                part = module.split(".")[1]
                assert ORDER.index(part) <= ORDER.index(own), f"{path}: {own} must not know {part}"


RAW = {"cli/build.py"}  # means of scores over processes and pairs, which are scores again


def test_raw_scores_are_read_by_their_makers_alone() -> None:
    """`EdgeScores.values` may be log-alphas: everybody else takes `order`, to select, or `weight`."""
    for name, nodes in nodes_by_path():
        if name.startswith(("graph/", "discover/")) or name in RAW:
            continue
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}  # a dictionary's values()
        read = [node for node in nodes if isinstance(node, ast.Attribute) and id(node) not in called]
        raw = [node for node in read if node.attr == "values" and ast.unparse(node.value).endswith("scores")]
        assert not raw, f"{name}, line {raw[0].lineno}: reads {ast.unparse(raw[0])}"


def test_public_names_resolve() -> None:
    for name in circuitlit.__all__:
        assert getattr(circuitlit, name).__doc__


def test_no_public_name_is_that_of_a_part() -> None:
    parts = {path.stem for path in (ROOT / "circuitlit").iterdir() if path.stem.isidentifier()}
    assert len(parts) > 15 and not parts & set(circuitlit.__all__)


@pytest.mark.parametrize("stub", sorted((ROOT / "circuitlit").rglob("__init__.pyi")), ids=lambda p: p.parent.name)
def test_no_module_hides_what_is_loaded_lazily_from_it(stub: Path) -> None:
    """An imported submodule becomes an attribute of its package, and then nothing of that name is looked for."""
    eager = (stub.with_suffix(".py")).read_text()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module in {alias.asname or alias.name for alias in node.names}:
            assert f"import {node.module} as {node.module}" in eager, f"{stub.parent.name}.{node.module} is hidden"


def test_every_group_of_the_design_is_there() -> None:
    expected = (
        "ablation adapter callbacks compat debug experiment logger mask method model objective paths sparsity strategy"
    )
    assert set(GROUPS) == {*expected.split(), "task", "trainer", "tune"}


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: chosen[0])
def test_every_config_composes_and_names_real_things(chosen: list[str]) -> None:
    cfg = composed(*chosen, "hydra.runtime.output_dir=/out")
    assert cfg.verb in VERBS
    HydraConfig.instance().set_config(cfg)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for missing in OmegaConf.missing_keys(own):
        OmegaConf.update(own, missing, "given by the user")
    check_settings(own, cfg.verb)
    pending = [cfg[g] for g in GROUPS if cfg.get(g)]
    found = 0
    while pending:
        node = pending.pop()
        if isinstance(node, DictConfig):
            target = OmegaConf.to_container(node, resolve=False).get("_target_")  # type: ignore[union-attr]
            if target:
                found += 1
                try:
                    get_class(target)
                except (ValueError, HydraException):
                    get_method(target)
            pending += [node._get_node(key) for key in node]
        elif isinstance(node, ListConfig):
            pending += list(node)
    assert found >= 4


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_an_experiment_says_holds_for_its_verb(file: Path) -> None:
    said: dict = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    said.pop("defaults", None)
    verb = composed(f"experiment={file.stem}").verb if "verb" not in said else said["verb"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(verb, [f"experiment={file.stem}"]))

    def holds(part: Any, own: Any) -> bool:
        if isinstance(part, dict) and "_target_" not in part:
            return all(holds(value, own[key]) for key, value in part.items())
        return part == own

    assert holds(said, cfg)


@pytest.mark.parametrize(
    "option,edges",
    [
        ("gpt2", 32_491),
        ("smollm2", 70_651),
        ("pythia_1.4b", 231_493),
        ("codellama_13b", 3_877_661),
        ("codellama_34b", 5_949_001),
        ("llama3_70b", 16_654_201),
    ],
)
def test_edge_counts_from_config_alone(option: str, edges: int) -> None:
    architecture = OmegaConf.to_container(composed(f"model={option}").model.architecture)
    assert graph_of(config_from(architecture)).n_edges == edges  # type: ignore[arg-type]


@pytest.mark.parametrize("preset,share", [("p90", 0.9), ("p95", 0.95), ("p97", 0.97), ("p98", 0.98), ("p99", 0.99)])
def test_sparsity_presets(preset: str, share: float) -> None:
    assert composed(f"sparsity={preset}").sparsity.target == share


NOT_IMPORTED = {  # one after the other in one process
    "circuitlit.cli.main": {"torch", "lightning", "transformers"},
    "circuitlit.run.export": {"lightning", "transformers", "scipy", "plotly", "wandb"},
    "circuitlit.run.timeline": {"lightning", "transformers", "torchmetrics", "wandb", "deepspeed"},
    "circuitlit.report.page": {"lightning", "transformers", "torchmetrics", "wandb", "deepspeed"},
}


@pytest.mark.long
def test_what_a_verb_does_not_use_is_not_imported() -> None:
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, *NOT_IMPORTED], capture_output=True, text=True, check=True)
    for (name, unwanted), imported in zip(NOT_IMPORTED.items(), done.stdout.splitlines(), strict=True):
        assert not unwanted & set(imported.split()), name


def test_no_module_imports_itself_through_others() -> None:
    root = ROOT / "circuitlit"
    paths = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    arrows: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        found = [(node.module or "", one.name) for node in imported for one in node.names]
        arrows[name] = {f"{m}.{n}" if f"{m}.{n}" in modules else m for m, n in found} & set(modules)
    while free := [name for name, to in arrows.items() if not to & set(arrows)]:
        for name in free:
            del arrows[name]
    assert not arrows, f"a circle among {sorted(arrows)}"
