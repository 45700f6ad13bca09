"""Files appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into; it takes the place of `path` at the end, and is gone after an error."""
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read, too (the library makes its files private)."""
    with whole(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        partial.chmod(0o644)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write json, NaN and infinity as null; without indentation it is one line."""
    with whole(path) as partial:
        partial.write_text(json.dumps(json_types(content), indent=indent))


def json_types(value: Any) -> Any:
    """As it comes back from a json file: lists for tuples, None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_types(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def file_name(label: str) -> str:
    """A label as the name of a file or folder: runs of other characters than letters, digits and `.=+` are one `_`."""
    return re.sub(r"[^\w.=+]+", "_", label).strip("_")
