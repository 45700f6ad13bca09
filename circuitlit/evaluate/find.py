"""From a model and pairs to a circuit with its evaluation, in one call: by trained masks, or by attribution."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.discover import HardConcrete, MaskLearner, Schedule, initial_log_alpha, mask_gradients
from circuitlit.discover.error_weight import for_errors
from circuitlit.discover.fit import Curves, fit
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Ablation, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.baseline import Baseline, against_cut, baselines, best_attribution, validation
from circuitlit.evaluate.begin_token import tell_front
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.found import FAILED, FoundCircuit
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.trust.batch_scores import BatchScores
from circuitlit.evaluate.verdict import Bars, measure_circuit
from circuitlit.graph import EdgeScores
from circuitlit.model import Subject
from circuitlit.objective import Objective, kl_divergence
from circuitlit.progress import phase, say
from circuitlit.surroundings import products_at, seeded
from circuitlit.tasks import Pairs, PairsModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trained:
    """Masks after their training.

    Attributes:
        scores: their log-alphas.
        masks: as the last steps ran them.
        curves: rows of training, each with its step.
        steps: optimizer steps.
        bench: to measure on: that of the training, or one with adapters that were trained beside.
        compared: False where attributions speak of another model, the one without these adapters.
    """

    scores: EdgeScores
    masks: Float[Tensor, "copies edge"]
    curves: Curves
    steps: int
    bench: Workbench
    compared: bool = True


SCHEDULE = Schedule(150, 0.3, start_sparsity=0.9, warmup=0.5, harden=0.5, final_noise=0.1, hard=0.3)
GATES = HardConcrete(temperature=0.4)
SCALE = 3.0  # log-alphas begin between minus and plus this number
Learn = Callable[[Workbench, Sequence[Baseline]], Trained | None]  # given the attributions, start first


@checks_arguments
def find_circuit(
    model: str | Path | PreTrainedModel | Subject,
    pairs: Pairs | PairsModule,
    sparsity: float = 0.95,
    *,
    tokenizer: Any = None,
    method: Method | None = None,
    ablation: Ablation | None = None,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
    objective: Objective = kl_divergence,
    error_weight: float | None = None,
    others: Sequence[Method] = (),
    bars: Bars | None = None,
    min_accuracy: float = 0.0,
    batch_size: int = 8,
    eval_batch_size: int = 16,
    seed: int = 0,
) -> FoundCircuit:
    """Train masks until a sparse circuit does what the model does, cut it, and evaluate it.

    Args:
        model: a subject, a live model, a folder, or a name of the Hugging Face hub.
        pairs: of your own (`Pairs.from_list`), of a task (`ioi(tokenizer, ...)`), or encoded already.
        sparsity: share of edges that the circuit lacks.
        tokenizer: of a live model.
        method: whose scores the masks start from; None takes mask gradients.
        ablation: what stands in for cut edges; None takes the corrupted prompts' values.
        schedule: of the training; None takes the default of 150 steps.
        gates: the masks' family; None takes hard concrete gates.
        objective: that masks are trained on, a function of `circuitlit.objective` or yours: each pair's loss, least
            where the circuit matches the model.
        error_weight: share of the loss that the model's errors have together; None weighs all pairs alike.
        others: more attributions, of other names; the best ranking on validation pairs is the baseline.
        bars: what the circuit is compared with, and has to clear.
        min_accuracy: share of right answers below which a model is not searched for the task.
        batch_size, eval_batch_size: pairs in a batch of training and of the evaluation; encoded pairs have their own.
        seed: of gate noise and of the pairs' order.

    Returns:
        The result, bound to its model: `result.live.circuit` are the edges; `result.plot()`, `result.logits(prompts)`,
        `result.generate(prompt)` and `result.measure(metric)` show what they do.

    Raises:
        UserError: a model, pairs or a setting that cannot be used.
    """
    bench = prepare_bench(model, pairs, sparsity, ablation, tokenizer, batch_size, eval_batch_size, seed)
    more = {"sparsity": sparsity, "objective": objective, "error_weight": error_weight, "seed": seed}
    learn = partial(train_masks, schedule=schedule, gates=gates, **more)
    method = method or Method.of(mask_gradients, steps=5, draws=1)
    with seeded(seed):
        found = search_circuit(bench, method, learn, others=others, bars=bars, min_accuracy=min_accuracy, seed=seed)
    assert found is not None
    return found


@checks_arguments
def attribute_circuit(
    model: str | Path | PreTrainedModel | Subject,
    pairs: Pairs | PairsModule,
    method: Method,
    sparsity: float | None = 0.95,
    *,
    tokenizer: Any = None,
    ablation: Ablation | None = None,
    bars: Bars | None = None,
    min_accuracy: float = 0.0,
    batch_size: int = 8,
    eval_batch_size: int = 16,
    seed: int = 0,
) -> FoundCircuit:
    """Score all edges by one attribution method, cut a circuit, and evaluate it; arguments as in `find_circuit`.

    Args:
        method: `Method.of(eap_ig, steps=5)`, say.
        sparsity: None keeps as many edges as the method itself does (ACDC).
    """
    bench = prepare_bench(model, pairs, sparsity, ablation, tokenizer, batch_size, eval_batch_size, seed)
    with seeded(seed):
        behaviour, reason = ask(bench, min_accuracy)
        if reason:
            return unable(bench, behaviour, reason, seed)
        result = measure_circuit(bench, bench.cut(bench.score(method)), bars=bars, seed=seed)
    return result.replaced(behaviour=behaviour.to_dict())


def prepare_bench(
    model: str | Path | PreTrainedModel | Subject,
    pairs: Pairs | PairsModule,
    sparsity: float | None = 0.95,
    ablation: Ablation | None = None,
    tokenizer: Any = None,
    batch_size: int = 8,
    eval_batch_size: int = 16,
    seed: int = 0,
) -> Workbench:
    """A workbench from what a notebook has at hand; arguments as in `find_circuit`."""
    from circuitlit.model.load import load_subject

    subject = model if isinstance(model, Subject) else load_subject(model, tokenizer)
    if isinstance(pairs, Pairs):
        if subject.tokenizer is None:
            raise UserError("the model has no tokenizer to read the pairs with; give tokenizer=")
        pairs = PairsModule(pairs, subject.tokenizer, batch_size, seed, eval_batch_size=eval_batch_size)
    return Workbench.build(subject, pairs, sparsity, ablation, seed=seed)


def search_circuit(
    bench: Workbench,
    method: Method,
    learn: Learn,
    *,
    others: Sequence[Method] = (),
    bars: Bars | None = None,
    min_accuracy: float = 0.0,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    show: Callable[[Workbench, TestBed, Sequence[Baseline]], None] | None = None,
) -> FoundCircuit | None:
    """As `find_circuit`, on a workbench, with a training of one's own.

    Args:
        bench: subject, pairs and masked model.
        method: whose scores the masks start from.
        learn: trains masks; None in a process that is done then.
        others: more attributions to compare with.
        bars: what the circuit is compared with, and has to clear.
        min_accuracy: share of right answers below which the model is not searched.
        seed: for the result.
        provenance: for the circuit's file.
        show: is given the workbench, validation pairs and what attribution finds on them, ahead of the training.

    Returns:
        None where `learn` gave none.
    """
    bars = bars or Bars()
    behaviour, reason = ask(bench, min_accuracy)
    if reason:
        return unable(bench, behaviour, reason, seed)
    with phase("attribution", f"Scoring {bench.layout.n_edges:,} edges by {method.name}"):
        begun = time.perf_counter()
        parts = BatchScores.of(bench, method)
        start = Baseline(bench.score(parts.method), time.perf_counter() - begun)
        tried = baselines(bench, start, [other for other in others if other.name != method.name])
    early = None if bench.model.shards is not None else first_look(bench, tried, bars.probe_pairs)
    if show is not None and early is not None and early[0] is not None:
        show(bench, early[0], early[1])
    trained = learn(bench, tried)
    if trained is None:
        return None
    known = early if trained.bench is bench else None  # of the model as it is now
    bench = trained.bench
    circuit = bench.cut(trained.scores, provenance)
    with phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"), products_at("highest"):
        bed, tried = known or ranked_by_validation(bench, tried if trained.compared else [], bars.probe_pairs)
        result = measure_circuit(bench, circuit, tried, bars=bars, seed=seed)
        gates = against_cut(trained.masks, circuit, bed)
        card = (result.trust or {}) | {row.name: row for row in parts.rows(bench, start.scores, seed)}
    result = result.replaced(trust=card, **gates, steps=trained.steps, behaviour=behaviour.to_dict())
    return result.bind(result.live.with_curves(trained.curves))


def first_look(bench: Workbench, tried: Sequence[Baseline], pairs: int) -> tuple[TestBed | None, list[Baseline]]:
    """What attribution alone finds, said ahead of the training, which takes longer than all before it."""
    with phase("first_look", "Measuring what attribution alone finds"):
        with products_at("highest"):
            bed, ranked = ranked_by_validation(bench, tried, pairs)
        for one in ranked if bed else ():
            label, kl = f"{one.scores.method}, {one.scores.ranking}", f"KL {one.val_kl:.3f} nats"
            say(f"{label}: {kl} on {len(bed.full.kl)} validation pairs with {bench.count:,} edges")  # type: ignore[union-attr]
        if bed:
            say(f"without any edge: KL {float(bed.corrupted.kl.mean()):.3f} nats; the full model has 0")
    return bed, ranked


def ranked_by_validation(
    bench: Workbench, tried: Sequence[Baseline], pairs: int
) -> tuple[TestBed | None, list[Baseline]]:
    """The first validation pairs, if there are any, and the attributions' rankings, the best one on them first."""
    bed = validation(bench, pairs)
    return bed, best_attribution(bench, tried, bed)


