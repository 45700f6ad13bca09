"""The pairs of a trust card: the run's own and further ones that training has not seen; changed pairs; token roles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from circuitlit import load_subject
from circuitlit.cli.build import build_splits
from circuitlit.errors import UserError
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.verdict import Bars, held_out, measure_controls
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.tasks import Pair, Pairs
from circuitlit.tasks.chat import framed
from circuitlit.tasks.variants import longer


def pairs_of(name: str, *numbers: int) -> list[Pair]:
    return [Pair(f"{name} {number}", f"no {number}", " yes", group=f"{name}{number % 3}") for number in numbers]


def few(tokenizer: object, n_test: int) -> Pairs:
    """A task that can make forty test pairs, of which some are what training has."""
    if n_test > 40:
        raise UserError("0 to 40 can be made")
    more = pairs_of("train", 0, 1) if n_test > 5 else []
    return Pairs("few", pairs_of("train", *range(4)), [], [*pairs_of("test", *range(n_test)), *more], overlapping=True)


@pytest.mark.parametrize(("wanted", "made"), [(None, 5), (3, 5), (12, 12), (1000, 31)])
def test_a_card_has_the_runs_own_pairs_first(wanted: int | None, made: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("circuitlit.cli.build.say", told.append)
    cfg = OmegaConf.create({"task": {"name": "few", "build": {"_partial_": True, "n_test": 5}}})
    cfg.task.build["_target_"] = f"{__name__}.few"
    subject: Any = SimpleNamespace(tokenizer=None)
    found = build_splits(cfg, subject, wanted)
    assert found.test[:5] == few(None, 5).test and len(found.test) == made
    assert not {pair.clean for pair in found.test} & {pair.clean for pair in found.train}
    assert ["gives 31 test pairs, not the 1000" in text for text in told] == ([True] if wanted == 1000 else [])


def test_further_pairs_share_no_sentence_with_training() -> None:
    own = Pairs("own", pairs_of("a", 0), pairs_of("a", 1), pairs_of("b", 0))
    larger = Pairs("own", [], [], [*pairs_of("a", 3, 4, 5), *pairs_of("b", 0, 1)])
    assert [pair.clean for pair in own.with_more_tests(larger, 9).test] == ["b 0", "a 5", "b 1"]
    assert len(own.with_more_tests(larger, 2).test) == 2


def test_a_sentence_in_front_stands_in_the_message() -> None:
    pair = Pair("<user> The keys", "<user> The key", " are", roles=(("mark", 0, 6), ("noun", 11, 15)))
    found = longer(pair, "It rained.", behind=7)
    assert (found.clean, found.corrupted) == ("<user> It rained. The keys", "<user> It rained. The key")
    assert [found.clean[start:end] for _, start, end in found.roles] == ["<user>", "keys"]

    class Template:
        chat_template = "{{ messages }}"

        def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
            return f"<user> {messages[0]['content']}\n<assistant>"

    tokenizer: Any = Template()
    assert framed([pair.clean], tokenizer) == 7 and framed([pair.clean, "The key"], tokenizer) == 0


def test_random_circuits_have_the_token_roles_of_the_circuit(local: Path) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(load_subject(local / "model"), Pairs.from_list(rows), 0.5)
    names, graph = bench.data.splits.role_names, bench.subject.graph
    values = torch.rand(len(names), graph.n_edges, generator=torch.Generator().manual_seed(0))
    circuit = Circuit.cut(EdgeScores(graph, values, "made", roles=names), graph.n_edges + 3)
    assert bench.fitted(circuit).layout.copies == len(names) > 1
    bed = held_out(bench)
    controls = measure_controls(bench, bed, circuit, bed.run(circuit.kept), Bars(controls=2, control_pairs=4))
    assert float(controls["random"].kl.value) > 1e-6  # in one copy so many edges would be the whole model
    with pytest.raises(UserError, match="take a task with its roles"):
        bench.fitted(replace(circuit, scores=replace(circuit.scores, roles=("other", "nowhere"))))
