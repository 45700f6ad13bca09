"""Reads one circuit again and again in weights that somebody trains: behaviour, faithfulness, overlap, turnover, text.

A reading costs two stock forwards of some test pairs, a masked forward of each circuit on them, and one attribution of
as many training pairs; with EAP that is one more forward and backward.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from circuitlit.arguments import check_resamples
from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Ablation, Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Behaviour, Estimate, TestBed, paired_difference, summarise
from circuitlit.evaluate.similarity import Spread, noise_floor
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.trust.identity import identity_of
from circuitlit.files import save_tensors
from circuitlit.graph import Circuit, load_circuit
from circuitlit.heads import heads_in_circuit
from circuitlit.heads.roles import head_name, heads_of
from circuitlit.heads.text import read_passages, sample_passages
from circuitlit.model import Subject
from circuitlit.model.limits import longest_prompt
from circuitlit.objective import Outcome, negative_metric
from circuitlit.store import fingerprint
from circuitlit.tasks import Pairs, PairsModule
from circuitlit.tasks.splits import SPLITS
from circuitlit.timeline.cells import MeasuredCircuit, TaskAtCheckpoint
from circuitlit.timeline.drift import alarms_of, limits_at_start
from circuitlit.timeline.series import Alike, Noise
from circuitlit.timeline.summary import cell_name
from circuitlit.timeline.watched import Limits, Reading

START, TEXT = "start", "text_at_start.safetensors"
NONE_GIVEN = Limits()
EAP = Method.of(eap, negative_metric)


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """What is watched, and how.

    Attributes:
        sparsity: of circuits; a circuit that is given has its own size, which all others get, too.
        method: by which circuits are found anew; EAP is one stock forward and backward, EAP-IG one a step.
        ablation: what stands in for cut edges; None takes the corrupted prompts' values.
        pairs: training pairs that circuits are found on, and test pairs that they are measured on, at most.
        batch_size: pairs that run together.
        resamples: of the training pairs at the start, for the overlap's limit and the noise floor; 0 makes none.
        passages, length: of other text, and its tokens; 0 passages leave the collateral KL out.
        text: a file of it; None lets the model write it at the start.
        limits: of figures where you want others than those of the null at the start.
        without: figures that sound no alarm.
        seed: of resamples and text.
    """

    sparsity: float = 0.95
    method: Method = EAP
    ablation: Ablation | None = None
    pairs: int = 32
    batch_size: int = 16
    resamples: int = 10
    passages: int = 8
    length: int = 24
    text: str | Path | None = None
    limits: Limits = NONE_GIVEN
    without: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what would watch something else than it says.

        Raises:
            UserError: a single resample, a figure that is none, or no passages of a text that is to be watched.
        """
        check_resamples(self.resamples)
        if not self.passages and (self.text is not None or self.limits.text_kl is not None):
            raise UserError(
                "passages=0 leaves other text out; leave text and limits.text_kl out, too, or take passages"
            )
        unknown, figures = next(iter({*self.without} - {*vars(NONE_GIVEN)}), None), ", ".join(vars(NONE_GIVEN))
        if unknown is not None:
            raise UserError(f"without: '{unknown}' is no figure; choose from {figures}")


def watched_with(pairs: Pairs, settings: WatchSettings, circuit: Circuit | str | Path | None) -> dict[str, str]:
    """All that earlier readings depend on, as short hashes; not limits, which further readings may have others of."""
    by = settings.ablation
    parts = {
        "pairs": [repr(getattr(pairs, split)) for split in SPLITS],
        "circuit": identity_of(circuit),
        "method": identity_of(settings.method),
        "ablation": None if by is None else [by.kind, by.positional, by.steps, by.lr, identity_of(by.objective)],
    }
    names = ("sparsity", "pairs", "resamples", "passages", "length", "text", "seed")
    parts["settings"] = {name: getattr(settings, name) for name in names}
    return {name: fingerprint(value) for name, value in parts.items()}


