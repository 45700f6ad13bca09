"""uv run --group packed python launch/nf4.py OUT [TASK]: SmolLM2 in bfloat16 beside its NF4 copy.

Packs the packaged weights with bitsandbytes (NF4, double quantisation), then compares the two subjects on a task's test
pairs: KL between them, and the edges that their circuits share beyond chance, beside those of two seeds of the first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from circuitlit import Subject, find_circuit, gender_pronoun, greater_than, ioi, load_subject, sva
from circuitlit.evaluate.overlap import shared_by_pairs
from circuitlit.tasks import PairsModule

TASKS = {"ioi": ioi, "sva": sva, "greater_than": greater_than, "gender_pronoun": gender_pronoun}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def packed(plain: Subject, folder: Path) -> Path:
    """A folder with the model packed."""
    if not (folder / "config.json").is_file():
        whole = folder.with_name("plain")
        plain.model.save_pretrained(whole)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        model = AutoModelForCausalLM.from_pretrained(whole, quantization_config=how, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        plain.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    return folder


@torch.no_grad()
def kl_between(one: Subject, other: Subject, data: PairsModule) -> float:
    """Mean KL(one || other) in nats at the answers of the test pairs."""
    found = []
    for batch in data.test.batches(32):
        placed = batch.to(one.device)
        ours, theirs = (s.logits(placed.clean, placed.positions).double().log_softmax(-1) for s in (one, other))
        found.append(((ours.exp() * (ours - theirs)).sum(-1))[placed.answer_mask])
    return float(torch.cat(found).mean())


def main(out: Path, task: str = "ioi") -> None:
    """Pack, search three circuits, print and write `nf4.json`."""
    plain = load_subject("smollm2", dtype="bfloat16", device=DEVICE, name="bf16")
    small = load_subject(packed(plain, out / "nf4"), dtype="bfloat16", device=DEVICE, name="nf4")
    pairs = TASKS[task](plain.tokenizer, n_train=200, n_val=64, n_test=100, seed=0)
    runs = {"bf16, seed 0": (plain, 0), "bf16, seed 1": (plain, 1), "nf4, seed 0": (small, 0)}
    found = {name: find_circuit(subject, pairs, 0.95, seed=seed) for name, (subject, seed) in runs.items()}
    data = PairsModule(pairs, plain.tokenizer, 8, 0)  # type: ignore[arg-type]
    result: dict[str, Any] = {"task": task, "kl_of_models": kl_between(plain, small, data), "packed": small.provenance}
    result["circuits"] = {
        name: {"kl": one.kl.value, "status": one.status}  # type: ignore[union-attr]
        for name, one in found.items()
    }
    shared = shared_by_pairs({name: one.live.circuit for name, one in found.items()})
    for (one, other), both in shared.items():
        edges = both.to_dict()["edges"]
        kept = {key: edges[key] for key in ("sizes", "jaccard", "expected", "corrected", "rank_p")}
        result.setdefault("shared edges", {})[f"{one} | {other}"] = kept
    print(json.dumps(result, indent=1, default=str))
    (out / "nf4.json").write_text(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    if len(sys.argv) < 2 or (sys.argv[2:] and sys.argv[2] not in TASKS):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
