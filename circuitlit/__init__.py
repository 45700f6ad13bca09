"""circuitlit: circuit discovery as model training.

Masks on the edges of a frozen transformer are trained until a sparse subgraph, the circuit, does what the model does.

Axes, as they stand in the types of all tensors:
    batch, pair   examples of a task
    pos, token    positions of a prompt; `token` where batch and position are one axis
    answer        answer tokens of an example
    layer, head   blocks and query heads (or key/value heads) of the model
    d             width of the residual stream; `width` is all heads' results side by side
    writer        what adds to the residual stream: the input (token embeddings, Tracr's positions), heads, MLPs
    node          heads and MLPs: the writers without the input
    reader        what takes from it: q, k and v of heads, MLPs, the logits
    edge          a writer and a reader that sees it, in the graph's flat order
    copies        copies of the masks: one, or one a token role
    mask          the flat vector that is trained
    vocab         tokens of the model
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitlit.discover import (
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
    from circuitlit.errors import UserError
    from circuitlit.evaluate import (
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
    from circuitlit.graph import (
        Circuit,
        EdgeScores,
        Graph,
        MaskLayout,
        export_circuit,
        greedy,
        load_circuit,
        reachable_edges,
        top_k,
    )
    from circuitlit.masked import MaskedModel, References
    from circuitlit.model import Subject
    from circuitlit.model.load import load_subject
    from circuitlit.objective import Outcome, kl_divergence
    from circuitlit.tasks import (
        Pair,
        PairsModule,
        arithmetic,
        boolean,
        docstring,
        gender_pronoun,
        greater_than,
        induction,
        ioi,
        ioi_single,
        jsonl,
        sva,
        tracr,
    )

__all__ = [
    "Behaviour",
    "Circuit",
    "EdgeScores",
    "Graph",
    "HardConcrete",
    "MaskLayout",
    "MaskLearner",
    "MaskedLoss",
    "MaskedModel",
    "Outcome",
    "Pair",
    "PairsModule",
    "References",
    "Schedule",
    "SigmoidTopK",
    "Subject",
    "TestBed",
    "UniformGradient",
    "UserError",
    "acdc",
    "arithmetic",
    "boolean",
    "clean_corrupted",
    "completeness",
    "consensus",
    "docstring",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "edge_auc",
    "exact",
    "export_circuit",
    "gender_pronoun",
    "greater_than",
    "greedy",
    "induction",
    "information_flow",
    "initial_log_alpha",
    "ioi",
    "ioi_single",
    "jsonl",
    "kl_divergence",
    "load_circuit",
    "load_subject",
    "mask_gradients",
    "noise_floor",
    "paired_difference",
    "random_circuit",
    "random_scores",
    "reachable_edges",
    "relp",
    "shuffled_circuit",
    "similarity",
    "size_curve",
    "smallest_circuit",
    "summarise",
    "sva",
    "top_k",
    "tracr",
]

_HOMES = {
    "circuitlit.discover": (
        "HardConcrete",
        "MaskLearner",
        "MaskedLoss",
        "Schedule",
        "SigmoidTopK",
        "UniformGradient",
        "acdc",
        "clean_corrupted",
        "eap",
        "eap_ig",
        "eap_ig_activations",
        "exact",
        "information_flow",
        "initial_log_alpha",
        "mask_gradients",
        "random_scores",
        "relp",
    ),
    "circuitlit.errors": ("UserError",),
    "circuitlit.evaluate": (
        "Behaviour",
        "TestBed",
        "completeness",
        "consensus",
        "edge_auc",
        "noise_floor",
        "paired_difference",
        "random_circuit",
        "shuffled_circuit",
        "similarity",
        "size_curve",
        "smallest_circuit",
        "summarise",
    ),
    "circuitlit.graph": (
        "Circuit",
        "EdgeScores",
        "Graph",
        "MaskLayout",
        "export_circuit",
        "greedy",
        "load_circuit",
        "reachable_edges",
        "top_k",
    ),
    "circuitlit.masked": ("MaskedModel", "References"),
    "circuitlit.model": ("Subject",),
    "circuitlit.model.load": ("load_subject",),
    "circuitlit.objective": ("Outcome", "kl_divergence"),
    "circuitlit.tasks": (
        "Pair",
        "PairsModule",
        "arithmetic",
        "boolean",
        "docstring",
        "gender_pronoun",
        "greater_than",
        "induction",
        "ioi",
        "ioi_single",
        "jsonl",
        "sva",
        "tracr",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a typing error on the command line need not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'circuitlit' has no attribute '{name}'")
