"""A circuit bound to its model: its edges, and its logits on prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.graph import Circuit
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import ablated_run
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.encoded import Row as EncodedRow
from circuitlit.tasks.pair import Batch
from circuitlit.tasks.splits import END, OTHER
from circuitlit.tasks.tokens import front_tokens


@dataclass(frozen=True)
class Live:
    """A circuit, what it was found on, and the curves of its training.

    Attributes:
        circuit: its edges.
        bench: model, pairs and what stands in for cut edges.
        curves: rows of training, each with its step.
    """

    circuit: Circuit
    bench: Workbench
    curves: list[dict[str, float]] = field(default_factory=list)

    def with_curves(self, curves: list[dict[str, float]]) -> Live:
        """The same with the curves of its training."""
        return replace(self, curves=curves)

    def save(self, folder: Path, target: float | None = None) -> None:
        """Write `circuit.json`, `circuit.safetensors` and `history.json`, as a run's page reads them.

        Args:
            folder: which is made.
            target: sparsity that the training asked for.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.circuit.save(folder)
        asked = {} if target is None else {"target_sparsity": target}
        write_json(folder / "history.json", {"rows": self.curves, **asked})

    @torch.no_grad()
    def logits(self, prompts: Sequence[str], corrupted: Sequence[str] | None = None) -> Float[Tensor, "prompt vocab"]:
        """Logits of the next token under the circuit.

        Args:
            prompts: as in the pairs' `clean`.
            corrupted: a prompt of as many tokens for each, whose values cut edges carry; not needed where they carry
                zeros or constants.

        Raises:
            UserError: corrupted prompts that are missing or do not fit, or masks by token role.
        """
        subject, known = self.bench.subject, self.bench.references
        if self.circuit.scores.roles:
            raise UserError("a circuit with masks by token role knows no roles of other prompts")
        if known.kind == "interchange" and corrupted is None:
            raise UserError("cut edges carry the corrupted prompt's values; give corrupted prompts of as many tokens")
        batch = self._batch(prompts, corrupted or prompts).to(subject.device)
        ablated = ablated_run(subject, batch, known.kind, known.mean)
        masks = scatter_edges(self.circuit.graph, self.circuit.kept.to(subject.device, torch.float32))
        return self.bench.model(masks, batch.clean, ablated, batch.positions[:, :1])[:, 0]

    def _batch(self, clean: Sequence[str], corrupted: Sequence[str]) -> Batch:
        """The prompts, padded on the right; answers do not matter."""
        tokenizer = self.bench.subject.tokenizer
        if tokenizer is None:
            raise UserError("the model has no tokenizer to read prompts with; load it with one")
        front = front_tokens(tokenizer)
        rows, others = (
            [[*front, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]  # type: ignore[misc]
            for texts in (clean, corrupted)
        )
        for number, (row, other) in enumerate(zip(rows, others, strict=True)):
            if len(row) != len(other):
                raise UserError(f"prompt {number} has {len(row)} tokens, its corrupted one {len(other)}; match them")
        made = [
            EncodedRow(tuple(row), tuple(other), (row[-1],), len(row) - 1, 0, -1, (0,) * len(row))
            for row, other in zip(rows, others, strict=True)
        ]
        return EncodedPairs(made, (OTHER, END)).collate(range(len(made)))
