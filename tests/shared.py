"""Tiny random models of every architecture, in float64, with norms and biases perturbed so that bugs show."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import omegaconf._utils
import pytest
import torch
import yaml
from cli import write_local
from hydra._internal import config_loader_impl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from plotly import basedatatypes
from toy_tokenizers import byte_bpe, metaspace, packaged, tokenizer  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.utils.logging import disable_progress_bar

from circuitlit.cli.presets import conf_dir
from circuitlit.evaluate.cost import memory
from circuitlit.model import Subject
from circuitlit.run.bench import foretold
from circuitlit.tasks.pair import Batch

torch.set_num_threads(1)  # tiny tensors: a second thread only waits
yaml.SafeLoader = yaml.CSafeLoader  # what OmegaConf reads every file of conf/ with, a fifth of a composition
disable_progress_bar()  # as the console does, before anything is imported

VOCAB = 50
SLOW = pytest.mark.slow
_GROUPED = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gemma2": {**_GROUPED, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    "gemma3_text": {
        **_GROUPED,
        "query_pre_attn_scalar": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64},
    "gpt_neox": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
    },
    "gpt_neox_sequential": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "use_parallel_residual": False,
    },
    "llama": {**_GROUPED, "attention_bias": True},
    "mistral": {**_GROUPED, "sliding_window": None},
    "opt": {
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
    },
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
}


def _merge_presets_once() -> None:
    """Let Hydra keep what it merges: conf/ stays as it is while tests run, and each of their commands merges 30 files.

    What is kept depends on the verb and the presets that were chosen. Values of the command line are put on top of a
    copy as ever, and with a folder of settings of a test's own nothing is kept.
    """
    loader = config_loader_impl.ConfigLoaderImpl
    choose, merge = config_loader_impl.create_defaults_list, loader._compose_config_from_defaults_list
    chosen, merged = {}, {}

    def only_conf(repo: Any) -> bool:
        return all(source.path == str(conf_dir()) for source in repo.get_sources() if source.scheme() == "file")

    def choose_once(repo: Any, config_name: Any, overrides_list: Any, **settings: bool) -> Any:
        if not only_conf(repo) or any(override.is_sweep_override() for override in overrides_list):
            return choose(repo, config_name, overrides_list, **settings)
        presets, values = [], []
        for override in overrides_list:
            value = isinstance(override.value(), dict) or not repo.group_exists(override.key_or_group)
            (values if value else presets).append(override)
        key = (config_name, *(override.input_line for override in presets), *settings.items())
        if key not in chosen:
            chosen[key] = choose(repo, config_name, presets, **settings)
        return dataclasses.replace(chosen[key], config_overrides=values)

    def merge_once(self: Any, defaults: Any, repo: Any) -> Any:
        if not only_conf(repo):
            return merge(self, defaults, repo)
        key = str(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))  # is copied five times as fast as a deep copy
        return pickle.loads(merged[key])

    config_loader_impl.create_defaults_list, loader._compose_config_from_defaults_list = choose_once, merge_once


def _read_files_once() -> None:
    """Let Hydra keep the files of conf/: it reads all that a composition names, for every other choice of presets."""
    load, read = ConfigRepository.load_config, {}

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is None or source.path != str(conf_dir()):
            return load(self, config_path)
        key = source.provider, config_path
        if key not in read:
            read[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[key])

    ConfigRepository.load_config = load_once


def _write_settings_fast() -> None:
    """Let C write the settings of each run, as it reads them."""

    class Dumper(yaml.CDumper):
        str_representer = omegaconf._utils.OmegaConfDumper.str_representer
        str_representer_added = False

    omegaconf._utils.OmegaConfDumper = Dumper  # type: ignore[misc]


def _split_names_once() -> None:
    """Let plotly keep how it splits names such as title_text, which is a third of the time that a page takes."""
    split, known = basedatatypes._str_to_dict_path_full, {}

    def split_once(name: str) -> Any:
        if name not in known:
            known[name] = split(name)
        path, places = known[name]
        return path, list(places)

    basedatatypes._str_to_dict_path_full = split_once


def _reckon_once() -> None:
    """Let what a step of one model and one shape will hold be counted once: a tenth of a tiny run, and most of a plan.

    Kept are also the shapes of the models of runs.
    """
    shapes_of, count, shapes, counts = foretold.meta_copy, memory._activations, {}, {}

    def key_of(model: Any) -> tuple[Any, ...]:
        numbers = tuple(parameter.shape for parameter in model.parameters())
        return type(model), model.config.to_json_string(False), model.config._attn_implementation, model.dtype, numbers

    def meta_copy(subject: Subject) -> Subject:
        key = key_of(subject.model)
        if key not in shapes:
            shapes[key] = shapes_of(subject)
        return shapes[key]

    def activations(subject: Subject, shape: memory.StepShape) -> float:
        key = (*key_of(subject.model), shape)
        if key not in counts:
            counts[key] = count(subject, shape)
        return counts[key]

    foretold.meta_copy, memory._activations = meta_copy, activations


_merge_presets_once()
_read_files_once()
_write_settings_fast()
_split_names_once()
_reckon_once()


@pytest.fixture(autouse=True)
def norms_in_their_inputs_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face RMSNorms, and Gemma 2's softmax, compute in float32, which would hide errors below 1e-7."""

    def forward(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

    def gemma(self, hidden):
        return self._norm(hidden) * (1 + self.weight)

    def capped(module, query, key, value, mask, dropout=0.0, scaling=1.0, softcap=1.0, **_):
        groups = module.num_key_value_groups
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.tanh(query @ key.transpose(2, 3) * scaling / softcap) * softcap
        return ((scores + mask).softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", capped)
    for norm in (modeling_gemma2.Gemma2RMSNorm, modeling_gemma3.Gemma3RMSNorm):
        monkeypatch.setattr(norm, "forward", gemma)
    for norm in (
        modeling_llama.LlamaRMSNorm,
        modeling_mistral.MistralRMSNorm,
        modeling_qwen2.Qwen2RMSNorm,
        modeling_qwen3.Qwen3RMSNorm,
    ):
        monkeypatch.setattr(norm, "forward", forward)


def covering(*choices: Iterable[Any]) -> list[Any]:
    """Every combination of values as parameters of a test: some that hold every value by default, the others as slow.

    Those of the default suite go through the longest list once; whenever a shorter one is through, the next one moves
    on by one more, so that two short lists meet in all ways if the longest has room.
    """
    lists = [list(values) for values in choices]
    chosen = set()
    for turn in range(max(map(len, lists))):
        through, at = 0, []
        for values in lists:
            at.append((turn + through) % len(values))
            through += turn // len(values)
        chosen.add(tuple(at))
    return [
        pytest.param(
            *(values[at] for values, at in zip(lists, place, strict=True)), marks=[] if place in chosen else SLOW
        )
        for place in product(*(range(len(values)) for values in lists))
    ]


def tiny_model(name: str, seed: int = 0, **numbers: int):
    """A random model of an architecture, every parameter perturbed; `numbers` replace some of its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name.removesuffix("_sequential"), **{**CONFIGS[name], **numbers})
    model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tiny_batch(rows: int = 3, length: int = 7, answers: int = 2, seed: int = 0) -> Batch:
    """Random pairs of one length with answers of `answers` tokens at the end."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(1, VOCAB, shape, generator=generator)

    return Batch(
        index=torch.arange(rows),
        group=torch.arange(rows),
        clean=draw(rows, length),
        corrupted=draw(rows, length),
        lengths=torch.full((rows,), length),
        positions=torch.arange(length - answers, length).repeat(rows, 1),
        answer=draw(rows, answers),
        answer_mask=torch.ones(rows, answers, dtype=torch.bool),
        contrast=torch.zeros(rows, dtype=torch.long),
        wrong=draw(rows),
        roles=torch.arange(length).clamp(max=2).repeat(rows, 1),
        choices=torch.empty(rows, 0, dtype=torch.long),
        signs=torch.empty(rows, 0, dtype=torch.long),
    )


@pytest.fixture(params=CONFIGS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A tiny random subject of each architecture."""
    return Subject(tiny_model(request.param), name=request.param)


@pytest.fixture
def batch() -> Batch:
    """Three random pairs."""
    return tiny_batch()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its tokenizer and a file of pairs, for the command line."""
    return write_local(tmp_path_factory.mktemp("local"))
