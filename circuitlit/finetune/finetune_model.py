"""From a model and examples to a tuned model, and what it does on held-out pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from circuitlit.arguments import checks_arguments
from circuitlit.discover.fit import Curves
from circuitlit.discover.fit import fit as fit_quietly
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.finetune.adapters import AdapterConfig, adapted
from circuitlit.finetune.behaviour import BehaviourChange, HeldOut, behaviour_change
from circuitlit.finetune.checkpoints import save_model
from circuitlit.finetune.data import TuningData
from circuitlit.finetune.dpo import PreferenceTuner, reference_log_probs
from circuitlit.finetune.examples import Examples
from circuitlit.finetune.grpo import RewardTuner
from circuitlit.finetune.only import train_only
from circuitlit.finetune.sft import SupervisedTuner
from circuitlit.finetune.tuner import Optimisation, Tuner
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.adapters import has_adapters
from circuitlit.model.slices import withheld
from circuitlit.progress import phase
from circuitlit.result import Result

Score = Literal["accuracy", "metric"]
MakeTuner = Callable[..., Tuner]  # of model, optimisation, seed and, where it needs one, reference
Fit = Callable[[Tuner, TuningData, HeldOut | None], Curves]  # trains; the validation pairs are to be watched
WATCHED = {"sft": ("loss",), "dpo": ("loss", "margin", "preferred"), "grpo": ("loss", "reward", "kl")}
TUNERS: dict[str, MakeTuner] = {"sft": SupervisedTuner, "dpo": PreferenceTuner, "grpo": RewardTuner}


@dataclass(frozen=True, kw_only=True, repr=False)
class TunedModel(Result):
    """What `finetune_model` gives.

    Attributes:
        status: "OK", or "FAILED" where what had to rise did not; `reason` says how it missed.
        task, model: what was tuned on, and what.
        tune: the objective: "sft", "dpo", "grpo".
        adapter: its kind; "full" where all weights are tuned.
        seed, steps: of the training.
        score: what had to rise on held-out pairs.
        n_parameters_trained, n_parameters: of the model.
        held_out: base against tuned model on test pairs.
    """

    schema: ClassVar[str] = "tuned_model"
    file: ClassVar[str] = "result.json"

    status: str
    reason: str | None
    task: str
    model: str
    tune: str
    adapter: str
    seed: int
    steps: int
    score: str
    n_parameters_trained: int
    n_parameters: int
    held_out: BehaviourChange

    def rows(self) -> Iterator[dict[str, Any]]:
        """Accuracy and metric, before and after."""
        for name in ("accuracy", "metric"):
            cells = {when: getattr(self.held_out, f"{name}_{when}").value for when in ("base", "tuned", "change")}
            yield {"held_out": name, **cells}

    @property
    def module(self) -> nn.Module:
        """The tuned model.

        Raises:
            UserError: this result was loaded from a file.
        """
        module = getattr(self, "_module", None)
        if module is None:
            raise UserError("this result was loaded from a file; its model is in tuned/ beside it")
        return module


@checks_arguments
def finetune_model(
    subject: Subject,
    examples: Mapping[str, Examples],
    objective: str = "sft",
    *,
    adapter: AdapterConfig | None = None,
    adapter_name: str | None = None,
    circuit: Circuit | None = None,
    steps: int = 60,
    lr: float = 1e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    score: Score = "accuracy",
    probe_pairs: int = 32,
    batch_size: int = 8,
    eval_batch_size: int = 16,
    make: MakeTuner | None = None,
    fit: Fit | None = None,
    folder: Path | None = None,
    task: str = "own",
    seed: int = 0,
) -> TunedModel:
    """Tune a model on examples, and test it on held-out ones.

    Args:
        subject: the model, without adapters; it is tuned itself, and with it the live model that it was loaded from, so
            give a copy of what is to stay.
        examples: by split (`examples_of_task`, `examples_of_file`).
        objective: "sft" (supervised), "dpo" (preferences) or "grpo" (rewards).
        adapter: of PEFT (LoRA, AdaLoRA or IA3); None tunes all weights.
        adapter_name: its kind, for the result.
        circuit: only the weights of its heads and MLPs are tuned; None tunes all.
        steps, lr, warmup, weight_decay: of the optimisation; warmup is a share of the steps.
        score: what must rise on held-out pairs.
        probe_pairs: validation pairs that are watched during the training.
        batch_size, eval_batch_size: examples in a batch.
        make: another objective's module, such as `partial(PreferenceTuner, beta=0.3)`.
        fit: trains the module; None takes a quiet Trainer.
        folder: gets `tuned/`, `history.json` and `held_out.json`; None writes nothing.
        task: for the result.
        seed: of the examples' order.

    Raises:
        UserError: settings that do not go together.
    """
    if make is None and objective not in TUNERS:
        raise UserError(f"objective={objective} is none of {', '.join(TUNERS)}; choose one")
    if has_adapters(subject.model):
        raise UserError("the model has an adapter on it already; load the base model, or merge the adapter first")
    if folder is not None and subject.tokenizer is None:
        raise UserError("folder is for a model with its tokenizer; give load_subject one: tokenizer=...")
    if eval_batch_size < 1 or probe_pairs < 0:
        raise UserError(
            f"eval_batch_size={eval_batch_size} must be at least 1 and probe_pairs={probe_pairs} at least 0"
        )
    data, device = TuningData(dict(examples), batch_size, seed), subject.device
    with phase("before", f"Testing on {len(data.test)} held-out pairs"):
        held_out = HeldOut(subject.model, data.test.chosen, eval_batch_size, subject.device)
        if score == "metric" and not bool(held_out.base.metric.isfinite().all()):
            raise UserError("tune.score=metric needs pairs with wrong answers; use tune.score=accuracy")
        watched = _watched(subject, data, min(probe_pairs, len(data.val)), eval_batch_size)
        optimisation = Optimisation(steps, lr, warmup, weight_decay)
        own = {"objective": objective, "seed": seed, "batch_size": eval_batch_size}
        tuner = _tuner(subject, data, make or TUNERS[objective], optimisation, adapter, circuit, **own)
        tuner.to(device)  # a new module says that it is on the CPU, whatever its model is on
    with phase("tuning", f"Tuning for {steps} steps: {trained_share(tuner.model)}"):
        try:
            if fit is None:
                curves = fit_quietly(tuner, data, steps=steps, names=WATCHED.get(objective, ("loss",)))
            else:
                curves = fit(tuner, data, watched)
        finally:
            tuner.to(device)  # Lightning leaves it on the CPU, and with it the subject
    with phase("after", "Testing the tuned model"):
        outcome = held_out.measure(tuner.model)
        change = behaviour_change(held_out.base, outcome)
        reason = change.shortfall(score)
        if folder is not None:
            assert subject.tokenizer is not None
            save_model(tuner.model, subject.tokenizer, folder / "tuned")
            by_pair = {name: getattr(outcome, name).tolist() for name in ("accuracy", "metric", "group")}
            write_json(folder / "history.json", {"rows": curves})
            write_json(folder / "held_out.json", by_pair, indent=None)  # for paired tests between runs
    result = TunedModel(
        status="FAILED" if reason else "OK",
        reason=reason,
        task=task,
        model=subject.name,
        tune=objective,
        adapter=adapter_name or ("full" if adapter is None else str(adapter.peft_type).rsplit(".", 1)[-1].lower()),
        seed=seed,
        steps=steps,
        score=score,
        n_parameters_trained=_count(tuner.model, trained=True),
        n_parameters=_count(tuner.model, trained=False),
        held_out=change,
    )
    object.__setattr__(result, "_module", tuner.model)
    return result


def _watched(subject: Subject, data: TuningData, count: int, size: int) -> HeldOut | None:
    """Validation pairs for the curves; None without any."""
    if not count:
        return None
    pairs = data.val.chosen
    return HeldOut(subject.model, pairs.some(pairs.spread(count)), size, subject.device)


def _tuner(
    subject: Subject,
    data: TuningData,
    make: MakeTuner,
    optimisation: Optimisation,
    adapter: AdapterConfig | None,
    circuit: Circuit | None,
    *,
    objective: str,
    seed: int,
    batch_size: int,
) -> Tuner:
    """The objective on the model, all weights or an adapter trainable; what full tuning compares with is made here."""
    if adapter is not None:
        if circuit is not None:
            raise UserError("tune.circuit needs adapter=none: an adapter's factors belong to all heads of a module")
        return make(adapted(subject.model, adapter, subject.provenance.get("revision")), optimisation, seed=seed)
    reference: dict[str, Any] = {}
    if objective == "dpo":
        reference["reference"] = reference_log_probs(subject.model, data.train, batch_size, subject.device)
    if objective == "grpo":
        reference["reference"] = copy.deepcopy(subject.model)
    if circuit is None:
        subject.model.requires_grad_(True)
        return make(subject.model, optimisation, seed=seed, **reference)
    if optimisation.weight_decay:
        raise UserError("tune.circuit needs tune.weight_decay=0, which would move the other weights")
    nodes = circuit.nodes()
    if not nodes or len(withheld(subject.graph, nodes)) == len(nodes):
        raise UserError("tune.circuit has no head and no MLP to train")
    train_only(subject, nodes)
    return make(subject.model, optimisation, seed=seed, **reference)


def _count(model: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def trained_share(model: nn.Module) -> str:
    """How much of a model is trained, in words."""
    trained, whole = _count(model, trained=True), _count(model, trained=False)
    return f"{trained:,} of {whole:,} parameters"
