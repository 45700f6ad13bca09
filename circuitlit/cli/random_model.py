"""A model of the configured shape with random weights: no hub, no files but a tokenizer's."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from circuitlit.cli.build import device_of, plain, shards
from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.model.load import DTYPES, config_from
from circuitlit.model.packages import packaged_weights
from circuitlit.model.packed import bits_of, block_matrices
from circuitlit.model.packed_files import RandomPacked, dequantised
from circuitlit.model.report import first_line
from circuitlit.model.weights import RandomWeights, WeightSource, empty_model


def shape_of(cfg: DictConfig) -> PretrainedConfig:
    """The model's configuration from conf/model alone.

    Raises:
        UserError: the preset has no architecture numbers, or they are no shape of that model.
    """
    if cfg.model.architecture is None:
        raise UserError(
            f"model={cfg.model.name} has no model.architecture, the numbers that random weights are drawn for"
        )
    try:
        config = config_from(plain(cfg.model.architecture))
        with torch.device("meta"):
            Subject(AutoModelForCausalLM.from_config(dequantised(config)))
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"model.architecture is no shape of a model ({first_line(error)}); correct its numbers"
        ) from error
    return config


def meta_subject(cfg: DictConfig) -> Subject:
    """The model's shapes without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(dequantised(shape_of(cfg)), dtype=DTYPES[cfg.model.dtype])
    return Subject(model, name=cfg.model.name)


def random_subject(cfg: DictConfig, dtype: str) -> Subject:
    """The model, on the Trainer's device.

    Where the strategy shares weights out, they are drawn later: by each process what it keeps.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtypes={dtype} is not one of {', '.join(DTYPES)}")
    facts, device, shape = {"source": "random weights", "dtype": dtype}, device_of(cfg), shape_of(cfg)
    if shards(cfg):
        model = empty_model(dequantised(shape), DTYPES[dtype])
        bits = bits_of(shape)
        source: WeightSource = RandomWeights(cfg.seed, device, DTYPES[dtype])
        if bits is not None:
            source = RandomPacked(cfg.seed, device, DTYPES[dtype], set(block_matrices(model, shape)))
        return Subject(model, None, cfg.model.name, facts | {"packed_bits": bits}, source=source)
    torch.manual_seed(cfg.seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(dequantised(shape), dtype=DTYPES[dtype])
    return Subject(model, name=cfg.model.name, provenance=facts)


def random_reader(cfg: DictConfig) -> Subject:
    """The model of `model.source=random`, with the tokenizer of the folder `model.path`, or SmolLM2's without one.

    Raises:
        UserError: there is no such tokenizer, it has more tokens than the model, or an adapter is to be loaded.
    """
    if cfg.adapter.path is not None:
        raise UserError(
            "model.source=random has random weights, to which no trained adapter belongs; leave adapter.path out"
        )
    if cfg.model.path is None:
        folder = packaged_weights("smollm2", Path(os.path.expanduser(cfg.paths.cache_dir)))[0]
    elif not (folder := Path(cfg.model.path)).is_dir():
        raise UserError(f"model.path={folder} is no folder; with model.source=random it names one with a tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    subject = random_subject(cfg, cfg.model.dtype)
    if len(tokenizer) > subject.model.config.vocab_size:
        there = subject.model.config.vocab_size
        raise UserError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and the model {there}; "
            "raise model.architecture.vocab_size or name another tokenizer: model.path=FOLDER"
        )
    subject.tokenizer = tokenizer
    return subject
