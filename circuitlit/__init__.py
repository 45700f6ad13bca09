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

Words, each with one meaning:
    pair          a clean prompt, its corrupted twin and the answer; `group` names the sentence or item that pairs share
    edge          a writer as one reader sees it; a removed edge carries its ablated value
    ablation      what stands in for removed edges: interchange (the corrupted prompt's values), zero, mean or optimal
    reference     what a run is measured against: the full model's logits (teacher) and the ablated writers
    mask, gate    a mask multiplies an edge, 1 keeps it; a gate draws masks at random while they are trained
    method        gives every edge a score; a learner is one that trains masks, an attribution trains nothing
    circuit       the edges that are kept; sparsity is the share of edges that are removed
    faithfulness  the share of the metric between corrupted run (0) and full model (1) that a circuit recovers
    checkpoint    a model at one step of its training; a snapshot holds the masks at one step of theirs
    stage         steps between two boundaries of a training, named only where the boundaries are beyond chance
    subject       the frozen model under study with its tokenizer; base and tuned are a model before and after tuning
    result        the frozen dataclass that an analysis returns; an estimate is a number in it with its intervals
"""

import lazy_loader

# The public names stand in __init__.pyi. Each is imported when it is first used: a typing error on the command line
# need not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
