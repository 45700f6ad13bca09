"""How many bytes tensors hold, counted while code runs: on real devices, or on shapes alone (the meta device)."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Footprint(TorchDispatchMode):
    """Counts the memory of all tensors that are made inside a `with` block, for as long as they live.

    Memory that an operation needs only while it runs is not seen, nor what an allocator rounds up.

    Attributes:
        held: bytes of the tensors that are alive.
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, int] = {}

    def restart(self) -> int:
        """Forget the peak so far; the bytes that are held now."""
        self.peak = self.held
        return self.held

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out tensors that were there before."""
        for tensor in tensors:
            self._note(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf, None)
        return made

    def _note(self, tensor: Tensor, size: int | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if size is None else size
        self.held += self._known[key]
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)
