"""Every family of `families.py` on a tiny random model in float64: it is the stock model, and its scores are right."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import families_page
import pytest
import torch
from brute_force import masked_logits
from conftest import CONFIGS, tiny_batch, tiny_model
from families import FAMILIES, KeepsFloat64, tiny_family
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuitlit import UserError
from circuitlit.compare.weights import weight_changes
from circuitlit.discover import MaskedLoss, eap
from circuitlit.graph import MaskLayout
from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.tail import run_tail
from circuitlit.masked import MaskedModel, References, ablated_run
from circuitlit.masked.one_block import one_block
from circuitlit.masked.resume import HeldRun
from circuitlit.model import Subject
from circuitlit.model.families import ANATOMIES, anatomy_of, comes_in_pieces
from circuitlit.model.norms import recognise
from circuitlit.model.prune import pruned
from circuitlit.model.refused import REFUSED, UNREAD
from circuitlit.model.relevance import relevance_rules
from circuitlit.model.slices import READOUT, plain_copy, slices
from circuitlit.model.weights import CheckpointWeights, empty_model
from circuitlit.tasks.pair import Batch

every_family = pytest.mark.parametrize("name", FAMILIES)
KINDS_OF_BLOCKS = (  # one family for each way to read and to write the stream, and for each kind of MLP and attention
    "bloom",
    "codegen",
    "cohere:norms of heads",
    "cohere",
    "exaone4",
    "falcon:one key",
    "falcon:one norm",
    "flint",
    "gpt_bigcode:one key",
    "gpt_neo",
    "gpt_oss",
    "granite",
    "granitemoe_swa",
    "hyperclovax:norms behind",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo2",
    "olmo:clipped",
    "persimmon",
    "phi",
    "phi3",
    "qwen2_moe",
    "stablelm:parallel",
    "vaultgemma",
    "xglm",
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with KeepsFloat64():
        yield


@cache
def subject_of(name: str) -> Subject:
    """A family's, for what does not change it."""
    return Subject(tiny_family(name))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def surprise(logits: Tensor, _teacher: Tensor, batch: Batch) -> Tensor:
    """Negative log-probability of the answer, in float64."""
    return -logits.log_softmax(-1).gather(-1, batch.answer[..., None])[..., 0].mean(-1)


def masked(subject: Subject, batch: Batch, flat: Tensor) -> Tensor:
    ablated = ablated_run(subject, batch, "interchange")
    return MaskedModel(subject)(MaskLayout(subject.graph).dense(flat), batch.clean, ablated, batch.positions)


def stock(subject: Subject, ids: Tensor, batch: Batch) -> Tensor:
    return torch.take_along_dim(subject.model(ids).logits, batch.positions[..., None], 1)


def between(subject: Subject, seed: int = 0) -> Tensor:
    return torch.rand(subject.graph.n_edges, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_page_is_that_of_the_code() -> None:
    assert families_page.page() == families_page.PAGE.read_text(), "write it again: python tests/families_page.py"


def test_model_types_without_a_row_are_refused_with_a_reason() -> None:
    """All that the library calls causal language models: each has a row or a reason, none both."""
    rows = set(ANATOMIES) - {"tracr"}
    assert rows | set(REFUSED) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not rows & set(REFUSED) and len(rows) >= 50
    assert sum(reason == UNREAD for reason in REFUSED.values()) <= 13
    for name, reason in {"nanochat": "embeddings", "mamba": "recurrence", "lamma": UNREAD}.items():
        with pytest.raises(UserError, match=f"architecture '{name}' cannot be masked: .*{reason}"):
            anatomy_of(PretrainedConfig(model_type=name))


VARIANTS = {
    "bloom": {"apply_residual_connection_post_layernorm": True},
    "granitemoe_swa": {"shared_intermediate_size": 8},
    "gemma": {"use_bidirectional_attention": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_single_models_of_a_family_do_otherwise_is_refused(name: str) -> None:
    numbers = {**FAMILIES[name], **VARIANTS[name]}
    with pytest.raises(UserError, match=r"this .*model"):
        anatomy_of(AutoConfig.for_model(name.partition(":")[0], **numbers))


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "llama"])
def test_experts_are_in_no_cuda_graph(name: str) -> None:
    subject = Subject(tiny_model(name) if name in CONFIGS else tiny_family(name))
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), surprise, capture=True)
    captured = References(subject, "interchange", capture=True)._capture
    assert loss.capture == captured == (name == "llama")


