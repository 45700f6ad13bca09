"""Where subjects come from: a live model, the hub, a folder, a GGUF file, or the packaged SmolLM2 weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.model.adapters import load_adapter
from circuitlit.model.borrow import frozen_view
from circuitlit.model.families import ANATOMIES, anatomy_of, comes_in_pieces
from circuitlit.model.files import check_folder
from circuitlit.model.gguf import converted
from circuitlit.model.guess import take_guess
from circuitlit.model.limits import check_vocabulary
from circuitlit.model.linear import unwrap
from circuitlit.model.packages import PACKAGES, packaged_weights
from circuitlit.model.packed import BY_LIBRARY, bits_of, method_of, unpacker
from circuitlit.model.packed_files import dequantised, load_packed, open_files
from circuitlit.model.refused import REFUSED, UNREAD
from circuitlit.model.report import load_whole, parameters, refuse_not_finite, translated
from circuitlit.model.subject import Subject
from circuitlit.model.trusted import refuse_unchecked
from circuitlit.model.weights import CheckpointWeights, empty_model

Source = Literal["hub", "local", "package"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def config_from(architecture: dict[str, Any]) -> PretrainedConfig:
    """A configuration from `model_type` and its numbers, as conf/model holds them; no network, no weights."""
    numbers = dict(architecture)
    return AutoConfig.for_model(numbers.pop("model_type"), **numbers)


@checks_arguments
def load_subject(
    model: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    source: Source | None = None,
    name: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    adapter: str | None = None,
    cache_dir: str = "~/.cache/circuitlit",
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    in_pieces: bool = False,
    unchecked: bool = False,
) -> Subject:
    """A frozen model with its tokenizer.

    Args:
        model: a folder, a GGUF file, a Hugging Face name, "smollm2" or "gemma3_270m" (weights in Python packages), or a
            live model, with or without PEFT adapters. A live model is borrowed: it stays as it is, on its device and in
            its mode.
        tokenizer: the model's; None takes the one beside the weights, and none for a live model.
        source: "hub", "local" or "package"; None tells by `model`.
        name: short name for tables and folders; None is the last part of `model`.
        revision: branch, tag or commit on the hub.
        dtype: of the weights: float32, bfloat16, float16 or float64; None leaves a live model's and is float32 else.
        adapter: folder or hub name of a PEFT adapter; it stays unmerged, masks run on the adapted model.
        cache_dir: where GGUF weights are kept after their conversion.
        trust_remote_code: run Python code that comes with the model.
        device: where the weights go; None leaves a live model's where they are and is the CPU else.
        in_pieces: leave the weights on the disk, for an engine to read this process's part of them; where that is not
            possible (adapters, some packed weights, and see `comes_in_pieces`) they are loaded all the same.
        unchecked: take a model that needs a check before one has passed, as `check_model` does.

    Of packed (quantised) weights the subject is the dequantised model, in `dtype`.

    Raises:
        Unchecked: the model's code is not the library's own, or its weights are quantised, and no check has passed.
        UserError: nothing there, files that are damaged or do not fill the model, weights that are not finite, an
            adapter that acts outside the weights, or an architecture that cannot be masked.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    _refuse_device(device)
    where = type(model).__name__ if isinstance(model, nn.Module) else f"model '{model}'"
    loaded: Any
    files: CheckpointWeights | None = None
    with _quiet():
        if isinstance(model, nn.Module):
            loaded, facts = frozen_view(model, patched=True), {"source": "live", "path": None, "revision": None}
            if dtype is not None:
                for _, tensor in parameters(loaded):  # `to` would round rotary frequencies
                    tensor.data = tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        else:
            folder, facts = _place(
                str(model), source or _source_of(str(model)), revision, Path(os.path.expanduser(cache_dir))
            )
            remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
            remote |= {"revision": revision} if facts["source"] == "hub" else {}
            with translated(where):
                config = AutoConfig.from_pretrained(folder, **remote)
                if REFUSED.get(config.model_type) not in (None, UNREAD) or config.model_type in ANATOMIES:
                    anatomy_of(config)  # ahead of anything that takes long
                tokenizer = tokenizer or _tokenizer(where, folder, remote)
            packed, wanted = method_of(config), DTYPES[dtype or "float32"]
            how = unpacker(config)  # refuses what cannot be unpacked
            known = config.model_type in ANATOMIES and comes_in_pieces(config)
            if in_pieces and known and not (adapter or trust_remote_code or packed in BY_LIBRARY):
                loaded = empty_model(dequantised(config), wanted)
                files = open_files(_files(folder, facts["source"], revision), loaded, config)
            elif packed:
                own = _files(folder, facts["source"], revision) if how else None
                loaded = load_packed(where, folder, config, wanted, own, use_safetensors=True, **remote)
            else:
                loaded = load_whole(where, folder, dtype=wanted, use_safetensors=True, **remote)
            facts |= {"packed": f"{packed}, dequantised", "packed_bits": bits_of(config)} if packed else {}
            facts["commit"] = getattr(config, "_commit_hash", None)
        if adapter:
            loaded = load_adapter(loaded, adapter)
    take_guess(unwrap(loaded), Path(cache_dir))
    if tokenizer is not None:
        check_vocabulary(unwrap(loaded).config, tokenizer)
    if files is None:
        loaded = loaded if device is None else loaded.to(device)
        refuse_not_finite(where, parameters(loaded))
    facts |= {"adapter": adapter, "dtype": str(unwrap(loaded).dtype).removeprefix("torch.")}
    short = type(model).__name__ if isinstance(model, nn.Module) else Path(model).name
    if not unchecked:
        facts_of_code = facts | {"name": name or short, "trust_remote_code": trust_remote_code}
        refuse_unchecked(unwrap(loaded), name or short, facts_of_code, Path(cache_dir))
    return Subject(loaded, tokenizer, name or short, facts, source=files, checked=True)


