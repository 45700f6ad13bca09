"""Files of weights, looked at before anything is loaded: are they whole, and are they what they say."""

from __future__ import annotations

import errno
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from circuitlit.errors import UserError

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, as the format has it


def make_cache(folder: Path) -> None:
    """Make a folder of `paths.cache_dir`.

    Raises:
        OSError: it cannot be made, or is in a home that nobody knows: no folder is called `~`.
    """
    if folder.parts[:1] == ("~",):
        raise FileNotFoundError(errno.ENOENT, "no home is known; set HOME", str(folder))
    folder.mkdir(parents=True, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder with a safetensors file that is cut off or missing.

    Raises:
        UserError: there is such a file.
    """
    for file in weight_files(folder):
        check_safetensors(folder / file)


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a model's or adapter's folder; those of its index, where it has one.

    Raises:
        UserError: the index cannot be read.
    """
    if not (folder / INDEX).is_file():
        return sorted(file.name for file in folder.glob("*.safetensors"))
    return sorted(set(read_index(folder).values()))


def read_index(folder: Path) -> dict[str, str]:
    """The file of every weight.

    Raises:
        UserError: the index cannot be read.
    """
    try:
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is no index of weights; save the model again") from error


def check_safetensors(file: Path) -> None:
    """Compare a file's length with what its header says.

    Raises:
        UserError: it is missing, cut off, or no safetensors file.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; download it again")
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) == 8 and not 2 <= length <= LONGEST_HEADER:
            raise UserError(f"{file} is no safetensors file; download it again, with git lfs if it is a pointer")
        header = opened.read(length)
    end = 8 + length
    if len(header) == length > 0:
        try:
            entries = json.loads(header)
            end += max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{file} is no safetensors file; download it again") from error
    if size < end:
        raise UserError(f"{file} ends at byte {size} of {end}; download it again")


def check_gguf(file: Path) -> None:
    """Compare a GGUF file's length with what its table of tensors says; no weight is read.

    Raises:
        UserError: it is cut off, or no GGUF file.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

    end = 0

    class Table(GGUFReader):
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            nonlocal end
            for *_, dims, kind, offset in (field.parts for field in fields):
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(int(kind[0]))]
                end = max(end, start_offs + int(offset[0]) + prod(map(int, dims)) * size // block)

    size = file.stat().st_size
    try:
        Table(file)
    except Exception as error:  # the reader has no error of its own: it trips over whatever is not there
        raise UserError(
            f"{file} ends inside its table of tensors, at byte {size}, or is no GGUF file; download it again"
        ) from error
    if size < end:
        raise UserError(f"{file} ends at byte {size} of {end}; download it again")
