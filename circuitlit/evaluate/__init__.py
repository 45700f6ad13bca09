"""How good a circuit is, on pairs it has never seen, and compared with what."""

import lazy_loader

from circuitlit.evaluate.similarity import similarity as similarity  # a module of the same name would hide it

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
