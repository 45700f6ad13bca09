"""Mixtures of experts: an MLP that a router leads, called with an input of the router's own.

With the router's input x_r and the experts' x_e it writes  m = sum over k in top(x_r) of w_k(x_r) E_k(x_e), and what a
shared expert makes of x_e beside it. Top-k jumps: gradients see the weights w_k alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

NAMES = ("gate", "router")


def router_of(mlp: nn.Module) -> nn.Module | None:
    """The module that chooses among an MLP's experts; None without experts."""
    if not hasattr(mlp, "experts"):
        return None
    return next((getattr(mlp, name) for name in NAMES if isinstance(getattr(mlp, name, None), nn.Module)), None)


@contextmanager
def reading(router: nn.Module, x: Float[Tensor, "*rows d"]) -> Iterator[None]:
    """Have a router read a normed stream of its own while its MLP runs."""
    hook = router.register_forward_pre_hook(lambda _router, args: (x.reshape(args[0].shape), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
