"""Fine-tuning of a subject on a task: supervised, by preferences or by reward; all weights or an adapter.

The trained position is the one that circuits read: the answer right after the prompt, teacher-forced, and nothing else
bears a loss. This part knows models and tasks, but no circuits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
