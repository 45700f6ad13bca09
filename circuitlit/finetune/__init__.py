"""Fine-tuning of a subject on a task: supervised, by preferences or by reward; all weights or an adapter.

The trained position is the one that circuits read: the answer right after the prompt, teacher-forced, and nothing else
bears a loss. This part knows models and tasks, but no circuits.
"""

from circuitlit.finetune.adapters import adalora, adapted, lora
from circuitlit.finetune.behaviour import BehaviourChange, HeldOut, behaviour_change
from circuitlit.finetune.checkpoints import CheckpointFolders, save_model, steps_to_save
from circuitlit.finetune.data import TuningData
from circuitlit.finetune.dpo import PreferenceTuner, reference_log_probs
from circuitlit.finetune.examples import Examples, Preference, examples_of_file, examples_of_task
from circuitlit.finetune.grpo import RewardTuner
from circuitlit.finetune.sft import SupervisedTuner
from circuitlit.finetune.tuner import Optimisation, Tuner, answer_log_probs, answer_logits

__all__ = [
    "BehaviourChange",
    "CheckpointFolders",
    "Examples",
    "HeldOut",
    "Optimisation",
    "Preference",
    "PreferenceTuner",
    "RewardTuner",
    "SupervisedTuner",
    "Tuner",
    "TuningData",
    "adalora",
    "adapted",
    "answer_log_probs",
    "answer_logits",
    "behaviour_change",
    "examples_of_file",
    "examples_of_task",
    "lora",
    "reference_log_probs",
    "save_model",
    "steps_to_save",
]
