"""Masks and LoRA trained together: the adapters learn to do with the circuit's edges what the whole base model does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor, nn

from circuitlit import finetune
from circuitlit.cli.checks import run_dir
from circuitlit.cli.ranks import processes
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.masked import MaskedModel, Reference, References, ablated_run
from circuitlit.tasks.pair import Batch

if TYPE_CHECKING:
    from peft import PeftModel


class BaseAnswers(References):
    """References whose teacher is the base model, adapters switched off; ablated writers are the adapted model's."""

    adapters: PeftModel

    @torch.no_grad()
    def teacher(self, batch: Batch) -> Float[Tensor, "batch answer vocab"]:
        """The base model's log-probabilities."""
        with self.adapters.disable_adapter():
            return super().teacher(batch)

    def compute(self, batch: Batch) -> Reference:
        """Two stock forwards: of the base and of the adapted model."""
        return Reference(self.teacher(batch), ablated_run(self.subject, batch, self.kind, self.mean))


@dataclass(frozen=True)
class JointWorkbench(Workbench):
    """A workbench whose references speak for the base model."""

    adapters: PeftModel | None = None

    def fresh_references(self) -> References:
        """References without a cache."""
        assert self.adapters is not None
        return _references(self, self.adapters)


@dataclass(frozen=True)
class Together:
    """Masks and adapters on one workbench.

    Attributes:
        bench: with the live model.
        adapters: around the subject's model.
    """

    bench: JointWorkbench
    adapters: PeftModel

    @property
    def trained(self) -> list[nn.Parameter]:
        """The adapters' parameters."""
        return [parameter for parameter in self.adapters.parameters() if parameter.requires_grad]

    def finish(self) -> Workbench:
        """Save the adapters to `adapter/`, freeze them, and give a workbench to measure on."""
        subject, model = self.bench.subject, self.bench.model
        assert subject.tokenizer is not None
        finetune.save_model(self.adapters, subject.tokenizer, run_dir() / "adapter")
        self.adapters.requires_grad_(False)
        return replace(self.bench, model=MaskedModel(subject, model.panel, model.recompute), losses={})


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be trained together.

    Raises:
        UserError: see the messages.
    """
    if cfg.adapter.build is not None and not cfg.adapter.get("train"):
        raise UserError(
            "train learns masks on a frozen model; adapter.train=true trains the adapter of adapter=lora with them, a "
            "finished one is adapter=peft adapter.path=DIR"
        )
    if not cfg.adapter.get("train"):
        return
    if (cfg.adapter.build or {}).get("dropout", 0):
        raise UserError("adapter.build.dropout must be 0 where masks are trained, too")
    if cfg.ablation.kind not in ("interchange", "zero"):
        raise UserError("adapters change the writers' means; use ablation=interchange or zero with adapter.train=true")
    if cfg.strategy.get("shard") or processes(cfg) > 1:
        raise UserError("masks and adapters are trained together in one process only; use strategy=single")


def adapt(cfg: DictConfig, bench: Workbench) -> Together:
    """Put fresh adapters on the subject, which change nothing yet."""
    config = instantiate(cfg.adapter.build, _convert_="all")(bench.subject.model, cfg.mask.schedule.steps)
    adapters = finetune.adapted(bench.subject.model, config, bench.subject.provenance.get("revision"))
    model = MaskedModel(bench.subject, cfg.mask.panel, cfg.mask.recompute, live=True)
    own = {name: getattr(bench, name) for name in ("subject", "data", "layout", "count", "select", "capture")}
    joint = JointWorkbench(**own, model=model, references=_references(bench, adapters), adapters=adapters)
    return Together(joint, adapters)


def _references(bench: Workbench, adapters: PeftModel) -> BaseAnswers:
    references = BaseAnswers(bench.subject, bench.references.kind, bench.references.mean)
    references.adapters = adapters
    return references
