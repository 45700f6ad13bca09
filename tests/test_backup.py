"""Backup heads: one that was planted is found, the final norm's answer is no backup, and figures are those by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from conftest import tiny_batch, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from circuitlit.evaluate.found import UNMEASURABLE
from circuitlit.heads import PatchBed, heads_replaced
from circuitlit.heads.backup import Backup, find_backup
from circuitlit.masked import run_writers
from circuitlit.model import Subject, take_positions
from circuitlit.objective import task_metric
from circuitlit.report.backup import backup_text
from circuitlit.tasks.pair import Batch
from circuitlit.timeline.measured_heads import FollowSettings, HeadsFollowed, check_induction

WORDS, HEADS, PART = 5, 8, 4  # words that are asked, heads a layer, dimensions a head
WIDTH = HEADS * PART  # axes of the stream: word t, its answer t + 5, and spare ones
MOVER, BACKUP = (0, 2), (1, 5)


def planted(answer: float, layers: int = 2) -> Subject:
    """A model that says `t + 5` after token t: a0.h2 writes it; a1.h5 writes `answer` times what is missing of it.

    a1.h5 reads the word and, against it, the answer as a0.h2 has written it. All other heads write little noise.
    """
    torch.manual_seed(0)
    size = {"n_embd": WIDTH, "n_layer": layers, "n_head": HEADS, "vocab_size": WIDTH, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**size)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(WIDTH))
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1.0)
            block.attn.c_attn.weight[:, 2 * WIDTH :].copy_(0.01 * torch.randn(WIDTH, WIDTH))
            block.attn.c_proj.weight.copy_(0.01 * torch.randn(WIDTH, WIDTH))
        model.transformer.ln_f.weight.fill_(1.0)
        for (layer, head), strength, sees in ((MOVER, 1.0, 0.0), (BACKUP, answer, -1.0)):
            attention, start = model.transformer.h[layer].attn, head * PART
            for word in range(4):  # a head of four dimensions carries four words
                attention.c_attn.weight[:, 2 * WIDTH + start + word] = 0.0
                attention.c_attn.weight[word, 2 * WIDTH + start + word] = 1.0
                attention.c_attn.weight[word + WORDS, 2 * WIDTH + start + word] = sees
                attention.c_proj.weight[start + word] = 0.0
                attention.c_proj.weight[start + word, word + WORDS] = strength
    return Subject(model)


def asked(rows: int = 24) -> Batch:
    """One word three times; the corrupted prompt says the next one."""
    words = torch.arange(rows) % 4
    batch, other = tiny_batch(rows=rows, length=3, answers=1), (words + 1) % 4
    said = {"clean": words[:, None].repeat(1, 3), "corrupted": other[:, None].repeat(1, 3)}
    return replace(batch, **said, answer=words[:, None] + WORDS, wrong=other + WORDS)


@cache
def found(answer: float, layers: int = 2) -> Backup:
    return find_backup(PatchBed.build(planted(answer, layers), [asked()]), [MOVER], 39)


def test_a_planted_backup_is_found_and_repairs() -> None:
    backup = found(1.0, 5)  # has 39 other heads
    assert backup.status == "OK" and backup.ablated == ["a0.h2"]
    assert backup.taking_over == ["a1.h5"] == [backup.rises[0].head]
    assert backup.rank_p == 1 / 40 and backup.draws == (39, 39)
    assert backup.random_rise is not None and backup.random_rise < 0.1 * float(backup.rises[0].rise.value or 0)
    assert float(backup.repaired.value or 0) > 0.3
    assert float(backup.lost.value or 0) < float(backup.direct.value or 0)


def test_the_norms_answer_is_no_backup() -> None:
    """Without a backup the norm leaves every head more, and heads of noise answer as to any change as large."""
    backup = found(0.0)
    assert backup.taking_over == []
    assert backup.rank_p is not None and backup.rank_p > 0.05
    assert abs(float(backup.repaired.value or 0)) < 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_figures_are_those_of_plain_hooks(name: str) -> None:
    subject, batch = Subject(tiny_model(name)), tiny_batch(rows=5)
    bed = PatchBed.build(subject, [batch])
    gone = (0, 1)
    backup = find_backup(bed, [gone], 20)
    other = run_writers(subject, batch.corrupted).heads.unflatten(-1, (4, -1))
    clean = run_writers(subject, batch.clean).heads.unflatten(-1, (4, -1))
    with torch.no_grad(), heads_replaced(subject, {gone: other[:, 0, :, 1]}):
        lost = bed.metric - task_metric(subject.logits(batch.clean, batch.positions), batch)
        run = run_writers(subject, batch.clean).heads.unflatten(-1, (4, -1))
    assert backup.lost.value == pytest.approx(float(lost.mean()), abs=1e-5)
    streams = bed.streams[0][-1]
    out = bed.heads.parts[0].out[1]
    silent = streams - (clean[:, 0, :, 1] - other[:, 0, :, 1]) @ out
    direct = bed.metric - task_metric(subject.read_out(take_positions(silent, batch.positions)), batch)
    assert backup.direct.value == pytest.approx(float(direct.mean()), abs=1e-5)
    assert not torch.equal(run[:, 2], clean[:, 2])  # others answer
    assert {rise.head[:2] for rise in backup.rises} <= {"a1", "a2"}
    assert all(rise.p >= 1 / 21 for rise in backup.rises)


def test_nobody_to_ablate_or_to_answer_is_said() -> None:
    bed = PatchBed.build(planted(1.0), [asked()])
    for heads, reason in (([], "there is no head to ablate"), ([BACKUP], "no head lies behind those that are ablated")):
        asked_for = find_backup(bed, heads, 20)
        assert (asked_for.status, asked_for.reason) == (UNMEASURABLE, reason)


def test_where_nothing_is_lost_nothing_can_be_taken_over() -> None:
    """Heads that speak for the wrong answer, as those of a model that has not learned the task may be."""
    batch = asked()
    against = replace(batch, answer=batch.wrong[:, None], wrong=batch.answer[:, 0])
    backup = find_backup(PatchBed.build(planted(1.0), [against]), [MOVER], 39)
    assert backup.status == UNMEASURABLE and backup.reason is not None and "a0.h2" in backup.reason
    assert backup.direct.bounds is not None and backup.direct.bounds[1] < 0 and backup.rises == []


def test_what_is_said_of_a_backup() -> None:
    told = backup_text(asdict(found(1.0, 5)))
    assert "a1.h5" in told and "takes over" in told and "made good" in told
    assert "Nobody takes over beyond chance" in backup_text(asdict(found(0.0)))
    bed = PatchBed.build(planted(1.0), [asked()])
    assert "no head to ablate" in backup_text(asdict(find_backup(bed, [], 20)))


@pytest.mark.parametrize(("threshold", "which"), [(2.0, "no head"), (-1.0, "every head")])
def test_without_induction_heads_or_others_nothing_is_measured(threshold: float, which: str) -> None:
    subject = Subject(tiny_model("gpt2"), name="tiny")
    settings = FollowSettings(heads=HeadsFollowed(sequences=16, length=8, threshold=threshold))
    checked = check_induction(subject, settings, 2)
    assert checked.status == UNMEASURABLE and checked.heads == [] and checked.loss is None
    assert (checked.reason or "").startswith(f"{which} has an induction score above")
