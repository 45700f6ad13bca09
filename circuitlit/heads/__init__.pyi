# What heads/__init__.py offers, each imported when it is first used.
from .algorithm import Algorithm, Share, Thresholds, effect_share, ioi_algorithm
from .attention import Heads, heads_replaced
from .causal import CausalCheck, causal_check
from .copy_suppression import copy_suppression_scores
from .copying import copying_of_pairs, copying_scores
from .effects import Effects, path_effects
from .greater_than import GreaterThan, greater_than_check
from .path_patching import PatchBed, path_patch
from .places import NamePlaces
from .repeats import repeat_scores, repeated_tokens
from .roles import HeadScores, heads_in_circuit, roles_in_circuit
from .s_inhibition import position_signal
from .successor import successor_lists, successor_scores

__all__ = [
    "Algorithm",
    "CausalCheck",
    "Effects",
    "GreaterThan",
    "HeadScores",
    "Heads",
    "NamePlaces",
    "PatchBed",
    "Share",
    "Thresholds",
    "causal_check",
    "copy_suppression_scores",
    "copying_of_pairs",
    "copying_scores",
    "effect_share",
    "greater_than_check",
    "heads_in_circuit",
    "heads_replaced",
    "ioi_algorithm",
    "path_effects",
    "path_patch",
    "position_signal",
    "repeat_scores",
    "repeated_tokens",
    "roles_in_circuit",
    "successor_lists",
    "successor_scores",
]
