"""The IOI algorithm's heads: positions, names, the position signal against hooks."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_batch, tiny_model
from path_patching import frozen_run, patched_logits

from circuitlit.errors import UserError
from circuitlit.heads import (
    NamePlaces,
    PatchBed,
    ioi_algorithm,
    position_signal,
)
from circuitlit.model import Subject
from circuitlit.objective import task_metric
from circuitlit.tasks.pair import Batch


def named_batch() -> Batch:
    """Three pairs with roles: io 1, s1 2, s2 3; not at the same places in every row."""
    batch = tiny_batch()
    batch.roles = torch.tensor([[0, 1, 2, 0, 3, 0, 4], [0, 2, 1, 0, 3, 0, 4], [1, 0, 2, 3, 0, 0, 4]])
    batch.clean[torch.arange(3), torch.tensor([4, 4, 3])] = batch.clean[torch.arange(3), torch.tensor([2, 1, 2])]
    batch.positions, batch.answer = batch.positions[:, 1:], batch.answer[:, :1]
    batch.answer_mask = batch.answer_mask[:, :1]
    return batch


ROLES = ("other", "io", "s1", "s2", "end")


def test_name_places_and_swapped_names() -> None:
    batch = named_batch()
    places = NamePlaces.of(batch, ROLES)
    assert (places.io.tolist(), places.s1.tolist(), places.s2.tolist()) == ([1, 2, 0], [2, 1, 2], [4, 4, 3])
    assert places.end.tolist() == [6, 6, 6]
    swapped = places.swapped(batch)
    assert swapped[0].tolist() == batch.clean[0, [0, 2, 1, 3, 4, 5, 6]].tolist()
    assert torch.equal(swapped.sort(1).values, batch.clean.sort(1).values)
    assert torch.equal(places.mask(batch), (batch.roles > 0) & (batch.roles < 4))
    with pytest.raises(UserError, match="take task=ioi"):
        NamePlaces.of(batch, ("other", "end"))


def test_the_position_signal_is_what_hooks_say() -> None:
    subject, batch = Subject(tiny_model("llama")), named_batch()
    places = NamePlaces.of(batch, ROLES)
    swapped = places.swapped(batch)
    bed = PatchBed.build(subject, [batch]).with_other([swapped])
    sender, movers = subject.graph.writers.index("a0.h1"), [(1, 2), (2, 3)]
    signal = position_signal(bed, [places], sender, movers)
    receivers = ["a1.h2<q>", "a2.h3<q>"]
    logits = patched_logits(subject, batch.clean, swapped, ["a0.h1"], receivers, False)
    change = task_metric(torch.take_along_dim(logits, batch.positions[..., None], 1), batch) - bed.metric
    assert signal.metric == pytest.approx(float(change.mean()), abs=1e-5)
    seen = frozen_run(subject, batch.clean, swapped, ["a0.h1"], False)
    rows, shifts = torch.arange(3), []
    for layer, head in movers:
        clean = bed.streams[0][layer]
        patched = bed.heads.pattern(layer, clean, seen[f"a{layer}"])[:, head]
        moved = patched - bed.heads.pattern(layer, clean)[:, head]
        shifts.append([moved[rows, places.end, key] for key in (places.io, places.s1)])
    io, s1 = (float(torch.cat([shift[i] for shift in shifts]).mean()) for i in (0, 1))
    assert (signal.to_io, signal.to_s1) == pytest.approx((io, s1), abs=1e-9)
    assert abs(io) > 1e-4 and signal.inhibits == (signal.metric < 0 and io < 0 and s1 > 0)


def test_the_algorithm_names_heads_by_their_scores_and_effects() -> None:
    subject, batch = Subject(tiny_model("gpt2")), named_batch()
    bed, places = PatchBed.build(subject, [batch]), [NamePlaces.of(batch, ROLES)]
    ones = torch.ones(3, 4)
    scores = {"copying": ones, "negative_copying": 0 * ones, "induction": ones, "duplicate_token": 0 * ones}
    found = ioi_algorithm(bed, places, scores)
    direct, to = found.grids["direct_effect"], {n: found.grids[f"attention_to_{n}"] for n in ("io", "s1", "s2")}
    expected = (direct < 0) & (to["io"] > to["s1"]) & (to["io"] > to["s2"])
    assert found.roles["name_mover"] == [(int(i), int(j)) for i, j in expected.nonzero()] != []
    assert found.roles["negative_name_mover"] == found.roles["copy_suppression"] == []
    size = direct.abs()
    assert found.shares["B"].share.value == pytest.approx(float(size[expected].sum() / size.sum()))
    assert found.roles["induction"] == []  # no score exceeds the mean of equal scores
    half = torch.zeros(3, 4, dtype=torch.bool)
    half[1:] = True
    inside = ioi_algorithm(bed, places, scores, pool=half).shares["B"]
    assert inside.share.value == pytest.approx(float(size[expected & half].sum() / size[half].sum()))
