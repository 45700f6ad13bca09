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

import lazy_loader

# The public names stand in __init__.pyi. Each is imported when it is first used: a typing error on the command line
# need not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
