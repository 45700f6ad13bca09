"""Single heads: what they attend to and write, what they do along direct paths, and their parts in circuits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
