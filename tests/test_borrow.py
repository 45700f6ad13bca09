"""A user's live model is as it was after whatever is done with it: modes, gradients, hooks, random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import covering, tiny_batch, tiny_model
from lightning import Trainer
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoTokenizer

from circuitlit import MaskedLoss, MaskLayout, PairsModule, References, UserError, eap, eap_ig, jsonl, relp
from circuitlit.discover import MaskLearner, Schedule
from circuitlit.heads.attention import Heads
from circuitlit.masked import MaskedModel
from circuitlit.model import Subject, record, unwrap
from circuitlit.objective import answer_cross_entropy

ROUGH = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}


def live(kind: str) -> nn.Module:
    """A model in the middle of a training: dropout on but in one block, one parameter frozen, hooks, a cache."""
    if kind == "gpt2":
        model = tiny_model("gpt2", **ROUGH).float()
    elif kind == "llama":
        model = tiny_model("llama", attention_dropout=0.3).float()
    else:
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model("llama").float(), config)
    model.train()
    blocks = [module for module in model.modules() if type(module).__name__ in ("GPT2Block", "LlamaDecoderLayer")]
    blocks[1].eval()
    blocks[0].register_forward_hook(lambda _module, _args, output: output)
    next(model.parameters()).requires_grad_(False)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a wrapper might change, by name."""
    base = unwrap(model)
    return {
        "mode": {name: module.training for name, module in model.named_modules()},
        "parameters": {name: (id(p), p.requires_grad, p.dtype, id(p.grad)) for name, p in model.named_parameters()},
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": {name: (id(b), b.clone()) for name, b in model.named_buffers()},
        "hooks": {name: (len(m._forward_hooks), len(m._backward_hooks)) for name, m in model.named_modules()},
        "config": base.config.to_dict() | {"attention": base.config._attn_implementation},
        "generation": base.generation_config.to_dict(),
        "modules": [id(module) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> list[Tensor]:
    """One step of a trainer of the user's; its loss and gradients."""
    ids = torch.randint(1, 40, (4, 9), generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    return [loss.detach(), *gradients]


def parts(model: nn.Module) -> tuple[MaskedLoss, References, MaskLayout]:
    subject = Subject(model)
    layout = MaskLayout(subject.graph)
    return MaskedLoss(MaskedModel(subject, 2), layout, answer_cross_entropy), References(subject, "interchange"), layout


def score(method: Callable[..., Any]) -> Callable[[nn.Module, Path], None]:
    def run(model: nn.Module, _local: Path) -> None:
        loss, references, _ = parts(model)
        assert bool(method(loss, references, [tiny_batch(answers=1)]).values.isfinite().all())

    return run


def masks(model: nn.Module, local: Path) -> None:
    loss, references, layout = parts(model)
    tokenizer = AutoTokenizer.from_pretrained(local / "model")
    data = PairsModule(jsonl(tokenizer, str(local / "pairs.jsonl"), seed=0), tokenizer, 4, seed=0)
    learner = MaskLearner(loss, references, torch.zeros(layout.size), 0.5, Schedule(3, 0.1))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=3, accelerator="cpu", use_distributed_sampler=False, **quiet).fit(learner, data)


def heads(model: nn.Module, _local: Path) -> None:
    assert all(bool(pattern.isfinite().all()) for pattern in Heads(Subject(model)).patterns(tiny_batch().clean))


def failing(model: nn.Module, _local: Path) -> None:
    subject = Subject(model)
    with pytest.raises(RuntimeError, match="inside"), record(subject):
        subject.hidden(tiny_batch().clean)
        raise RuntimeError("inside")


def two(model: nn.Module, local: Path) -> None:
    outer = Subject(model)
    with record(outer):
        heads(model, local)
        score(eap)(outer.model, local)
        outer.hidden(tiny_batch().clean)


USES = {
    "wrapped": lambda model, local: Subject(model),
    "eap": score(eap),
    "eap_ig": score(eap_ig),
    "relp": score(relp),
    "masks": masks,
    "heads": heads,
    "failing": failing,
    "two": two,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use,kind", covering(USES, ["gpt2", "llama", "peft"]))
def test_the_next_step_of_a_trainer_is_the_one_without_us(kind: str, use: str, local: Path) -> None:
    model = live(kind)
    twin = copy.deepcopy(model)
    outcomes = []
    for one, wrapped in ((model, True), (twin, False)):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(0)
        train(one, optimizer, 0)
        if wrapped:
            before = state(one)
            USES[use](one, local)
            assert same(before, state(one)), [key for key, value in state(one).items() if not same(before[key], value)]
        outcomes.append([x for step in (1, 2) for x in train(one, optimizer, step)])
    assert same(*outcomes) and len(outcomes[0]) > 6


class Parallel(nn.Module):
    """What wraps a model as DataParallel and its like do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def with_own_forward() -> nn.Module:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda hidden: 2 * type(mlp).forward(mlp, hidden)
    return model


OTHERS = {
    "no language model": (lambda: nn.Linear(2, 2), "a Linear is none"),
    "a body alone": (lambda: tiny_model("gpt2").transformer, "a GPT2Model is none"),
    "parallel": (lambda: Parallel(tiny_model("gpt2")), "give its .module"),
    "compiled": (lambda: torch.compile(tiny_model("gpt2")), "give its ._orig_mod"),
    "its own forward": (with_own_forward, "layers.0.mlp has a forward of its own"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_borrowed_is_refused_in_one_sentence(kind: str) -> None:
    make, words = OTHERS[kind]
    with pytest.raises(UserError, match=words):
        Subject(make())


def test_the_cap_on_attention_scores_is_kept_where_a_kernel_would_leave_it_out() -> None:
    """PyTorch's kernel knows no cap: newer transformers refuse it for Gemma 2, older ones leave out the cap."""
    capped, given, ids = tiny_model("gemma2"), tiny_model("gemma2"), torch.arange(1, 8)[None]
    capped.set_attn_implementation("eager")
    given.config._attn_implementation = "sdpa"
    subject = Subject(given)
    with torch.no_grad():
        torch.testing.assert_close(subject.model(ids).logits, capped.eval()(ids).logits)
    assert given.config._attn_implementation == "sdpa"