def test_every_row_is_tried() -> None:
    assert set(KINDS_OF_BLOCKS) < set(FAMILIES)
    tried = {name.partition(":")[0] for name in FAMILIES} | {name.removesuffix("_sequential") for name in CONFIGS}
    assert tried | {"tracr"} == set(ANATOMIES)


@every_family
@torch.no_grad()
def test_both_ends_and_all_between(name: str) -> None:
    subject, batch = subject_of(name), tiny_batch()
    edges = subject.graph.n_edges
    close(masked(subject, batch, torch.ones(edges, dtype=torch.float64)), stock(subject, batch.clean, batch))
    close(masked(subject, batch, torch.zeros(edges, dtype=torch.float64)), stock(subject, batch.corrupted, batch))
    few = tiny_batch(rows=2, length=5)
    flat = between(subject)
    close(masked(subject, few, flat), masked_logits(subject, few, MaskLayout(subject.graph).dense(flat)[0]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in KINDS_OF_BLOCKS else [pytest.mark.slow]) for name in FAMILIES]
)
def test_gradients_are_differences_and_eap(name: str) -> None:
    """EAP is minus the masks' gradient at the model, also where attention and MLP read one norm."""
    subject, batch = subject_of(name), tiny_batch()
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), surprise)
    references = References(subject, "interchange")
    reference = references(batch)
    masks = between(subject).requires_grad_()
    along = between(subject, 1) - 0.5
    (grad,) = torch.autograd.grad(loss(masks, batch, reference), masks)
    with torch.no_grad():
        ends = [float(loss(masks + sign * 1e-5 * along, batch, reference)) for sign in (1, -1)]
    assert float(grad @ along) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)
    ones = torch.ones_like(masks).requires_grad_()
    (grad,) = torch.autograd.grad(loss(ones, batch, reference), ones)
    close(eap(loss, references, [batch]).values[0], -grad)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_rows_and_padding_change_nothing(name: str) -> None:
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    flat = between(subject)
    together = masked(subject, batch, flat)
    one = Batch(**{key: value[1:2] for key, value in vars(batch).items()})
    for side in ("clean", "corrupted", "roles"):
        setattr(one, side, torch.nn.functional.pad(getattr(one, side), (0, 4)))
    close(masked(subject, one, flat), together[1:2])


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_held_runs_follow_changes(name: str) -> None:
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    model, layout = MaskedModel(subject), MaskLayout(subject.graph)
    ablated = ablated_run(subject, batch, "interchange")
    flat = (between(subject) < 0.6).double()
    dense = layout.dense(flat)[0]
    if subject.anatomy.borrowed:
        with pytest.raises(UserError, match="no single head can be run again"):
            HeldRun(model, batch.clean, ablated, batch.positions, dense)
        return
    held = HeldRun(model, batch.clean, ablated, batch.positions, dense)
    close(held.logits()[0], model(dense[None], batch.clean, ablated, batch.positions))
    for reader in (0, subject.graph.n_heads, subject.graph.readers_per_layer - 1, subject.graph.readers_per_layer + 1):
        row = dense[reader].clone()
        row[0] = 1 - row[0]
        dense[reader] = row
        held.commit(reader, row)
        close(held.logits()[0], model(dense[None], batch.clean, ablated, batch.positions))


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_relevance_keeps_the_logits_or_refuses(name: str) -> None:
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    expected = subject.logits(batch.clean, batch.positions)
    experts = any("experts" in key for key, _ in subject.model.named_modules())
    if experts or name == "olmo" or subject.anatomy.borrowed:  # OLMo's norms have no weights
        with pytest.raises(UserError, match="take another method"), relevance_rules(subject, constant_patterns=True):
            pass
        return
    with relevance_rules(subject, constant_patterns=True):
        close(subject.logits(batch.clean, batch.positions), expected)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_heads_are_those_of_the_model_or_refused(name: str) -> None:
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    if subject.graph.coupled or subject.anatomy.softcap or subject.anatomy.borrowed:
        with pytest.raises(UserError):
            Heads(subject)
        return
    found = run_tail(Heads(subject), 0, run_streams(subject, batch.clean)[0])
    close(subject.read_out(found), subject.model(batch.clean).logits)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_cut_heads_and_mlps_are_masked_ones_or_refused(name: str) -> None:
    """The smaller model is the model whose heads and MLP write nothing."""
    subject, batch = Subject(tiny_family(name)), tiny_batch()
    cut = ["a0.h0", "a0.h1", "a1.h3", "m1"]
    try:
        small = pruned(subject.model, cut)
    except UserError as error:
        assert "cut" in str(error)
        return
    graph = subject.graph
    kept = [writer not in cut for writer in graph.writers]
    dense = MaskLayout(graph).dense(torch.ones(graph.n_edges, dtype=torch.float64))[0]
    dense = dense * torch.tensor(kept, dtype=torch.float64)
    ablated = ablated_run(subject, batch, "zero")
    expected = MaskedModel(subject)(dense[None], batch.clean, ablated, batch.positions)
    close(torch.take_along_dim(small(batch.clean).logits, batch.positions[..., None], 1), expected)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_the_nodes_share_out_all_weights_or_are_refused(name: str) -> None:
    subject = plain_copy(Subject(tiny_family(name)))
    nodes = [*subject.graph.writers, READOUT]
    if name in ("falcon:groups", "falcon:one norm"):
        with pytest.raises(UserError, match="lie apart in one matrix"):
            slices(subject, nodes)
        return
    for part in slices(subject, nodes):
        part.zero_()
    assert not any(parameter.any() for parameter in subject.model.parameters())


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_weights_are_compared_each_once(name: str) -> None:
    """All numbers of a model are in the table of what tuning changed, but for norms behind and an activation's own."""
    subject = Subject(tiny_family(name))
    parts = list(weight_changes(subject, Subject(tiny_family(name, seed=1))))
    assert len({part.name for part in parts}) == len(parts)
    others = ("act_fn", "post_", "ffn_sub_norm", "router.bias")
    left = sum(p.numel() for key, p in subject.model.named_parameters() if any(name in key for name in others))
    expected = sum(parameter.numel() for parameter in subject.model.parameters())
    assert expected - left <= sum(part.numel for part in parts) <= expected


