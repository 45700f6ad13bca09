"""Hydra's launcher `hydra/launcher=packed`: many runs on few GPUs. Hydra takes plugins from `hydra_plugins` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


class PackedLauncher(Launcher):
    """Runs of a sweep as processes, so many at a time on each GPU.

    Args:
        each: runs at a time on each GPU, or on the CPU where there is none.
    """

    def __init__(self, each: int) -> None:
        self.each = each

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """As Hydra calls it; the runs are processes that need no function of this one."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Work off all runs."""
        from circuitlit.cli.packed import run_all  # not above: Hydra reads this file in every command

        load = self.context.config_loader.load_sweep_config
        numbered = enumerate(job_overrides, initial_job_idx)
        runs = [(number, words, load(self.config, list(words))) for number, words in numbered]
        run_all(self.config, runs, self.each)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=None) for words in job_overrides]
