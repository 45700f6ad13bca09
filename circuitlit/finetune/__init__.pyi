# What finetune/__init__.py offers, each imported when it is first used.
from .adapters import adalora, adapted, ia3, lora
from .behaviour import BehaviourChange, HeldOut, behaviour_change
from .checkpoints import CheckpointFolders, save_model, steps_to_save
from .data import TuningData
from .dpo import PreferenceTuner, reference_log_probs
from .examples import Examples, Preference, examples_of_file, examples_of_task
from .grpo import RewardTuner
from .sft import SupervisedTuner
from .tuner import Optimisation, Tuner, answer_log_probs, answer_logits

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
    "ia3",
    "lora",
    "reference_log_probs",
    "save_model",
    "steps_to_save",
]
