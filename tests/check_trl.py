"""uv run --with trl python tests/check_trl.py: our DPO loss and its gradient beside TRL's on the same batch.

Both are given the same texts; each encodes them itself. The policy is a perturbed copy of the reference.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from circuitlit.finetune.dpo import PreferenceTuner, reference_log_probs
from circuitlit.finetune.examples import examples_of_file
from circuitlit.finetune.tuner import Optimisation
from circuitlit.model.load import load_subject

BETA, ROWS = 0.3, 8


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    from cli import WORDS, write_local

    folder = Path(tempfile.mkdtemp())
    write_local(folder)
    end = WORDS[-1]  # said at the end of every answer, so that TRL adds no end of its own
    rows = [
        {
            "prompt": " ".join(WORDS[number : number + 3 + number % 4]),
            "chosen": f" {WORDS[20 + number]} {WORDS[2 * number]} {end}",
            "rejected": f" {WORDS[30 - number]} {end}",
        }
        for number in range(ROWS)
    ]
    lines = [json.dumps(row | {"split": split}) for split in ("train", "val", "test") for row in rows]
    (folder / "preferences.jsonl").write_text("\n".join(lines))
    subject = load_subject(folder / "model")
    assert subject.tokenizer is not None
    examples = examples_of_file(str(folder / "preferences.jsonl"), subject.tokenizer)["train"]
    reference = reference_log_probs(subject.model, examples, ROWS)
    policy = copy.deepcopy(subject.model).requires_grad_(True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model", eos_token=end, pad_token="[unk]")
    settings = DPOConfig(
        output_dir=str(folder / "out"),
        max_steps=1,
        beta=BETA,
        per_device_train_batch_size=ROWS,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(subject.model),
        args=settings,
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    tuner = PreferenceTuner(policy.eval(), Optimisation(1, 1e-3), beta=BETA, reference=reference)
    ours = tuner.figures(examples.collate(range(ROWS)), 0)["loss"]
    ours.backward()
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (policy, trainer.model)]
    off = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    difference = abs(float(ours.detach()) - float(theirs.detach()))
    print(f"loss {float(ours.detach()):.8f}, TRL's {float(theirs.detach()):.8f}; gradients {off:.1e} off (relative)")
    return int(not (difference < 1e-6 and off < 1e-4))


if __name__ == "__main__":
    sys.exit(main())