@dataclass
class Watcher:
    """Reads a circuit in a model that changes.

    Attributes:
        name: of the training run.
        model: name of the model, known from the first reading on.
        pairs: of the task.
        settings: what is watched.
        folder: gets every circuit that is found, and what is needed to go on.
        given: a circuit to watch, or its file; None watches the one that is found at the first reading.
        limits: of the figures; those given until the first reading.
        anew: True takes away the circuits of an earlier training, once the first reading has found no mistake.
    """

    name: str
    pairs: Pairs
    settings: WatchSettings
    folder: Path
    given: Circuit | str | Path | None = None
    limits: Limits = field(default_factory=Limits)
    anew: bool = False
    model: str = ""
    _first: Circuit | None = None  # found at the first reading
    _start: Circuit | None = None  # the circuit that is watched: the one given, or the first
    _before: Circuit | None = None
    _data: PairsModule | None = None
    _text: tuple[Int[Tensor, "passage pos"], Float[Tensor, "passage pos vocab"]] | None = None

    @property
    def task(self) -> str:
        """The task's name."""
        return self.pairs.name

    @property
    def start(self) -> Circuit:
        """The circuit that is watched."""
        assert self._start is not None
        return self._start

    @property
    def n_pairs(self) -> tuple[int, int]:
        """Training and test pairs that are used."""
        assert self._data is not None
        return len(self._data.train), min(self.settings.pairs, len(self._data.test))

    def go_on(self, readings: Sequence[Reading], limits: Limits) -> None:
        """Take up what earlier readings left in the folder."""
        self._first, self._before = (self._found(readings[place].step) for place in (0, -1))
        self._start, self.limits = Circuit.load(self.folder / START), limits
        if (self.folder / TEXT).is_file():
            kept = load_file(self.folder / TEXT)
            self._text = kept["ids"], kept["log_probabilities"]

    def read(self, subject: Subject, step: int) -> Reading:
        """Measure the circuit in the weights as they are.

        Raises:
            UserError: pairs that the model cannot read, or a given circuit of another graph.
        """
        begun, own = time.perf_counter(), self.settings
        bench = self._bench(subject)
        bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(own.pairs))
        first = self._first is None
        resampler = Resampler(bench, own.method) if first and own.resamples > 1 else None
        circuit = bench.cut(bench.score(own.method) if resampler is None else resampler.scores)
        spread, noise = _null(bench, resampler, own)
        self.model = subject.name
        if first:
            self._begin(subject, circuit)
        assert self._first is not None
        outcome = bed.run(self.start.kept)
        if first:
            self.limits = limits_at_start(spread, outcome, bed.full, bed.corrupted, own.limits)
        at = self.folder / "circuits" / cell_name(self.name, self.task, step)
        circuit.save(at)
        same = bool((circuit.kept == self.start.kept).all())
        reading = Reading(
            step=step,
            cell=_cell(bench, bed, circuit, outcome if same else bed.run(circuit.kept), noise),
            start=_measured(bed, self.start, outcome),
            alike_start=Alike.of(circuit, self._first),
            alike_given=None if self.given is None else Alike.of(circuit, self.start),
            alike_previous=None if self._before is None else Alike.of(circuit, self._before),
            text_kl=self._collateral(subject),
        )
        self._before = circuit
        alarms = [] if first else alarms_of(reading, self.limits, own.without)
        return replace(reading, alarms=alarms, seconds=time.perf_counter() - begun)

    def _found(self, step: int) -> Circuit:
        return Circuit.load(self.folder / "circuits" / cell_name(self.name, self.task, step))

    def _bench(self, subject: Subject) -> Workbench:
        own = self.settings
        if self._data is None:
            if subject.tokenizer is None:
                raise UserError("the pairs cannot be read without a tokenizer; give tokenizer=")
            data = PairsModule(self.pairs, subject.tokenizer, own.batch_size, own.seed, eval_batch_size=own.batch_size)
            self._data = data.with_train(data.train.spread(own.pairs))
        bench = Workbench.build(subject, self._data, own.sparsity, own.ablation, capture=False, cache_gib=0.0)
        if self.given is not None and self._start is None:
            known = self.given if isinstance(self.given, Circuit) else load_circuit(self.given, subject.graph)
            if known.graph != subject.graph:
                raise UserError("the circuit is of another model than the one that is trained; find one in this model")
            if known.scores.roles:
                raise UserError(
                    "the circuit has masks for token roles, which a watch does not follow; give one without"
                )
            self._start = known if known.n_edges else bench.cut(known.scores)
        return bench if self._start is None else replace(bench, count=self.start.n_edges)

    def _begin(self, subject: Subject, found: Circuit) -> None:
        """Keep what everything later is compared with."""
        self._first = found
        self._start = self._start or found
        own = self.settings
        if own.passages:
            length = int(min(own.length, longest_prompt(subject.model.config)[0]))
            if own.text is None:
                ids = sample_passages(subject, own.passages, length, own.seed)
            else:
                ids = read_passages(Path(own.text), subject, own.passages, length)
            if len(ids) < 2:
                raise UserError("the collateral KL needs at least two passages; give more text, or passages=0")
            self._text = ids.cpu(), _log_probabilities(subject, ids)
        if self.anew:
            for old in ("circuits", START):
                shutil.rmtree(self.folder / old, ignore_errors=True)
        self.start.save(self.folder / START)
        if self._text is not None:
            save_tensors(self.folder / TEXT, {"ids": self._text[0], "log_probabilities": self._text[1]})

    def _collateral(self, subject: Subject) -> Estimate | None:
        """KL(start || now) on other text; the start's log-probabilities wait on the CPU, in float32."""
        if self._text is None:
            return None
        ids, own = self._text
        now = _log_probabilities(subject, ids)
        return mean_estimate((own.exp() * (own - now)).sum(-1).mean(1), None)