@every_family
def test_norms_without_memory_are_known_for_what_they_are(name: str) -> None:
    """On the meta device nothing can be tried; Gemma's gain of 1 + w and Cohere's mean must not be missed there."""
    family, _, _ = name.partition(":")
    empty = empty_model(AutoConfig.for_model(family, **FAMILIES[name]), torch.float64)
    filled = subject_of(name).model
    named = [
        (key, module) for key, module in filled.named_modules() if "norm" in key.rpartition(".")[2] or "ln_" in key
    ]
    heads = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")  # some have weights by head; where borrowed, nobody asks
    named = [
        (key, one) for key, one in named if not (anatomy_of(filled.config).borrowed and any(h in key for h in heads))
    ]
    norms = [key for key, module in named if not isinstance(module, torch.nn.Identity)]
    assert norms
    for key in norms:
        real, meta = recognise(filled.get_submodule(key)), recognise(empty.get_submodule(key))
        assert (real is None) == (meta is None) == (family == "olmo")  # whose norms have no weights
        if real is not None and meta is not None:
            assert (real.centred, real.one_more, real.eps) == (meta.centred, meta.one_more, meta.eps)


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_a_model_in_pieces_is_the_whole_one(name: str, tmp_path: Path) -> None:
    """Read from its files block by block; where that cannot be, the loaded weights come and go."""
    whole = tiny_family(name)
    whole.save_pretrained(tmp_path)
    subject, source = Subject(whole), None
    expected = masked(subject, tiny_batch(), between(subject))
    if comes_in_pieces(whole.config):
        empty = empty_model(whole.config, torch.float64)
        for module, real in zip(empty.modules(), whole.modules(), strict=True):
            module._buffers = dict(real._buffers)  # rotary frequencies, say, were rounded in another order
        source = CheckpointWeights(tmp_path, empty)
        subject = Subject(empty)
    model = MaskedModel(subject, 2, True)
    one_block(model, torch.device("cpu"), source, offload=True)
    batch, dense = tiny_batch(), MaskLayout(subject.graph).dense(between(subject))
    close(model(dense, batch.clean, ablated_run(subject, batch, "interchange"), batch.positions), expected)
