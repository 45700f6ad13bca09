"""Weights in GGUF files, dequantised once into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GgufConfig

from circuitlit.errors import UserError
from circuitlit.model.files import check_gguf, make_cache
from circuitlit.model.report import load_whole, translated

log = logging.getLogger(__name__)


def converted(
    *parts: Path, cache: Path, name: str | None = None, sha256: str | None = None, advice: str = "download it again"
) -> tuple[str, dict[str, Any]]:
    """Folder of a GGUF file's weights as safetensors, and the file's name and hash.

    Args:
        parts: the GGUF file, or its parts in order.
        cache: where the folder is kept.
        name: of the whole file; None is that of the first part.
        sha256: that the whole must have; None takes any.
        advice: what to do about a file that is not as it should be.

    Raises:
        UserError: the file is damaged or its weights do not fill the model, or the cache cannot be written.
    """
    name = name or parts[0].name
    if len(parts) == 1:
        check_gguf(parts[0])
    digest = _sha256(*parts)
    if sha256 not in (None, digest):
        raise UserError(f"{name} is not the file that was published (sha256 {digest}); {advice}")
    folder = cache / f"{Path(name).stem}-{digest[:12]}"
    if not (folder / "config.json").is_file():
        log.info("converting %s to safetensors, once, into %s", name, folder)
        _convert(parts, name, folder)
    return str(folder), {"file": name, "sha256": digest}


def _sha256(*parts: Path) -> str:
    whole = hashlib.sha256()
    for part in parts:
        with part.open("rb") as opened:
            while block := opened.read(1 << 24):
                whole.update(block)
    return whole.hexdigest()


def _convert(parts: Sequence[Path], name: str, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder that appears whole or not at all."""
    try:
        make_cache(folder.parent)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
    except OSError as error:
        raise UserError(
            f"paths.cache_dir={folder.parent} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        file = parts[0] if len(parts) == 1 else _join(parts, partial / name)
        check_gguf(file)
        with redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            with translated(str(file)):
                tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            whole = {"quantization_config": GgufConfig(dequantize=True)}  # or some stay packed, for kernels of the hub
            model = load_whole(str(file), file.parent, gguf_file=file.name, dtype=torch.float32, **whole)
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        model.hf_quantizer = None  # type: ignore[assignment]
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / name).unlink(missing_ok=True)
        try:
            os.replace(partial, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _join(parts: Sequence[Path], file: Path) -> Path:
    with file.open("wb") as whole:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, whole)
    return file
