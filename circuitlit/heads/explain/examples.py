"""Some pairs, and the likeliest tokens on them under the full model, the circuit and the corrupted run."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.graph import Circuit
from circuitlit.graph.layout import scatter_edges
from circuitlit.heads.explain.explanation import Example, Likely
from circuitlit.objective import best_candidates
from circuitlit.tasks.tokens import token_texts

LIKELIEST = 5


@torch.no_grad()
def show_examples(bench: Workbench, circuit: Circuit, rows: list[int]) -> list[Example]:
    """What is likeliest on some test pairs, where the right and the wrong answer first differ.

    Args:
        bench: subject, pairs and masked model.
        circuit: of the same model.
        rows: numbers of the test pairs.
    """
    if not rows:
        return []
    subject, test = bench.subject, bench.data.test
    batch = test.collate(rows).to(subject.device)
    reference = bench.fresh_references().compute(batch)
    kept = circuit.kept.to(subject.device, torch.float32)

    def run(edges: Tensor) -> Tensor:
        masks = scatter_edges(bench.subject.graph, edges)
        where = batch.positions, batch.roles
        return bench.model(masks, batch.clean, reference.ablated, *where, shared=reference.shared)

    sides = (reference.teacher, run(kept), run(torch.zeros_like(kept)))
    right, wrong, _ = best_candidates(reference.teacher, batch)
    first = torch.take_along_dim(batch.answer, batch.contrast[:, None], 1)[:, 0]
    right = torch.where(right < 0, first, right)
    made = []
    for row, pair in enumerate(rows):
        column = int(batch.contrast[row])
        end = int(batch.positions[row, column]) + 1
        clean, corrupted = (getattr(batch, side)[row, :end].tolist() for side in ("clean", "corrupted"))

        def said(token: int, before: list[int] = clean) -> str:
            return "" if token < 0 else token_texts(subject.tokenizer, [token], before[-1])[0]

        full, own, ablated = (_likeliest(logits[row, column], said) for logits in sides)
        made.append(
            Example(
                pair=pair,
                clean=token_texts(subject.tokenizer, clean),
                corrupted=token_texts(subject.tokenizer, corrupted),
                roles=[test.role_names[role] for role in batch.roles[row, :end].tolist()],
                answer=said(int(right[row])),
                wrong=said(int(wrong[row])),
                full=full,
                circuit=own,
                ablated=ablated,
            )
        )
    return made


def _likeliest(logits: Float[Tensor, "vocab"], said) -> list[Likely]:
    found = logits.float().softmax(-1).topk(min(LIKELIEST, logits.numel()))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [Likely(token=said(token), probability=float(value)) for token, value in pairs]
