"""Several processes for masks on a frozen model: Lightning's strategies, but for streams and the numbers' types.

Lightning's DeepSpeed plugin casts the whole module: `32-true` would blow a bfloat16 backbone up, `bf16-*` would round
the masks. Here every tensor keeps the type that it has: masks float32, the backbone its own.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from circuitlit.discover import MaskLearner
from circuitlit.masked.engines import load_deepspeed


class MaskDDP(DDPStrategy):
    """Averages the masks' gradients over the processes.

    The gradients arrive where they are used: Lightning wraps the module on a stream of its own, so that every step's
    gradient would cross streams, with a wait and a warning each.
    """

    def __init__(self) -> None:
        super().__init__(broadcast_buffers=False, gradient_as_bucket_view=True)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class UntouchedPrecision(DeepSpeedPrecision):
    """DeepSpeed's backward and step, without a cast."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module as it is."""
        return module

    def convert_input(self, data: Any) -> Any:
        """The batch as it is."""
        return data


class MaskDeepSpeed(DeepSpeedStrategy):
    """Trains the masks under DeepSpeed; the frozen model is no part of the module and never saved.

    Args:
        stage: 1 shards the optimizer's moments over the processes, 2 the gradients too.
    """

    def __init__(self, stage: int) -> None:
        super().__init__(
            stage=stage,
            allgather_bucket_size=2**26,
            reduce_bucket_size=2**26,
            exclude_frozen_parameters=True,
            precision_plugin=UntouchedPrecision(),
        )
        assert isinstance(self.config, dict)
        self.config["zero_allow_untested_optimizer"] = True  # torch's Adam: the one that other strategies use

    def setup(self, trainer: Trainer) -> None:
        """As Lightning's; the learner then knows the copies of its masks that DeepSpeed trains."""
        super().setup(trainer)
        learner = self.lightning_module
        assert isinstance(learner, MaskLearner)
        (optimizer,) = self.optimizers
        learner.masters = lambda: optimizer.single_partition_of_fp32_groups  # type: ignore[attr-defined]

    def setup_environment(self) -> None:
        """As Lightning's, which refuses the CPU; DeepSpeed itself runs there (gloo)."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """As Lightning's, whose check of GPU numbers would refuse the CPU."""
        if self.root_device.type != "cpu":
            return super().setup_distributed()
        load_deepspeed(self.root_device)
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        """This process's device, with a number on the CPU too, as DeepSpeed wants it."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device
