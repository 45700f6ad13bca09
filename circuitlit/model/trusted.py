"""Which models are taken as they are, and which only when `check` has passed; and what a passed check holds for."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from circuitlit.errors import Unchecked
from circuitlit.model.families import GUESSED, anatomy_of, forget_guess
from circuitlit.result import PACKAGES, version

BESIDES = ("_name_or_path", "_commit_hash", "architectures", "transformers_version", "dtype", "use_cache")  # of configs
SAMPLE = 64  # numbers of each weight that its fingerprint sees
LIBRARIES = ("transformers.models.", "circuitlit.")


def patches(model: PreTrainedModel) -> dict[str, str]:
    """Modules that run another `forward` than their class's, with a hash of it. Accelerate's only move tensors.

    The hash sees a function's code, the names in it, and numbers, texts, tensors and functions that it holds.
    """
    found = {}
    for name, module in model.named_modules():
        own = module.__dict__.get("forward")
        if own is not None and not hasattr(module, "_hf_hook"):
            found[name or "the model"] = _hash(repr(_said(getattr(own, "__func__", own))))
    return found


def _said(own: Any, within: bool = False) -> Any:
    """What a forward is, in every process alike if it is a function; or something that it holds (`within`)."""
    if isinstance(own, CodeType):
        return own.co_code, own.co_names, [_said(constant, True) for constant in own.co_consts]
    if isinstance(own, FunctionType):
        held = [cell.cell_contents for cell in own.__closure__ or ()] if not within else []
        held += [*(own.__defaults__ or ()), *(own.__kwdefaults__ or {}).values()]
        return _said(own.__code__), [_said(value, True) for value in held]
    if isinstance(own, Tensor):
        return _some(own)
    if not within or isinstance(own, str | bytes | int | float | tuple | None):
        return own
    return getattr(own, "__qualname__", type(own).__name__)


def reasons(model: PreTrainedModel) -> list[str]:
    """Why a model needs a check, a clause each; none for a table row that runs as the library has it."""
    borrowed = anatomy_of(model.config).borrowed
    made = ["its anatomy is guessed from names"] if model.config.model_type in GUESSED else []
    return [*own_reasons(model), *made, *(["its attention is the model's own code, borrowed"] if borrowed else [])]


def own_reasons(model: PreTrainedModel) -> list[str]:
    """Those that lie in this very model, not in its architecture."""
    made = []
    if not type(model).__module__.startswith(LIBRARIES):
        made.append(f"its class {type(model).__name__} is not the library's own")
    changed = list(patches(model))
    if changed:
        made.append(f"{', '.join(changed[:3])} has a forward of its own, not its class's")
    if getattr(model.config, "quantization_config", None) is not None:
        made.append("its weights are quantised")
    return made


def key_of(model: PreTrainedModel) -> str:
    """What a check holds for: configuration, class source, patches, versions, and a fingerprint of the weights."""
    source = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    facts = {
        "config": {k: v for k, v in model.config.to_dict().items() if k not in BESIDES},
        "class": type(model).__qualname__,
        "source": _hash(Path(source).read_text(encoding="utf-8")) if source else None,
        "dtype": str(model.dtype),
        "patches": patches(model),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if own_reasons(model):  # where the code is the library's, other weights need no check of their own
        facts["weights"] = [[name, list(p.shape), _some(p)] for name, p in model.named_parameters()]
    return _hash(json.dumps(facts, sort_keys=True, default=str))


def record_of(cache: Path, key: str) -> Path:
    """The file that says that a check passed."""
    return Path(os.path.expanduser(cache)) / "checks" / f"{key}.json"


def refuse_unchecked(model: PreTrainedModel, name: str, facts: dict[str, Any], cache: Path) -> None:
    """Refuse a model that needs a check, unless one of it has passed.

    Raises:
        Unchecked: it has not.
    """
    found = reasons(model)
    if found and not record_of(cache, key_of(model)).is_file():
        forget_guess(model.config.model_type)
        raise Unchecked(name, found, facts)


def _some(weight: Tensor) -> list[float]:
    """A few numbers of a weight, spread over it."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].float().tolist()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