def ask(bench: Workbench, min_accuracy: float = 0.0, aloud: bool = True) -> tuple[Behaviour, str | None]:
    """How well the model does the task on the pairs to choose on, and why it is not to be searched, or None."""
    with phase("behaviour", "Checking that the model does the task") if aloud else nullcontext():
        pairs = bench.data.to_choose_on
        batches = pairs.batches(bench.data.eval_batch_size, order=pairs.by_length())
        found = Behaviour.measure(bench.subject, batches)
        if aloud:
            tell_front(bench)
    return found, found.verdict(min_accuracy)


def unable(bench: Workbench, behaviour: Behaviour, reason: str, seed: int) -> FoundCircuit:
    """A result without a circuit: the model does not do the task, which is a finding."""
    return FoundCircuit(
        status=FAILED,
        reason=reason,
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=None,
        ablation=bench.references.kind,
        seed=seed,
        n_edges_total=bench.layout.n_edges,
        behaviour=behaviour.to_dict(),
    )


def train_masks(
    bench: Workbench,
    tried: Sequence[Baseline],
    *,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
    sparsity: float | None = None,
    objective: Objective = kl_divergence,
    error_weight: float | None = None,
    seed: int = 0,
) -> Trained:
    """Train masks from the first attribution's scores on, with a quiet Trainer.

    Args:
        bench: subject, pairs and masked model.
        tried: attributions; the first one is the start.
        schedule: None takes that of the command line.
        gates: None takes those of the command line, hard concrete ones.
        sparsity: share of edges to be cut at the end; None takes the workbench's.
        objective: each pair's loss.
        error_weight: share of the loss that the model's errors have together; None weighs all pairs alike.
        seed: of gate noise.
    """
    schedule, gates = schedule or SCHEDULE, gates or GATES
    own = {"schedule": schedule, "gates": gates, "sparsity": sparsity, "seed": seed}
    own |= {"objective": objective, "error_weight": error_weight}
    with phase("training", f"Training masks for {schedule.steps} steps"):
        learner, curves = fitted_masks(bench, tried[0].scores, **own)
    return Trained(learner.scores(), learner.trained_masks(), curves, schedule.steps, bench)


def fitted_masks(
    bench: Workbench,
    start: EdgeScores | None,
    *,
    schedule: Schedule,
    gates: Gates,
    sparsity: float | None = None,
    objective: Objective = kl_divergence,
    error_weight: float | None = None,
    seed: int = 0,
) -> tuple[MaskLearner, Curves]:
    """A learner after its training, and the curves; arguments as of `train_masks`.

    Args:
        start: scores of whose best edges the masks begin sure. None begins with all masks alike, and open: with few
            gates open at random no path would be.
    """
    target = 1 - bench.count / bench.layout.n_edges if sparsity is None else sparsity
    how = "confident" if start is not None else "equal"
    schedule = schedule if start is not None else replace(schedule, start_sparsity=0.0)
    initial = initial_log_alpha(bench.layout, how, start, bench.count, SCALE)
    objective = for_errors(bench, objective, error_weight)
    with bench.training():
        learner = MaskLearner(bench.loss(objective), bench.references, initial, target, schedule, gates, seed, True)
        learner = learner.to(bench.subject.device)
        return learner, fit(learner, bench.data, steps=schedule.steps, names=("loss", "sparsity"))
