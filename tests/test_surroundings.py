"""What a call from Python sets in its process it gives back, after an error and after Ctrl-C, too."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_borrow import live, same, state
from test_compare import bench_of
from torch import Tensor

from circuitlit import (
    Graph,
    Method,
    Schedule,
    StudySettings,
    Subject,
    Workbench,
    attribute_circuit,
    compare_methods,
    compare_prompts,
    eap_ig,
    find_circuit,
    finetune_model,
    follow_checkpoints,
    kl_divergence,
    prune_model,
    random_scores,
)
from circuitlit.evaluate.verdict import Bars
from circuitlit.finetune import examples_of_task
from circuitlit.finetune.sft import SupervisedTuner
from circuitlit.model.adapters import load_adapter
from circuitlit.model.planted import planted_copies
from circuitlit.surroundings import as_it_was, matmul_precision, products_at
from circuitlit.tasks.pair import Batch
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.measured_heads import FollowSettings, HeadsFollowed

BARS = Bars(controls=2, max_kl_share=1000.0)
BACKENDS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
NEWER = "by a newer flag"
Call = Callable[[Subject, Workbench, Path], Any]


class Failed(Exception):
    """Somebody's objective raises it."""


class Failing:
    """An objective that raises at its third call."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def __call__(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise self.error("somebody's")
        return kl_divergence(logits, teacher, batch)


def found(subject: Subject, bench: Workbench, _: Path, **more: Any) -> None:
    find_circuit(subject, bench.data, 0.6, schedule=Schedule(3, 0.1), bars=BARS, **more)


def scored(subject: Subject, bench: Workbench, _: Path, objective: Any = kl_divergence) -> None:
    attribute_circuit(subject, bench.data, Method.of(eap_ig, objective, steps=2), 0.6, bars=BARS)


def compared(_: Subject, bench: Workbench, folder: Path) -> None:
    settings = StudySettings(sparsities=(0.7,), seeds=(0,), resamples=0, curve_pairs=0, controls=1)
    compare_methods({"own": bench}, {"any": Method.of(random_scores)}, {}, settings, folder=folder)


def prompts(_: Subject, bench: Workbench, __: Path) -> None:
    circuit = bench.cut(bench.score(Method.of(random_scores)))
    compare_prompts({"a": bench, "b": bench}, {"a": circuit, "b": circuit}, draws=2, bars=BARS)


def followed(_: Subject, bench: Workbench, folder: Path) -> None:
    settings = FollowSettings(resamples=0, smallest=False, heads=HeadsFollowed(run=False))
    one, tasks = Checkpoint(0, str(folder.parent)), {"own": lambda _: bench}
    more = {"load": lambda _: bench.subject, "folder": folder}
    follow_checkpoints([one], tasks, Method.of(random_scores), settings, **more)


def cut(_: Subject, bench: Workbench, folder: Path) -> None:
    prune_model(bench.subject, bench.cut(bench.score(Method.of(random_scores))), bench.data, folder)


def adapted(subject: Subject, _: Workbench, folder: Path) -> None:
    with as_it_was():
        lora = LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")
        get_peft_model(live("gpt2"), lora).save_pretrained(folder)
    load_adapter(subject.model, str(folder))


def failing(call: Callable[..., None], error: type[BaseException]) -> Call:
    def run(*given: Any) -> None:
        with pytest.raises(error, match="somebody's"):
            call(*given, objective=Failing(error))

    return run


CALLS: dict[str, Call] = {
    "find_circuit": found,
    "find_circuit, error": failing(found, Failed),
    "find_circuit, Ctrl-C": failing(found, KeyboardInterrupt),
    "attribute_circuit": scored,
    "attribute_circuit, error": failing(scored, Failed),
    "compare_methods": compared,
    "compare_prompts": prompts,
    "follow_checkpoints": followed,
    "prune_model": cut,
    "load_adapter": adapted,
    "planted_copies": lambda *_: planted_copies(Graph(3, 2, 2)),
}


def process() -> dict[str, Any]:
    """What a call may find set, or set itself."""
    numpys = np.random.get_state()
    return {
        "random": random.getstate(),
        "numpy": [*numpys[1].tolist(), *numpys[2:]],  # type: ignore[union-attr,index]
        "torch": torch.get_rng_state(),
        "products": [matmul_precision(), *(one.fp32_precision for one in BACKENDS)],
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def products_afterwards() -> Iterator[None]:
    with products_at():
        yield


def set_products(how: str) -> None:
    if how == NEWER:  # as Hugging Face's `TrainingArguments(tf32=True)` does it; the older function then fails
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(how)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_a_call_gives_back_the_process_and_the_live_model(call: str, local: Path, tmp_path: Path) -> None:
    model, bench = live("gpt2"), bench_of(local)
    subject = Subject(model, bench.subject.tokenizer)
    set_products("medium")
    before, own = process(), state(model)
    CALLS[call](subject, bench, tmp_path)
    after = process()
    assert not [name for name, value in before.items() if not same(value, after[name])]
    assert same(own, state(model))


@pytest.mark.parametrize("how", ["highest", "high", "medium", NEWER])
def test_products_are_given_back_however_they_were_set(how: str) -> None:
    set_products(how)
    before = process()
    for precision in (None, "highest", "medium"):
        with pytest.raises(Failed), products_at(precision):
            assert matmul_precision() == torch.get_float32_matmul_precision() == (precision or before["products"][0])
            raise Failed
        assert same(before, process())
    assert before["products"][0] == ("high" if how == NEWER else how)


def test_ctrl_c_in_a_tuning_is_the_callers(local: Path) -> None:
    """Lightning had made it the end of the process."""

    class Stopping(SupervisedTuner):
        def figures(self, *_: Any) -> Any:
            raise KeyboardInterrupt("somebody's")

    bench = bench_of(local)
    assert bench.subject.tokenizer is not None
    examples = examples_of_task(bench.data.splits, bench.subject.tokenizer)
    with pytest.raises(KeyboardInterrupt, match="somebody's"):
        finetune_model(bench.subject, examples, steps=2, make=Stopping)
