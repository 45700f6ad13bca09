"""What differs between two models of one graph: their circuits, edge by edge, and their weights, head by head."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
