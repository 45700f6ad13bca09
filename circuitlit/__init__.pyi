# The public names, listed once: circuitlit/__init__.py imports each when it is first used.
from .compare.capabilities import Capabilities, compare_capabilities
from .compare.comparison import Comparison, compare_models
from .compare.cross_tasks import Generality, measure_generality
from .compare.injected_facts import FactInjection, inject_facts
from .compare.interventions import Interventions, intervene_on_nodes
from .compare.known_facts import Knowledge, measure_knowledge
from .compare.prevention import compare_freezing
from .compare.prompts import PromptComparison, compare_prompts
from .compare.pruned_model import PrunedModel, prune_model
from .compare.rank_patterns import RankComparison, RankedTuning, RankMakers, RankSettings, compare_rank_patterns
from .compare.reuse import Swaps
from .compare.sparse_difference import LearnedDifference, find_difference
from .compare.tunings import TuningComparison, compare_tunings
from .discover import (
    HardConcrete,
    MaskedLoss,
    MaskLearner,
    Schedule,
    SigmoidTopK,
    UniformGradient,
    acdc,
    clean_corrupted,
    eap,
    eap_ig,
    eap_ig_activations,
    exact,
    information_flow,
    initial_log_alpha,
    mask_gradients,
    random_scores,
    relp,
)
from .discover.method import Method
from .discover.workbench import Ablation, Workbench
from .errors import UserError
from .evaluate import (
    Behaviour,
    TestBed,
    completeness,
    consensus,
    edge_auc,
    noise_floor,
    paired_difference,
    random_circuit,
    shuffled_circuit,
    similarity,
    size_curve,
    smallest_circuit,
    summarise,
)
from .evaluate.ability import measure_behaviour
from .evaluate.ablations import Ablations, measure_ablations
from .evaluate.check.check_model import ModelCheck, check_model
from .evaluate.check.list_families import Families, list_families
from .evaluate.cost.attribution import time_attribution
from .evaluate.cost.benchmark import AttributionTimes, MemoryPlans, StepTimes
from .evaluate.cost.memory import StepShape, plan_memory
from .evaluate.cost.training import time_training
from .evaluate.evaluation import evaluate_circuit
from .evaluate.find import attribute_circuit, find_circuit
from .evaluate.found import FoundCircuit
from .evaluate.generalisation import Generalisation, measure_generalisation
from .evaluate.model_errors import ModelErrors, measure_errors
from .evaluate.study.cells import StudySettings
from .evaluate.study.compare_methods import compare_methods, learn_masks
from .evaluate.study.results import MethodStudy
from .evaluate.trust.card import TrustCard, measure_trust, share_trust
from .evaluate.trust.find_rivals import find_rivals
from .evaluate.trust.measure_robustness import measure_robustness
from .evaluate.trust.measure_stability import measure_stability
from .evaluate.trust.rivals import Rivals
from .evaluate.trust.robustness import Robustness
from .evaluate.trust.stability import Stability
from .finetune import examples_of_task
from .finetune.finetune_model import TunedModel, finetune_model
from .graph import Circuit, EdgeScores, Graph, MaskLayout, export_circuit, greedy, load_circuit, reachable_edges, top_k
from .heads.explain.explain_circuit import explain_circuit
from .heads.explain.explanation import Explanation
from .heads.head_settings import HeadSettings
from .heads.roles import HeadScores
from .heads.score_heads import score_heads
from .masked import MaskedModel, References
from .model import Subject
from .model.load import load_subject
from .objective import Outcome, kl_divergence
from .report import plot_circuit, write_page, write_runs
from .result import Result
from .tasks import (
    Pair,
    Pairs,
    PairsModule,
    arithmetic,
    boolean,
    docstring,
    gender_pronoun,
    greater_than,
    in_chat,
    induction,
    ioi,
    ioi_hard,
    ioi_single,
    jsonl,
    sva,
    tracr,
)
from .timeline import MaskTimeline, TimelineAgreement, compare_timelines, follow_masks
from .timeline.checkpoints import hub_checkpoints, local_checkpoints
from .timeline.evolution import Evolution
from .timeline.follow import follow_checkpoints
from .timeline.measured_heads import FollowSettings, HeadsFollowed
from .timeline.story import TuningStory
from .timeline.telling import Makers, tell_story
from .timeline.watch_checkpoints import watch_checkpoints
from .timeline.watched import Limits, WatchedCircuit
from .timeline.watcher import WatchSettings
from .watch.hugging_face import CircuitWatch
from .watch.lightning import LightningCircuitWatch

