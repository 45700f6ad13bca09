"""What the verbs on a base and a tuned model share: loading both, other tasks, passages, kinds of components."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Int
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from circuitlit.cli.build import build_subject, device_of
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import PAIRS_ALONE, check_shared, composed, entries
from circuitlit.compare.weights import check_same_graph
from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.graph.nodes import known_nodes, plain_kinds
from circuitlit.heads.text import read_passages, sample_passages, write_passages
from circuitlit.model import Subject
from circuitlit.model.limits import passage_length
from circuitlit.model.load import load_subject
from circuitlit.model.tracr import load_tracr


def load_side(cfg: DictConfig, path: str, which: str) -> Subject:
    """The model of a folder: a model, a PEFT adapter, or a finished run (its tuned model, or the model it was of).

    Raises:
        UserError: the folder is none of these.
    """
    folder = Path(os.path.expanduser(path))
    common: dict[str, Any] = {
        "dtype": cfg.model.dtype,
        "cache_dir": cfg.paths.cache_dir,
        "trust_remote_code": cfg.model.trust_remote_code,
        "device": device_of(cfg),
    }
    if (folder / "tuned").is_dir():
        return load_side(cfg, str(folder / "tuned"), which)
    if (folder / "adapter_config.json").is_file():
        own = _read(folder / "adapter_config.json")
        under = own.get("base_model_name_or_path")
        if not under:
            raise UserError(f"{which}={path}: adapter_config.json does not say which model it is for; add that to it")
        return load_subject(under, name=which, adapter=str(folder), revision=own.get("revision"), **common)
    if (folder / "config.json").is_file():
        return load_subject(folder, name=which, **common)
    if (folder / "circuit.json").is_file():
        model = _read(folder / "circuit.json").get("provenance", {}).get("model", {})
        source = str(model.get("source", "")).split(" ")[0]
        if source in ("hub", "local", "package"):
            facts = {name: model.get(name) for name in ("revision", "adapter")}
            return load_subject(model.get("path") or "smollm2", source=source, name=which, **facts, **common)  # type: ignore[arg-type]
        if source == "tracr":
            return load_tracr(model["program"], which)
    raise UserError(
        f"{which}={path} is neither a model folder (config.json), nor an adapter folder (adapter_config.json), nor a "
        "finished run (tuned/ or circuit.json); name one"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); name another folder") from error


def load_base(cfg: DictConfig) -> Subject:
    """The model of `base`, or of the group `model`."""
    return build_subject(cfg) if cfg.base is None else load_side(cfg, cfg.base, "base")


def load_both(cfg: DictConfig) -> tuple[Subject, Subject]:
    """Base and tuned model.

    Raises:
        UserError: one cannot be loaded, or they are of different graphs.
    """
    base, tuned = load_base(cfg), load_side(cfg, cfg.tuned, "tuned")
    check_same_graph(base, tuned)
    return base, tuned


def task_settings(items: ListConfig | None, key: str, shared: Iterable[str] = PAIRS_ALONE) -> dict[str, DictConfig]:
    """The configuration of each task of a list, by its label.

    Args:
        items: the list.
        key: its setting.
        shared: groups that no task may change; by default all but its pairs.

    Raises:
        UserError: an item is no task, or changes what all share.
    """
    if items is not None and not isinstance(items, ListConfig):
        raise UserError(f"{key}={items} is no list; write {key}=[ioi,sva]")
    made = {entry.name: composed(*entry.settings) for entry in entries(items, "task")}
    whole = composed() if made else DictConfig({})
    for name, own in made.items():
        check_shared(own, whole, f"{key}: {name}", shared)
    return made


def passages(cfg: DictConfig, subject: Subject, count: int, length: int) -> Int[Tensor, "passage pos"]:
    """Other text, read or sampled, and kept beside the run.

    Raises:
        UserError: too little text, or a compiled program, which knows none.
    """
    if subject.graph.inputs > 1:
        raise UserError("a compiled program (Tracr) has no other text to be tried on; take another model")
    length = passage_length(subject.model.config, length)
    if cfg.text is not None:
        ids = read_passages(Path(cfg.text), subject, count, length)
    else:
        ids = sample_passages(subject, count, length, cfg.seed)
    if len(ids) < 2:
        raise UserError("the collateral KL needs at least two passages; give more text")
    write_passages(run_dir() / "text.jsonl", subject, ids)
    return ids.to(subject.device)


def component_kinds(path: str | None, graph: Graph) -> dict[str, str]:
    """Roles of the heads that a run of the verb heads found, by node, several joined by a comma; MLPs are "mlp".

    Raises:
        UserError: no such run.
    """
    kinds = plain_kinds(graph)
    if path is None:
        return kinds
    file = Path(path) / "heads.json" if Path(path).is_dir() else Path(path)
    try:
        details: dict[str, Any] = json.loads(file.read_text())["details"]
        found: dict[str, list[str]] = defaultdict(list)
        groups = [details.get("ioi_algorithm", {}).get("roles", {}), details.get("circuit", {}).get("roles", {})]
        groups.append({role: check["heads"] for role, check in details.get("causal", {}).items()})
        for group in groups:
            for role, heads in group.items():
                for head in heads:
                    name = head if isinstance(head, str) else head[0]
                    found[name] += [] if role in found[name] else [role]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"heads={path}: no readable heads.json ({error}); name a run of the verb heads") from error
    known_nodes(graph, found)
    return kinds | {node: ", ".join(roles) for node, roles in found.items()}
