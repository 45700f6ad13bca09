"""A circuit bound to its model: its edges, and what it says on prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.files import write_json
from circuitlit.graph import Circuit
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import ablated_run
from circuitlit.objective import Objective, each_pair
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.encoded import Row as EncodedRow
from circuitlit.tasks.splits import END, OTHER, SPLITS
from circuitlit.tasks.tokens import front_tokens, tokenise

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


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
    curves: list[dict[str, float]] = field(default_factory=list, repr=False)

    def with_curves(self, curves: list[dict[str, float]]) -> Live:
        """The same with the curves of its training."""
        return replace(self, curves=curves)

    def save(self, folder: Path | str, target: float | None = None) -> None:
        """Write `circuit.json`, `circuit.safetensors` and `history.json`, as a run's page reads them.

        Args:
            folder: which is made.
            target: sparsity that the training asked for.
        """
        self.circuit.save(folder)
        asked = {} if target is None else {"target_sparsity": target}
        write_json(Path(folder) / "history.json", {"rows": self.curves, **asked})

    @torch.no_grad()
    def logits(
        self, clean: str | Sequence[str], corrupted: str | Sequence[str] | None = None
    ) -> Float[Tensor, "prompt vocab"]:
        """Logits of the next token under the circuit.

        Args:
            clean: prompts, or one.
            corrupted: a prompt of as many tokens for each, whose values cut edges carry. None takes those of the task's
                pairs with these clean prompts; where cut edges carry zeros or constants, none are needed.

        Raises:
            UserError: corrupted prompts that are missing or do not fit, or masks by token role.
        """
        rows, others = self._tokens(clean, corrupted)
        size = self.bench.data.eval_batch_size
        parts = [self._next(rows[at : at + size], others[at : at + size]) for at in range(0, len(rows), size)]
        return torch.cat(parts)

    @torch.no_grad()
    def generate(self, prompt: str, corrupted: str | None = None, max_new_tokens: int = 8) -> str:
        """What the circuit goes on with, the likeliest token each time, up to the model's token for an end.

        What it has said is appended to the corrupted prompt, too, as it is with answers of several tokens.

        Args:
            prompt, corrupted: as in `logits`.
            max_new_tokens: most tokens.
        """
        (row,), (other,) = self._tokens(prompt, corrupted)
        end = getattr(self.bench.subject.model.generation_config, "eos_token_id", None)
        ends = end if isinstance(end, list) else [end]
        said: list[int] = []
        while len(said) < max_new_tokens and not (said and said[-1] in ends):
            said.append(int(self._next([row + said], [other + said])[0].argmax()))
        # both are decoded with the prompt: some tokenizers drop the space in front of a text's first token
        before, whole = (self._tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, row + said))
        return str(whole)[len(before) :]

    def measure(self, metric: Objective, split: str = "test") -> pd.DataFrame:
        """A metric of your own on held-out pairs: its mean with both intervals, of circuit, full model and no edge.

        Args:
            metric: `metric(logits, teacher, batch)` gives each pair's number, as the functions of
                `circuitlit.objective` do; here it need not be least where the circuit matches the model.
            split: "test", "val", "new_words" or "train".
        """
        import pandas as pd

        pairs, kept = getattr(self.bench.data, split, None), self.circuit.kept
        if not isinstance(pairs, EncodedPairs) or not len(pairs):
            raise UserError(f"task {self.bench.data.splits.name} has no {split} pairs; give it some")
        bed = TestBed.of(self.bench, pairs, pairs.spread())
        rows = {"circuit": kept, "full": torch.ones_like(kept), "corrupted": torch.zeros_like(kept)}
        found = {name: [each_pair(metric, *run).cpu() for run in bed.logits(edges)] for name, edges in rows.items()}
        estimates = {name: mean_estimate(torch.cat(own), bed.full.group).to_dict() for name, own in found.items()}
        return pd.DataFrame.from_dict(estimates, orient="index")

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = self.bench.subject.tokenizer
        if tokenizer is None:
            raise UserError("the model has no tokenizer to read prompts with; load it with one")
        return tokenizer

    def _tokens(
        self, clean: str | Sequence[str], corrupted: str | Sequence[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of the prompts, and of those whose values cut edges carry."""
        texts = [clean] if isinstance(clean, str) else list(clean)
        if not texts:
            raise UserError("there is no prompt; give at least one")
        if self.circuit.scores.roles:
            raise UserError("a circuit with masks by token role knows no roles of other prompts")
        twins = [corrupted] if isinstance(corrupted, str) else corrupted
        if self.bench.references.kind != "interchange":
            twins = texts
        elif twins is None:
            twins = [self._corrupted_of(text) for text in texts]
        if len(twins) != len(texts):
            raise UserError(f"{len(texts)} prompts and {len(twins)} corrupted ones; give one for each")
        front = front_tokens(self._tokenizer)
        rows, others = (tokenise(some, self._tokenizer, front) for some in (texts, twins))
        for number, (row, other) in enumerate(zip(rows, others, strict=True)):
            if not row:
                raise UserError(f"prompt {number} is empty; write one")
            if len(row) != len(other):
                raise UserError(f"prompt {number} has {len(row)} tokens, its corrupted one {len(other)}; match them")
        return rows, others

    def _corrupted_of(self, text: str) -> str:
        splits = self.bench.data.splits
        known = (pair for split in SPLITS for pair in getattr(splits, split) if pair.clean == text)
        twin = next((pair.corrupted for pair in known), None)
        if twin is None:
            raise UserError(
                f"cut edges carry the corrupted prompt's values, and no pair has the prompt {text!r}; give corrupted "
                "prompts of as many tokens"
            )
        return twin

    def _next(self, rows: Sequence[list[int]], others: Sequence[list[int]]) -> Float[Tensor, "prompt vocab"]:
        """Logits behind each prompt, padded on the right; answers do not matter."""
        made = [
            EncodedRow(tuple(row), tuple(other), (row[-1],), len(row) - 1, 0, -1, (0,) * len(row))
            for row, other in zip(rows, others, strict=True)
        ]
        subject, known = self.bench.subject, self.bench.references
        batch = EncodedPairs(made, (OTHER, END)).collate(range(len(made))).to(subject.device)
        ablated = ablated_run(subject, batch, known.kind, known.mean)
        masks = scatter_edges(self.circuit.graph, self.circuit.kept.to(subject.device, torch.float32))
        return self.bench.model(masks, batch.clean, ablated, batch.positions[:, :1])[:, 0]
