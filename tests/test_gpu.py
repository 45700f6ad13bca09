"""On a GPU: the captured step is the plain one, and the GPU agrees with the CPU."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import settings
from conftest import CONFIGS, tiny_batch, tiny_model
from families import FAMILIES, KeepsFloat64, tiny_family
from golden_cases import CASES, Case
from test_evolve import series  # noqa: F401
from test_intervene import tuned  # noqa: F401
from test_knowledge import reader  # noqa: F401

from circuitlit import Pairs, find_circuit, load_subject
from circuitlit.cli.ranks import free_port
from circuitlit.discover import MaskedLoss, Schedule
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.captured import CapturedCall
from circuitlit.masked.forward import Recompute
from circuitlit.masked.kernels import use
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence

HERE = Path(__file__).parent
NAMES = [*CONFIGS, *FAMILIES]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def made(name: str) -> torch.nn.Module:
    return tiny_model(name) if name in CONFIGS else tiny_family(name)


def loss_and_grad(
    name: str, device: str, capture: bool, seed: int, recompute: Recompute = False, panel: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    subject = Subject(made(name).to(device))
    loss = MaskedLoss(MaskedModel(subject, panel, recompute), MaskLayout(subject.graph), kl_divergence, capture)
    references = References(subject, "interchange", capture=capture)
    for trial in (seed, seed + 1):  # the second call replays the graph on other data
        batch = tiny_batch(seed=trial).to(device)
        generator = torch.Generator().manual_seed(trial)
        masks = torch.rand(subject.graph.n_edges, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        value = loss(masks, batch, references(batch))
        (grad,) = torch.autograd.grad(3 * value, masks)
    return value.detach().cpu(), grad.cpu()


def test_graphs_of_all_lengths_share_the_memory_of_the_longest() -> None:
    call = CapturedCall(lambda rows: (torch.stack([rows * number for number in range(64)]).square().sum(0),))
    factor = float(sum(number**2 for number in range(64)))
    torch.cuda.empty_cache()
    held = []
    for length in (8, 16, 4, 32, 8, 16, 4, 32, 16, 8):  # in megabytes of input; a replay needs 128 times as much
        rows = torch.randn(length << 18, device="cuda")
        (found,) = call(rows)
        torch.testing.assert_close(found, rows.square() * factor)
        del found, rows
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved() >> 20)
    assert held[-1] <= 1.2 * held[3], f"{held} MiB: what is held grows with the number of lengths"


def test_a_graph_that_leaves_no_memory_for_another_is_let_go_of() -> None:
    call = CapturedCall(lambda rows: (torch.stack([rows * number for number in range(64)]).square().sum(0),))
    factor = float(sum(number**2 for number in range(64)))
    try:
        for length in (32, 31, 32, 31):  # in megabytes of input
            rows = torch.randn(length << 18, device="cuda")
            torch.testing.assert_close(call(rows)[0], rows.square() * factor)
            torch.cuda.empty_cache()
            limit = torch.cuda.memory_reserved() + (2 << 30)  # the other length's first run needs 4 GiB
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_captured_step_equals_the_cpu(name: str) -> None:
    with KeepsFloat64():
        expected_value, expected_grad = loss_and_grad(name, "cpu", False, 0)
        for capture in (False, True):
            value, grad = loss_and_grad(name, "cuda", capture, 0)
            torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("recompute", "capture"), [(True, False), ("reads", False), ("reads", True)])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_computed_again_changes_nothing(name: str, recompute: Recompute, capture: bool) -> None:
    with KeepsFloat64():
        expected = loss_and_grad(name, "cpu", False, 0)
        for panel in (1, 2):
            found = loss_and_grad(name, "cuda", capture, 0, recompute, panel)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_no_gradient_crosses_streams(local: Path, tmp_path: Path) -> None:
    """Under ddp every step would warn of it, and wait."""
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "one"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CIRCUITLIT_RUN_ID": "one"}
    command = [sys.executable, "train.py", *settings(local, tmp_path, "strategy=ddp", "logger=none")]
    done = subprocess.run(
        command, cwd=HERE.parent, env={**os.environ, **numbers, **meeting}, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "AccumulateGrad" not in done.stdout + done.stderr


def test_a_training_that_is_over_holds_no_graphs(local: Path) -> None:
    """Its Trainer and learner hold each other, so that only the garbage collector lets go of them."""
    subject, held = load_subject(str(local / "model"), device="cuda"), []
    gc.disable()
    try:
        for _ in range(3):
            rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
            find_circuit(subject, Pairs.from_list(rows), 0.5, schedule=Schedule(4, 0.3))
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_reserved())
    finally:
        gc.enable()
    assert held[2] <= 1.1 * held[0], held


def test_a_graph_outlives_others_of_its_stream() -> None:
    """A product that is split over its long side needs a workspace; the first graph's must not be the second's."""
    left, right = (torch.randn(1, 2**15, 640, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    calls = [CapturedCall(lambda a, b: (a.mT @ b,)) for _ in range(2)]
    expected = [call(left, right)[0] for call in calls][1].clone()
    del calls[0]
    gc.collect()
    torch.cuda.empty_cache()
    filler = torch.full((2**26,), float("nan"), device="cuda")
    assert torch.equal(calls[0](left, right)[0], expected)
    torch.cuda.synchronize()
    assert bool(filler.isnan().all())


def gradient(name: str, dtype: torch.dtype, choice: str, panel: int = 2) -> torch.Tensor:
    """Mask gradient of a tiny model of some width on the GPU, with kernels or with their twins."""
    subject = Subject(made(name).to("cuda", dtype))
    loss = MaskedLoss(MaskedModel(subject, panel=panel), MaskLayout(subject.graph), kl_divergence, capture=False)
    batch = tiny_batch().to("cuda")
    masks = torch.rand(subject.graph.n_edges, generator=torch.Generator().manual_seed(0)).to("cuda").requires_grad_()
    use(choice)
    try:
        (grad,) = torch.autograd.grad(loss(masks, batch, References(subject, "interchange")(batch)), masks)
    finally:
        use("auto")
    return grad.double()


def against_twins(name: str) -> None:
    """Mask gradients of a tiny model with kernels and with their twins."""
    exact = gradient(name, torch.float64, "torch")
    assert torch.equal(gradient(name, torch.float64, "auto"), exact)  # no kernel takes float64
    for panel in (1, 2):
        found = gradient(name, torch.float32, "triton", panel)
        assert float((found - exact).norm() / exact.norm()) < 1e-4
    rough = [gradient(name, torch.bfloat16, choice) for choice in ("torch", "triton")]
    errors = [float((grad - exact).norm() / exact.norm()) for grad in rough]
    assert errors[1] < 1.5 * errors[0] + 0.01, errors


def alone(*command: str) -> None:
    """Run Python without pytest's type checks, which Triton cannot compile."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_equal_their_twins(name: str) -> None:
    alone(__file__, name)


def test_every_kernel() -> None:
    alone(str(HERE / "check_kernels.py"), "check")


if __name__ == "__main__":
    against_twins(sys.argv[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_verb_runs(case: Case, request: pytest.FixtureRequest, local: Path, tmp_path: Path) -> None:
    """What they write is compared on a CPU; here nothing may be left behind on one."""
    case(request, local, tmp_path)
    assert list(tmp_path.rglob("*.json"))