def _refuse_device(device: str | torch.device | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; no such device, or no driver for it
        said = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"device={device}: {said}; take one that this machine has, or leave it out") from error


def _tokenizer(where: str, folder: str, remote: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, **remote)
    except ImportError:
        raise
    except Exception as error:  # of many kinds, most of them a list of what was tried
        raise UserError(
            f"{where} has no tokenizer that can be read; save one there with its save_pretrained"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports, which are read here; then as it was."""
    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _source_of(model: str) -> Source:
    """What a name or path is."""
    if Path(os.path.expanduser(model)).exists():
        return "local"
    if model in PACKAGES:
        return "package"
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith(".gguf"):
        raise UserError(f"{model} does not exist; name a folder that save_pretrained wrote, or a Hugging Face model")
    return "hub"


def _place(model: str, source: Source, revision: str | None, cache: Path) -> tuple[str, dict[str, Any]]:
    """The folder or hub name to load from, and the provenance."""
    if source == "package":
        return packaged_weights(model, cache)
    path = Path(os.path.expanduser(model))
    facts: dict[str, Any] = {"source": source, "path": model, "revision": revision}
    if source == "hub" and not path.is_dir():
        return model, facts
    if path.is_file() and path.suffix == ".gguf":
        folder, file = converted(path, cache=cache)
        return folder, facts | file
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        raise UserError(f"{model} is an adapter, not a model; load its base model, with {model} as its adapter")
    if not (path / "config.json").is_file():
        raise UserError(f"{model} is not a folder with a config.json; save a model there with save_pretrained first")
    check_folder(path)
    return str(path), facts


def _files(folder: str, source: str, revision: str | None) -> str:
    """The folder with the weights' files; those of a hub are downloaded, each once for all processes of a machine."""
    if source != "hub" or Path(folder).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return snapshot_download(folder, revision=revision, allow_patterns=["*.safetensors", "*.safetensors.index.json"])
