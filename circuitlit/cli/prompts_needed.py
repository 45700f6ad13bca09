"""What a run needs of a file of pairs, looked up before anything loads: corrupted prompts and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from circuitlit.errors import UserError

WITHOUT = (
    "attribute",
    "behaviour",
    "bench",
    "evaluate",
    "explain",
    "finetune",
    "rivals",
    "train",
    "trust",
)  # verbs that do with clean prompts
CUT = ("attribute", "evaluate", "explain", "rivals", "train", "trust")  # those of them that ablate edges


def check_prompts(cfg: DictConfig, verb: str) -> None:
    """Refuse settings that need prompts or answers which the pairs of a file do not have.

    Raises:
        UserError: corrupted prompts or wrong answers are needed and missing.
    """
    path = cfg.task.build.get("path")
    if path is None or cfg.task.build.get("_target_") != "circuitlit.tasks.jsonl":
        return
    lines, corrupted, wrong = _count(Path(path))
    if lines and not corrupted:
        if verb not in WITHOUT:
            raise UserError(f'{path} has no corrupted prompts, which {verb} compares with; give every line "corrupted"')
        if verb in CUT and cfg.ablation.kind == "interchange":
            raise UserError(
                f"{path} has no corrupted prompts, which ablation=interchange takes activations from; take "
                'ablation=mean or ablation=zero, or give every line "corrupted"'
            )
    if wrong == lines or verb not in CUT:
        return
    losses = (
        {"method.objective": cfg.method.objective} if verb not in ("evaluate", "explain", "rivals", "trust") else {}
    )
    losses |= {"objective": cfg.objective.loss} if verb == "train" else {}
    for key, loss in losses.items():
        name = str(loss.get("path", "")).rsplit(".", 1)[-1]
        if name == "logit_difference_error" or (name == "negative_metric" and wrong):
            raise UserError(
                f'{lines - wrong} of {lines} lines of {path} have no "wrong_answer", which {key} ({name}) compares the '
                "answer with; add it, or take objective=kl and method=eap_ig"
            )


def _count(path: Path) -> tuple[int, int, int]:
    """Lines of a file of pairs, those with a corrupted prompt, and those with a wrong answer.

    What is not readable is left to the reader of the pairs, which says where it is.
    """
    rows = []
    try:
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            row = json.loads(line) if line.strip() else None
            if isinstance(row, dict):
                rows.append(row)
    except (OSError, ValueError, RecursionError):
        return 0, 0, 0
    corrupted, wrong = (sum(row.get(name) is not None for row in rows) for name in ("corrupted", "wrong_answer"))
    return len(rows), corrupted, wrong
