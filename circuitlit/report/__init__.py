"""The page and the closing table of a run. Reads artefacts, never models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
