"""Single heads: what they attend to and write, what they do along direct paths, and their parts in circuits."""

from circuitlit.heads.attention import Heads, heads_replaced
from circuitlit.heads.causal import CausalCheck, causal_check
from circuitlit.heads.copy_suppression import copy_suppression_scores
from circuitlit.heads.copying import copying_of_pairs, copying_scores
from circuitlit.heads.effects import Effects, path_effects
from circuitlit.heads.greater_than import GreaterThan, greater_than_check
from circuitlit.heads.ioi_algorithm import Algorithm, Share, Thresholds, effect_share, ioi_algorithm
from circuitlit.heads.path_patching import PatchBed, path_patch
from circuitlit.heads.places import NamePlaces
from circuitlit.heads.repeats import repeat_scores, repeated_tokens
from circuitlit.heads.roles import HeadScores, heads_in_circuit, roles_in_circuit
from circuitlit.heads.s_inhibition import position_signal
from circuitlit.heads.successor import successor_lists, successor_scores

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
