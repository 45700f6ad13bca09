"""How circuits change: over the training of masks, or over a model's checkpoints; stages found from the data."""

import lazy_loader

from circuitlit.timeline.segment import segment as segment  # a module of the same name would hide it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
