"""uv run --group trl pytest tests/test_watch_trl.py: a circuit watched in TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli import WORDS, write_local
from watched import SETTINGS, own_log, pairs_of, tiny, tokenizer_of

from circuitlit import CircuitWatch

trl = pytest.importorskip("trl", reason="trl is not installed: uv run --group trl pytest tests/test_watch_trl.py")


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "lora"])
def test_sft_trains_as_without_it(tmp_path: Path, adapted: bool) -> None:
    """TRL puts a forward of its own on the model, checkpoints activations, and empties its means whenever it logs."""
    from datasets import Dataset
    from peft import LoraConfig

    local = write_local(tmp_path)
    rows = [{"text": " ".join(WORDS[number : number + 6])} for number in range(24)]

    def train(name: str, *callbacks: Any) -> Any:
        config = trl.SFTConfig(
            output_dir=str(tmp_path / name),
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        lora = LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1, task_type="CAUSAL_LM") if adapted else None
        tokenizer = tokenizer_of(local)
        tokenizer.eos_token = WORDS[-1]
        trainer = trl.SFTTrainer(
            model=tiny(local),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=list(callbacks),
        )
        trainer.train()
        return trainer

    watch = CircuitWatch(pairs_of(local), every=3, settings=SETTINGS)
    plain, watched = own_log(train("plain")), own_log(train("watched", watch))
    assert watched == plain and "mean_token_accuracy" in plain[0]
    readings = watch.result.readings
    assert [one.step for one in readings] == [0, 3, 6]
    assert readings[-1].figures()["text_kl"] > 1e-4  # the trained weights were read, not the start's
