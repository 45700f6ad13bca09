"""A subject, its task's pairs and the masked model, ready for any method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Method
from circuitlit.discover.optimal_ablation import optimal_writers
from circuitlit.discover.reader_gradients import Each
from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.layout import Sites
from circuitlit.graph.select import Select, edge_budget, top_k
from circuitlit.masked import Ablated, MaskedModel, References, mean_writers
from circuitlit.masked.ablation import KINDS, Kind
from circuitlit.model import Subject
from circuitlit.model.limits import check_rows
from circuitlit.objective import Objective, kl_divergence
from circuitlit.progress import told
from circuitlit.surroundings import matmul_precision, products_at
from circuitlit.tasks import PairsModule
from circuitlit.tasks.encoded import Row
from circuitlit.tasks.pair import Batch
from circuitlit.tasks.splits import SPLITS

LARGEST = 2 * 2**30  # bytes of all pairs' scores that are kept at once


@dataclass(frozen=True)
class Ablation:
    """What stands in for an edge that is cut.

    Attributes:
        kind: "interchange" (the corrupted prompt's), "zero", "mean" or "optimal" (constants that are trained).
        positional: of means: one for every position.
        objective: that optimal constants are trained on.
        steps, lr: of that training.

    Raises:
        UserError: no such kind, no step, or no rate.
    """

    kind: Kind = "interchange"
    positional: bool = False
    objective: Objective = kl_divergence
    steps: int = 100
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"ablation: kind={self.kind} is none of {', '.join(KINDS)}")
        if self.steps < 1 or not self.lr > 0:
            raise UserError(f"ablation: steps={self.steps} must be at least 1 and lr={self.lr} above 0")


@dataclass(frozen=True)
class Workbench:
    """A subject, its task's pairs and the masked model, ready for any method.

    Attributes:
        subject: the frozen model, on its device.
        data: encoded pairs and their loaders.
        model: the masked forward.
        layout: what the mask vector holds.
        references: teacher and ablated writers; the training split's are cached where they fit.
        count: edges that the circuit is to keep; 0 where the method says how many (sparsity=own).
        select: how a circuit is cut from scores.
        capture: True replays a captured step on a GPU.
        precision: of float32 matrix products while masks are trained: "highest", "high" (TF32) or "medium"; None leaves
            torch's setting.
        ablation: that `references` were made with.
        losses: those made so far by `loss`, with their captured CUDA graphs.
    """

    subject: Subject
    data: PairsModule
    model: MaskedModel = field(repr=False)
    layout: MaskLayout
    references: References = field(repr=False)
    count: int
    select: Select = "top_k"
    capture: bool = True
    precision: str | None = None
    ablation: Ablation = Ablation()
    losses: dict[tuple, MaskedLoss] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    @checks_arguments
    def build(
        cls,
        subject: Subject,
        data: PairsModule,
        sparsity: float | None = 0.95,
        ablation: Ablation | None = None,
        *,
        select: Select = "top_k",
        roles: bool = False,
        sites: Sites = "edges",
        model: MaskedModel | None = None,
        capture: bool = True,
        cache_gib: float = 4.0,
        host_gib: float = 0.0,
        precision: str | None = None,
        seed: int = 0,
    ) -> Workbench:
        """Prepare a model and a task's pairs.

        Args:
            subject: the frozen model.
            data: its task's pairs, encoded.
            sparsity: share of edges that the circuit is to lack; None leaves the number to the method.
            ablation: what stands in for cut edges; None takes the corrupted prompts' values.
            select: how a circuit is cut from scores.
            roles: True gives every token role masks of its own.
            sites: what masks sit on.
            model: the masked forward, if it is there already.
            capture: True captures training steps as CUDA graphs.
            cache_gib, host_gib: memory of the device, and of the host, for the training pairs' references.
            precision: of float32 matrix products while masks are trained; None leaves torch's setting.
            seed: of optimal ablation.

        Raises:
            UserError: no training or no test pairs.
        """
        for name in ("train", "test"):
            if not len(getattr(data, name)):
                raise UserError(f"task {data.splits.name} has no {name} pairs; give it some")
        for name in SPLITS:
            check_rows(subject.model.config, getattr(data, name).rows, name, getattr(data.splits, name))
        ablation, model = ablation or Ablation(), model or MaskedModel(subject)
        layout = MaskLayout(subject.graph, data.splits.role_names if roles else (), sites)
        capture = capture and model.shards is None
        constants = _constants(model, data, ablation, seed)
        references = References(subject, ablation.kind, constants, cache_gib * 2**30, capture, host_gib * 2**30)
        references.fill(data.train.batches(data.batch_size, max(data.train.lengths)), len(data.train))
        count = 0 if sparsity is None else edge_budget(sparsity, layout.n_edges)
        return cls(subject, data, model, layout, references, count, select, capture, precision, ablation)

    def training(self) -> AbstractContextManager[None]:
        """Compute at the precision of training while the block runs."""
        return products_at(self.precision)

    def loss(self, objective: Objective, layout: MaskLayout | None = None, capture: bool | None = None) -> MaskedLoss:
        """The objective under masks; the same one again for equal settings, so that a step is captured only once.

        A captured step keeps the matmul precision that it was captured with.

        Args:
            objective: per-example loss.
            layout: of the mask vector; None takes the workbench's.
            capture: None as the workbench says.
        """
        layout, capture = layout or self.layout, self.capture if capture is None else capture
        bound = isinstance(objective, partial)
        settings = (objective.func, str(objective.args), str(objective.keywords)) if bound else objective
        key = (settings, layout.roles, layout.sites, capture, matmul_precision())
        if key not in self.losses:
            self.losses[key] = MaskedLoss(self.model, layout, objective, capture)
        return self.losses[key]

    def release(self) -> None:
        """Let go of captured graphs and their memory, also where a learner still holds their loss."""
        for loss in self.losses.values():
            loss.release()
        self.references.release()

    @checks_arguments
    def score(
        self,
        method: Method,
        rows: Sequence[int] | None = None,
        each: Each | None = None,
        part: range | None = None,
    ) -> EdgeScores:
        """Scores of a method on the training pairs, or on some of them, in batches of similar length.

        Args:
            method: how edges are scored.
            rows: which training pairs; None takes all.
            each: is given each pair's own scores, by a method that has them.
            part: numbers of the batches that this process takes; None takes all.

        Raises:
            UserError: sharded weights, and a method that reads weights while they are not gathered.
        """
        if self.model.shards is not None and not method.traits.gathers:
            raise UserError(f"method={method.name} needs whole weights; use method=mask_gradients, or strategy=ddp")
        loss = self.loss(method.objective, MaskLayout(self.subject.graph, self.layout.roles))
        taken = self.batch_rows(method, rows)
        batches, count = self._batches(taken), len(taken)
        if method.traits.mean_of_pairs:  # others take all batches at once
            batches = told(batches, "batches", count)
        if part is None:
            return method.score(loss, self.references, batches, **({} if each is None else {"each": each}))
        own = (batch for number, batch in enumerate(batches) if number in part)
        more = {"numbers": part} if method.traits.numbers_batches else {}
        return method.score(loss, self.references, own, **more)

    def batch_rows(self, method: Method, rows: Sequence[int] | None = None) -> list[list[int]]:
        """The training pairs of each batch that `score` takes, of as many sentences as possible where it takes some."""
        train, size = self.data.train, self.data.batch_size
        taken = range(len(train)) if rows is None else rows
        most = None if method.max_batches is None else size * method.max_batches
        if most is not None and most < len(taken):  # the shortest ones would be of one or two sentences
            taken = [taken[place] for place in train.some(taken).spread(most)]
        order = sorted(taken, key=train.lengths.__getitem__)
        return [order[place : place + size] for place in range(0, len(order), size)]

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[Batch]:
        train = self.data.train
        pad = max(train.lengths) if self.data.pads_to_longest else None
        return train.batches(self.data.batch_size, pad, [row for batch in rows for row in batch])

    def cut(self, scores: EdgeScores, provenance: dict[str, object] | None = None) -> Circuit:
        """The circuit of the wanted size, as it is delivered."""
        return Circuit.cut(scores, self.count or own_size(scores), provenance, self.select)

    def best(self, scores: EdgeScores) -> Bool[Tensor, "copies edge"]:
        """The edges of `cut` alone, without asking which of them can be reached, which takes longer."""
        if self.select != "top_k" or not self.count or scores.limit is not None:
            return self.cut(scores).kept
        return top_k(scores.order, self.count)

    def fitted(self, circuit: Circuit) -> Workbench:
        """The same with masks for the token roles of a circuit, so that what it is compared with is of its kind.

        Raises:
            UserError: the task has other roles.
        """
        roles, known = circuit.scores.roles, self.data.splits.role_names
        if roles and roles != known:
            raise UserError(
                f"the circuit has masks for the token roles {', '.join(roles)}, task {self.data.splits.name} has "
                f"{', '.join(known)}; take a task with its roles"
            )
        return replace(self, layout=MaskLayout(circuit.graph, roles))

    def on(self, rows: Sequence[int]) -> Workbench:
        """The same with some training pairs alone, on which constants that stand in for cut edges are made, too."""
        bench, known = replace(self, data=self.data.with_train(rows)), self.references
        if known.mean is None:
            return bench
        positional = known.mean.embed.shape[-2] > 1
        return replace(bench, references=bench.ablated(replace(self.ablation, kind=known.kind, positional=positional)))

    def with_more(self, rows: Sequence[Row]) -> Workbench:
        """The same, with as many training pairs behind those there are, each a changed one of them."""
        data, known = self.data.with_more(rows), self.references.emptied()
        known.fill(data.train.batches(data.batch_size, max(data.train.lengths)), len(data.train))
        return replace(self, data=data, references=known)

    def fresh_references(self) -> References:
        """References without the training split's cache, for other splits."""
        known = self.references
        return References(self.subject, known.kind, known.mean)

    def ablated(self, ablation: Ablation, seed: int = 0) -> References:
        """References of another ablation, its constants made of the training pairs; what corrupted prompts give is not
        kept.
        """
        constants = _constants(self.model, self.data, ablation, seed)
        if ablation.kind == "interchange":
            return References(self.subject, ablation.kind)
        return self.references.with_constants(ablation.kind, constants)


def own_size(scores: EdgeScores) -> int:
    """Edges that the method itself keeps.

    Raises:
        UserError: it keeps none, or has no number of its own.
    """
    kept = scores.details.get("kept")
    if not isinstance(kept, int):
        raise UserError(f"{scores.method} ranks edges and has no number to keep of its own; give a sparsity")
    if kept == 0:
        raise UserError(f"{scores.method} kept no edge; lower method.score.threshold")
    return kept


class Resampler:
    """Scores of some training pairs, repeats included, at the cost of one pass where a method scores pair by pair.

    They are what `Workbench.score` has on the same pairs, but for rounding.

    Args:
        bench: subject, pairs and masked model.
        method: how edges are scored.

    Attributes:
        by_pair: True where all resamples cost one pass.
    """

    def __init__(self, bench: Workbench, method: Method) -> None:
        self._bench, self._method = bench, method
        train, layout = bench.data.train, bench.layout
        all_seen = method.max_batches is None or method.max_batches * bench.data.batch_size >= len(train)
        fits = 4 * len(train) * layout.copies * layout.graph.n_edges <= LARGEST
        self.by_pair = all_seen and fits and method.traits.gives_pairs
        self._made: tuple[EdgeScores, Float[Tensor, "pair copies edge"]] | None = None

    @property
    def scores(self) -> EdgeScores:
        """On all training pairs."""
        return self._pairs()[0] if self.by_pair else self._bench.score(self._method)

    def __call__(self, rows: Sequence[int]) -> EdgeScores:
        """On the pairs of these numbers."""
        if not self.by_pair:
            return self._bench.score(self._method, rows)
        scores, each = self._pairs()
        counts = torch.bincount(torch.tensor(rows), minlength=len(each)).to(each.dtype)
        values = (counts @ each.flatten(1)).view_as(scores.values) / len(rows)
        return replace(scores, values=values, details={**scores.details, "pairs": len(rows)})

    def _pairs(self) -> tuple[EdgeScores, Float[Tensor, "pair copies edge"]]:
        """Scores of all pairs together and of each alone."""
        if self._made is None:
            found: dict[int, Tensor] = {}
            train = self._bench.data.train

            def keep(index: Tensor, scores: Tensor) -> None:
                for pair, own in zip(index.tolist(), scores, strict=True):
                    found[pair] = own

            scores = self._bench.score(self._method, each=keep)
            self._made = scores, torch.stack([found[pair] for pair in train.numbers or range(len(train))])
        return self._made


def _constants(model: MaskedModel, data: PairsModule, ablation: Ablation, seed: int) -> Ablated | None:
    """What stands in for the writers where the ablation is by constants."""
    if ablation.kind not in ("mean", "optimal"):
        return None
    subject, pad = model.subject, max(data.train.lengths) if ablation.positional else None
    batches = [batch.to(subject.device) for batch in data.train.batches(data.batch_size, pad)]
    mean = mean_writers(subject, batches, ablation.positional)
    if ablation.kind == "mean":
        return mean
    start = References(subject, "mean", mean)
    return optimal_writers(model, start, ablation.objective, batches, ablation.steps, ablation.lr, seed)
