"""The time that a method takes to score all edges."""

from __future__ import annotations

from statistics import median

from circuitlit.arguments import checks_arguments
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.benchmark import AttributionTime, AttributionTimes, dtype_of, machine_of, said
from circuitlit.evaluate.cost.timer import now
from circuitlit.evaluate.cost.training import stock_step


@checks_arguments
def time_attribution(bench: Workbench, method: Method, batches: int | None = None) -> AttributionTimes:
    """Seconds in which a method scores all edges on one batch, beside a stock forward and backward.

    Args:
        bench: subject, pairs and masked model.
        method: how edges are scored.
        batches: of the training pairs; None takes all.

    Raises:
        UserError: `batches` is below 1.
    """
    if batches is not None and batches < 1:
        raise UserError(f"batches={batches} leaves nothing to time; give at least 1, or None for all")
    subject, size, train = bench.subject, bench.data.batch_size, bench.data.train
    rows = range(len(train))[: None if batches is None else size * batches]
    taken = [batch.to(subject.device) for batch in train.batches(size, order=rows)]
    loss, fresh, ours, stock = bench.loss(method.objective), bench.fresh_references(), [], []
    for number, batch in enumerate([taken[0], *taken]):
        begun = now()
        stock_step(subject, batch)
        middle = now()
        method.score(loss, fresh, [batch])
        if number:  # the first one warms up
            stock.append(middle - begun)
            ours.append(now() - middle)
    found = AttributionTime(
        method=method.name,
        dtype=dtype_of(subject),
        edges=subject.graph.n_edges,
        batches=len(taken),
        batch_seconds=median(ours),
        stock=median(stock),
        to_stock=median(ours) / median(stock),
    )
    what = said(subject, len(taken[0]), taken[0].clean.shape[1])
    return AttributionTimes(bench="eap", what=what, machine=machine_of(subject.device), measured=[found])
