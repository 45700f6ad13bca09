"""Watches a circuit in the Trainer of Hugging Face, and in those of TRL, which take the same callbacks."""

from __future__ import annotations

import gc
from copy import copy
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from circuitlit.watch.session import Log, Watching


class CircuitWatch(TrainerCallback, Watching):
    """Follows a circuit while a model is fine-tuned, and leaves the training as it is: `Trainer(callbacks=[watch])`.

    The figures go to the trainer's log history and to all that it reports to, under `circuit/`. Losses, random numbers,
    gradients, modes and hooks are those of a training without it.

    Args:
        pairs, circuit, tokenizer, folder, every, share, on_drift, settings: see `WatchSession`.

    Raises:
        UserError: a setting out of its range; at the start of the training, weights that FSDP or ZeRO-3 shares out,
            and whatever else cannot be read.
    """

    _trainer: Trainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the start."""
        tokenizer = kwargs.get("processing_class")
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        log = self._logger(args, state, control, kwargs)
        place, last = Path(args.output_dir or "."), state.max_steps or None
        self.session.begin(kwargs["model"], state.global_step, last, tokenizer, place, log)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read, if it is time."""
        log = self._logger(args, state, control, kwargs)
        if self.session.after(kwargs["model"], state.global_step, control.should_training_stop, log):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the evolution and the page."""
        if not args.load_best_model_at_end:  # then the weights are those of another step
            log = self._logger(args, state, control, kwargs)
            self.session.after(kwargs["model"], state.global_step, True, log)
        self.session.end(state.global_step)

    def _logger(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, known: dict) -> Log:
        """Does what `Trainer.log` does, but for what would change the training's own log.

        That method has the trainer skip its own next log, and TRL's empties the means that it collects.
        """

        def log(figures: dict[str, float]) -> None:
            logs = figures if state.epoch is None else {**figures, "epoch": state.epoch}
            state.log_history.append({**logs, "step": state.global_step})
            self._trainer = self._trainer or _trainer_with(self)
            for callback in self._trainer.callback_handler.callbacks if self._trainer is not None else ():
                if callback is not self:
                    callback.on_log(args, state, copy(control), logs=dict(logs), **known)

        return log


def _trainer_with(callback: TrainerCallback) -> Trainer | None:
    """The trainer that has a callback: callbacks are not told of it, and only it knows who else logs."""
    for one in gc.get_objects():
        handler = getattr(one, "callback_handler", None) if issubclass(type(one), Trainer) else None
        if handler is not None and any(known is callback for known in handler.callbacks):
            return one
    return None
