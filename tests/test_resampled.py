"""Scores of resampled pairs from one pass are those of a pass over the resample."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from cli import settings
from conftest import covering
from hydra import compose, initialize_config_dir

from circuitlit.cli.build import attribute, build_method, build_subject, build_workbench
from circuitlit.discover.workbench import Resampler, Workbench

CONF = str(Path(__file__).parent.parent / "conf")
ROWS = [0, 0, 3, 5, 5, 5, 2, 7]


@pytest.mark.long
@pytest.mark.parametrize(
    "method,roles",
    covering(["eap", "eap_ig", "clean_corrupted", "relp", "eap_ig_activations"], [False, True]),
)
def test_one_pass_gives_every_resample(
    local: Path, tmp_path: Path, method: str, roles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [f"method={method}", f"mask.roles={roles}", "data.batch_size=3", "method.max_batches=null"]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("attribute", [*settings(local, tmp_path), *more])
    bench = build_workbench(cfg, build_subject(cfg))
    expected = bench.score(build_method(cfg), ROWS), attribute(cfg, bench)
    passes, score_edges = [], Workbench.score
    monkeypatch.setattr(Workbench, "score", lambda *a, **k: passes.append(1) or score_edges(*a, **k))
    score = Resampler(bench, build_method(cfg))
    for found, one in zip((score(ROWS), score.scores), expected, strict=True):
        assert found.values.shape == one.values.shape
        torch.testing.assert_close(found.values, one.values, rtol=1e-3, atol=1e-6)
        assert found.details == one.details
        assert found.method == one.method
    assert not torch.allclose(expected[0].values, expected[1].values)
    assert len(passes) == 1


@pytest.mark.parametrize("more", [["method=mask_gradients"], ["method=eap", "method.max_batches=1"]])
def test_other_methods_and_fewer_batches_are_run_again(local: Path, tmp_path: Path, more: list[str]) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("attribute", [*settings(local, tmp_path), "data.batch_size=3", *more])
    bench = build_workbench(cfg, build_subject(cfg))
    torch.testing.assert_close(
        Resampler(bench, build_method(cfg))(ROWS).values, bench.score(build_method(cfg), ROWS).values
    )


def test_fewer_batches_take_pairs_of_as_many_sentences_as_possible(local: Path, tmp_path: Path) -> None:
    """The first pairs by length are of the one or two shortest sentences."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("attribute", [*settings(local, tmp_path), "data.batch_size=2", "method.max_batches=2"])
    bench, method = build_workbench(cfg, build_subject(cfg)), build_method(cfg)
    train = bench.data.train
    places = {row: place for place, row in enumerate(train.by_length())}
    groups = tuple(4 * places[row] // len(train) for row in range(len(train)))
    bench.data.train = replace(train, groups=groups)
    taken = rows(bench.batch_rows(method))
    assert {groups[row] for row in taken} == {0, 1, 2, 3} and len(taken) == 4
    assert [train.lengths[row] for row in taken] == sorted(train.lengths[row] for row in taken)
    others = [row for row in range(len(train)) if row not in taken]
    assert set(rows(bench.batch_rows(method, others))) <= set(others)
    assert {groups[row] for row in rows(bench.batch_rows(method, others))} == {groups[row] for row in others}
    assert rows(bench.batch_rows(replace(method, max_batches=None))) == train.by_length()


def rows(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))
