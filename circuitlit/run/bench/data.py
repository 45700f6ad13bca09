"""What `bench` runs on beside a model with random weights: pairs of random tokens."""

from __future__ import annotations

import torch
from lightning import LightningDataModule
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import masked_model
from circuitlit.cli.ranks import planned
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.memory import StepShape
from circuitlit.graph import EdgeScores, MaskLayout
from circuitlit.graph.select import edge_budget
from circuitlit.masked import References, mean_writers
from circuitlit.model import Subject
from circuitlit.tasks import Pairs, PairsModule
from circuitlit.tasks.encoded import EncodedPairs, Row


def step_shape(
    cfg: DictConfig, tokens: int, answers: int, examples: int, packed_bits: float | None = None
) -> StepShape:
    """A training step as `data`, `mask`, `ablation` and `strategy` have it."""
    shard = cfg.strategy.get("shard") or {}
    return StepShape(
        cfg.data.batch_size,
        tokens,
        answers,
        examples,
        cfg.mask.panel,
        bool(shard) or cfg.mask.recompute,
        cfg.ablation.kind,
        cfg.mask.cache_gib,
        cfg.strategy.name,
        planned(cfg),
        shard.get("engine"),
        shard.get("offload", False),
        packed_bits,
    )


class RandomPairs(PairsModule):
    """Pairs of random tokens, all of one length.

    Args:
        vocab: tokens are drawn from 1 to vocab - 1.
        n_train, n_val: pairs.
        length: tokens of a prompt with all answer tokens but the last.
        answers: tokens of an answer.
        batch_size: pairs in a micro-batch.
        seed: of tokens and order.
    """

    def __init__(
        self, vocab: int, n_train: int, n_val: int, length: int, answers: int, batch_size: int, seed: int
    ) -> None:
        LightningDataModule.__init__(self)
        self.splits = Pairs("random", [], [], [])
        generator = torch.Generator().manual_seed(seed)

        def encoded(rows: int) -> EncodedPairs:
            def draw(*shape: int) -> list:
                return torch.randint(1, vocab, shape, generator=generator).tolist()

            columns = zip(draw(rows, length), draw(rows, length), draw(rows, answers), draw(rows), strict=True)
            made = [
                Row(tuple(clean), tuple(corrupted), tuple(answer), length - answers, 0, wrong, (0,) * length)
                for clean, corrupted, answer, wrong in columns
            ]
            return EncodedPairs(made, self.splits.role_names)

        self.train, self.val, self.test, self.new_words = (encoded(rows) for rows in (n_train, n_val, 0, 0))
        self.batch_size = self.eval_batch_size = batch_size
        self._seed, self._num_workers = seed, 0
        self.pads_to_longest, self._multiple = True, 1


def random_workbench(cfg: DictConfig, subject: Subject, n_train: int) -> Workbench:
    """Model, data and references as a training run has them."""
    if not 1 <= cfg.answers <= cfg.tokens:
        raise UserError(f"answers={cfg.answers} do not fit into tokens={cfg.tokens}")
    vocab, batch_size = subject.model.config.vocab_size, cfg.data.batch_size
    data = RandomPairs(vocab, n_train, cfg.callbacks.probe_pairs, cfg.tokens, cfg.answers, batch_size, cfg.seed)
    layout = MaskLayout(subject.graph, sites=cfg.mask.sites)
    model = masked_model(cfg, subject)
    means = None
    if cfg.ablation.kind in ("mean", "optimal"):  # trained constants cost a step no more than means
        batches = (batch.to(subject.device) for batch in data.train.batches(batch_size, cfg.tokens))
        means = mean_writers(subject, batches, cfg.ablation.positional)
    budget, capture = cfg.mask.cache_gib * 2**30, cfg.mask.capture and model.shards is None
    references = References(subject, cfg.ablation.kind, means, budget, capture, cfg.mask.host_gib * 2**30)
    references.fill(data.train.batches(batch_size, cfg.tokens), n_train)
    count = edge_budget(cfg.sparsity.target, layout.n_edges)
    return Workbench(subject, data, model, layout, references, count, capture=capture)


def random_scores(bench: Workbench, seed: int) -> EdgeScores:
    """Scores that a mask run can start from."""
    graph = bench.layout.graph
    values: Tensor = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(seed))
    return EdgeScores(graph, values, "random")
