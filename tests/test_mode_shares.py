"""Shares of the modes of reuse: a model beside itself differs in nothing, a planted change shows, the table says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_compare import bench_of

from circuitlit.compare.comparison import Comparison, compare_models
from circuitlit.compare.mode_shares import mode_shares
from circuitlit.compare.nodes import MODES
from circuitlit.compare.reuse import Swaps
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler
from circuitlit.errors import UserError
from circuitlit.objective import negative_metric
from circuitlit.report.modes import mode_rows

METHOD = Method.of(eap, negative_metric)


def test_a_model_beside_itself_differs_in_nothing(local: Path) -> None:
    bench = bench_of(local)
    found = mode_shares(bench, [Resampler(bench, METHOD)] * 2, halvings=20)
    assert list(found) == list(MODES[1:])
    assert all((mode.difference, mode.low, mode.high) == (0, 0, 0) for mode in found.values())
    assert sum(mode.resampling for mode in found.values()) == pytest.approx(1)
    assert {row[-1] for row in mode_rows(found)} == {"other pairs do the same"}


def test_swaps_that_do_not_decide_make_no_difference(local: Path) -> None:
    bench = bench_of(local)
    result = compare_models(bench, bench, METHOD, intruders=0, reuse=Swaps(pairs=8), halvings=20)
    assert result.reuse is not None and result.modes is not None
    assert None in {swap.fits for swap in result.reuse.swaps.values()}  # the model cannot do the task
    assert all(mode.low <= 0 <= mode.high for mode in result.modes.values())
    scorers = [Resampler(bench, METHOD)] * 2
    nodes = list(result.reuse.swaps)
    unlike = mode_shares(bench, scorers, halvings=20, fits_back=dict.fromkeys(nodes, False))
    assert unlike["modified"].low > 0  # one that decides counts


def test_heads_that_tuning_silenced_are_lost_beyond_other_pairs(local: Path, tmp_path: Path) -> None:
    base, tuned = bench_of(local), bench_of(local)
    with torch.no_grad():
        for block in tuned.subject.anatomy.blocks(tuned.subject.model):
            block.attn.c_proj.weight[: len(block.attn.c_proj.weight) // 2] = 0.0  # head 0 of two
    none = Swaps(pairs=0)
    result = compare_models(base, tuned, METHOD, intruders=0, reuse=none, halvings=20)
    assert result.modes is not None
    lost = result.modes["lost"]
    assert lost.tuning > lost.resampling and lost.low > 0
    assert mode_rows(result.modes)[list(result.modes).index("lost")][-1] == "more than other pairs do"
    result.save(tmp_path)
    assert Comparison.load(tmp_path).modes == result.modes


def test_too_few_halvings_are_refused(local: Path) -> None:
    bench = bench_of(local)
    with pytest.raises(UserError, match="halvings=3 are too few"):
        compare_models(bench, bench, METHOD, halvings=3)