__all__ = [
    "Ablation",
    "Ablations",
    "AttributionTimes",
    "Behaviour",
    "Capabilities",
    "Circuit",
    "CircuitWatch",
    "Comparison",
    "EdgeScores",
    "Evolution",
    "Explanation",
    "FactInjection",
    "Families",
    "FollowSettings",
    "FoundCircuit",
    "Generalisation",
    "Generality",
    "Graph",
    "HardConcrete",
    "HeadScores",
    "HeadSettings",
    "HeadsFollowed",
    "Interventions",
    "Knowledge",
    "LearnedDifference",
    "LightningCircuitWatch",
    "Limits",
    "Makers",
    "MaskLayout",
    "MaskLearner",
    "MaskTimeline",
    "MaskedLoss",
    "MaskedModel",
    "MemoryPlans",
    "Method",
    "MethodStudy",
    "ModelCheck",
    "ModelErrors",
    "Outcome",
    "Pair",
    "Pairs",
    "PairsModule",
    "PromptComparison",
    "PrunedModel",
    "RankComparison",
    "RankMakers",
    "RankSettings",
    "RankedTuning",
    "References",
    "Result",
    "Rivals",
    "Robustness",
    "Schedule",
    "SigmoidTopK",
    "Stability",
    "StepShape",
    "StepTimes",
    "StudySettings",
    "Subject",
    "Swaps",
    "TestBed",
    "TimelineAgreement",
    "TrustCard",
    "TunedModel",
    "TuningComparison",
    "TuningStory",
    "UniformGradient",
    "UserError",
    "WatchSettings",
    "WatchedCircuit",
    "Workbench",
    "acdc",
    "arithmetic",
    "attribute_circuit",
    "boolean",
    "check_model",
    "clean_corrupted",
    "compare_capabilities",
    "compare_freezing",
    "compare_methods",
    "compare_models",
    "compare_prompts",
    "compare_rank_patterns",
    "compare_timelines",
    "compare_tunings",
    "completeness",
    "consensus",
    "docstring",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "edge_auc",
    "evaluate_circuit",
    "exact",
    "examples_of_task",
    "explain_circuit",
    "export_circuit",
    "find_circuit",
    "find_difference",
    "find_rivals",
    "finetune_model",
    "follow_checkpoints",
    "follow_masks",
    "gender_pronoun",
    "greater_than",
    "greedy",
    "hub_checkpoints",
    "in_chat",
    "induction",
    "information_flow",
    "initial_log_alpha",
    "inject_facts",
    "intervene_on_nodes",
    "ioi",
    "ioi_hard",
    "ioi_single",
    "jsonl",
    "kl_divergence",
    "learn_masks",
    "list_families",
    "load_circuit",
    "load_subject",
    "local_checkpoints",
    "mask_gradients",
    "measure_ablations",
    "measure_behaviour",
    "measure_errors",
    "measure_generalisation",
    "measure_generality",
    "measure_knowledge",
    "measure_robustness",
    "measure_stability",
    "measure_trust",
    "noise_floor",
    "paired_difference",
    "plan_memory",
    "plot_circuit",
    "prune_model",
    "random_circuit",
    "random_scores",
    "reachable_edges",
    "relp",
    "score_heads",
    "share_trust",
    "shuffled_circuit",
    "similarity",
    "size_curve",
    "smallest_circuit",
    "summarise",
    "sva",
    "tell_story",
    "time_attribution",
    "time_training",
    "top_k",
    "tracr",
    "watch_checkpoints",
    "write_page",
    "write_runs",
]