@torch.no_grad()
def _log_probabilities(subject: Subject, ids: Int[Tensor, "passage pos"]) -> Float[Tensor, "passage pos vocab"]:
    hidden = subject.hidden(ids.to(subject.device))
    return torch.stack([subject.unembed(one).float().log_softmax(-1).cpu() for one in hidden])  # one at a time: memory


def _null(bench: Workbench, resampler: Resampler | None, own: WatchSettings) -> tuple[Spread | None, Noise | None]:
    """How alike circuits of one model are when only the pairs change."""
    if resampler is None:
        return None, None
    spread, circuits = noise_floor(resampler, bench.cut, len(bench.data.train), own.resamples, own.seed)
    return spread, Noise.of(spread, circuits)


def _measured(bed: TestBed, circuit: Circuit, outcome: Outcome) -> MeasuredCircuit:
    return MeasuredCircuit(
        n_edges=circuit.n_edges,
        n_edges_reachable=circuit.n_reachable,
        n_nodes=len(circuit.nodes()),
        heads=[head_name(head) for head in heads_of(heads_in_circuit(circuit))],
        **vars(summarise([outcome], bed.full, bed.corrupted)),
    )


def _cell(bench: Workbench, bed: TestBed, circuit: Circuit, outcome: Outcome, noise: Noise | None) -> TaskAtCheckpoint:
    """What `follow_checkpoints` keeps of a checkpoint, without a search for the smallest circuit."""
    full, other = bed.full, bed.corrupted
    gap = paired_difference(full.metric, other.metric, full.group)
    fails = gap.bounds is None or gap.bounds[0] <= 0
    reason = f"clean prompts are not clearly better than corrupted ones ({gap}), so no circuit explains anything"
    behaviour = Behaviour(
        n_pairs=len(full.kl),
        accuracy=mean_estimate(full.accuracy, full.group),
        metric=mean_estimate(full.metric, full.group),
        corrupted_accuracy=mean_estimate(other.accuracy, full.group),
        corrupted_metric=mean_estimate(other.metric, full.group),
        corrupted_kl=mean_estimate(other.kl, full.group),
    )
    return TaskAtCheckpoint(
        status="FAILED" if fails else "UNSEARCHED",
        reason=reason if fails else None,
        n_edges_total=bench.layout.n_edges,
        n_nodes_total=bench.subject.graph.n_writers,
        method=circuit.scores.method,
        behaviour=behaviour,
        circuit=_measured(bed, circuit, outcome),
        smallest=None,
        smallest_raw=None,
        noise=noise,
    )
