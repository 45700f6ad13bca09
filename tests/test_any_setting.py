"""Random values at every setting of `train`: a run, or one sentence; never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from cli import call
from cli import settings as words_of
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from circuitlit.cli.presets import conf_dir, presets
from circuitlit.cli.schema import find, names
from circuitlit.graph import Circuit, EdgeScores, Graph

DRAWS = int(os.environ.get("CIRCUITLIT_DRAWS", "300"))
LEFT_OUT = {  # they would change where the test writes, or start processes that it does not see
    *"hydra resume run_id overwrite paths.runs paths.cache_dir trainer.default_root_dir".split(),
    *"strategy.options.devices strategy.options.num_nodes data.num_workers".split(),
}
GROUPS = set(presets()) - {"model", "experiment", "strategy", "paths", "compat", "logger"}  # those stay small and local
THINGS = "{model} {model}/config.json {pairs} {circuit} {circuit}/circuit.safetensors {empty} {bytes} {folder}".split()
NUMBERS = ["0", "1", "2", "3", "5", "12", "40", "0.01", "0.3", "0.5", "0.97", "1.5", "-1", "-0.3", "1e-9", "1e9"]
TEXTS = ["", "abc", "it's", "a b=c", "電路", "~/x", "~", "???", "null", "true", "[1,2]", "[a,b]", "{a:1}", "[[", "a,b"]
TEXTS += ["${seed}", "${nowhere}", "${oc.env:NOWHERE}", "none", "nan", "-inf", "1e400", "0x10", "1_000", "\\", "'", '"']


def values(key: str) -> st.SearchStrategy[str]:
    """Values that are of the setting's kind, mostly, and others."""
    kind = find(key, "train")
    words = [word for word in re.split(r", | or ", kind.wants) if " " not in word] if kind else []
    singles = [*words, *NUMBERS, "true", "false", "null"]
    lists = [f"[{','.join(each)}]" for size in (0, 1, 2) for each in product(singles[:12], repeat=size)]
    right = [each for each in (*singles, *lists) if kind and not kind.fault(key, yaml.safe_load(each))]
    right += THINGS if kind and kind.literal else []
    numbers = st.integers().map(str) | st.floats().map(str)
    some = st.one_of(st.sampled_from(TEXTS), st.sampled_from([*singles, *THINGS]), numbers, st.text(max_size=5))
    return st.one_of(*[st.sampled_from(right or TEXTS)] * 4, some)


@cache
def own_keys() -> list[str]:
    """The settings that a run on a file has, by their whole names."""

    def under(prefix: str, node: DictConfig) -> Iterator[str]:
        for key in map(str, node):
            inner = node._get_node(key)
            yield from under(f"{prefix}{key}.", inner) if isinstance(inner, DictConfig) else [f"{prefix}{key}"]

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return sorted(set(under("", compose("train", ["model=local", "task=jsonl", "logger=none"]))) - LEFT_OUT)


@st.composite
def changes(draw: st.DrawFn) -> list[str]:
    """One to three settings, or presets, with values."""
    own, every, groups = own_keys(), sorted(set(names("train")) - LEFT_OUT), sorted(GROUPS)
    keys = st.one_of(*map(st.sampled_from, (own, own, groups, every)))
    made = []
    for key in draw(st.lists(keys, min_size=1, max_size=3, unique=True)):
        options = presets().get(key)
        made.append(f"{key}={draw(st.sampled_from(options) if options else values(key))}")
    return made


@pytest.fixture(scope="module")
def things(local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("things")
    graph = Graph(2, 2, 2)
    (folder / "circuit").mkdir()
    Circuit.cut(EdgeScores(graph, torch.rand(1, graph.n_edges), "test"), 9).save(folder / "circuit")
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(bytes(range(256)))
    names = {name: folder / name for name in ("circuit", "empty", "bytes")}
    return {"model": local / "model", "pairs": local / "pairs.jsonl", "folder": folder, **names}


@pytest.mark.slow
def test_a_run_or_one_sentence(local: Path, things: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quick = ["logger=none", "mask.schedule.steps=3", "evaluate.controls=2", "task.build.n_test=4"]

    @settings(
        max_examples=DRAWS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.generate],
    )
    @given(changes())
    def run(words: list[str]) -> None:
        for name, thing in things.items():
            words = [word.replace(f"{{{name}}}", str(thing)) for word in words]
        said, status = io.StringIO(), 0
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                call(*words_of(local, Path(folder) / "out", *quick, *words))
            except SystemExit as stop:
                status = stop.code
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        if status != 0:
            assert status in (1, 3), (words, lines)
            assert len(lines) == 1 and lines[0].startswith("error: "), (words, lines)

    run()
