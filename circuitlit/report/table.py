"""The result of a run as rows: for the page, and as the short table that closes a run in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.evaluate.statistics import Estimate

# Key in result.json, heading, better direction.
COLUMNS = (
    ("kl", "KL (nats)", "lower is better"),
    ("faithfulness", "faithfulness", "1 is the full model"),
    ("accuracy", "accuracy", "higher is better"),
    ("exact_match", "exact match", "higher is better"),
)
PER_PAIR = (
    ("per_pair.distance", "pair distance", "0 is equal on every pair"),
    ("per_pair.correlation", "pair correlation", "1 is best"),
)
_SHORT = {
    "kl": "KL\n(nats)",
    "faithfulness": "faith-\nfulness",
    "accuracy": "accu-\nracy",
    "exact_match": "exact\nmatch",
    "prob_diff": "prob\ndiff",
    "logit_diff": "logit\ndiff",
    "log_prob": "log\nprob",
    "per_pair.distance": "pair\ndist.",
    "per_pair.correlation": "pair\ncorr.",
}
_METRICS = (
    ("prob_diff", "probability difference", "near the full model's is better"),
    ("logit_diff", "logit difference", "near the full model's is better"),
    ("log_prob", "log-probability", "near the full model's is better"),
)
_LABELS = {
    "circuit": "this circuit",
    "attribution": "attribution",
    "attribution_reachable": "same reachable",
    "corrupted": "corrupted run",
    "full": "full model",
    "new_words": "this circuit",
    "new_words.attribution": "attribution",
    "new_words.corrupted": "corrupted run",
    "new_words.full": "full model",
    "subset": "this circuit",
    "shuffled": "shuffled",
    "random": "random",
}
# Columns of terminal from which on a metric is printed with its interval.
_INTERVAL_FROM = {"kl": 90, "faithfulness": 112, "accuracy": 190, "exact_match": 190}


@dataclass(frozen=True)
class Metric:
    """A value with its two 95 % intervals; None where it was not measured or does not exist."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    low_sentences: float | None = None
    high_sentences: float | None = None

    @classmethod
    def of(cls, raw: object) -> Metric:
        """From an estimate, or the five keys of one; anything but finite numbers becomes None."""
        if isinstance(raw, Estimate):
            raw = raw.to_dict()
        if not isinstance(raw, dict):
            return cls()
        return cls(*(_finite(raw.get(field.name)) for field in fields(cls)))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval that a verdict goes by: new sentences where it exists, else these sentences."""
        for low, high in ((self.low_sentences, self.high_sentences), (self.low, self.high)):
            if self.value is not None and low is not None and high is not None:
                return low, high
        return None

    def text(self, form: str = "z.3f") -> str:
        """The value alone, "-" without one."""
        return "-" if self.value is None else format(self.value, form)

    def interval(self, form: str = "z.3f") -> str:
        """`[low, high]` for other pairs of these sentences, empty without both."""
        return "" if self.value is None else _brackets(self.low, self.high, form)

    def sentences(self, form: str = "z.3f") -> str:
        """`[low, high]` for new sentences, empty without both."""
        return _brackets(self.low_sentences, self.high_sentences, form)

    def __str__(self) -> str:
        return f"{self.text()} {self.interval()}".rstrip()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: `circuit`, or the entry of result.json.
        section: the pairs that it is measured on, as a heading.
        label: what the reader sees.
        note: what result.json calls it beyond that, empty where it says nothing.
        edges: edges asked for, "-" where unknown.
        reachable: reachable ones of them, empty where unknown.
        metrics: one per entry of `columns(result)`.
    """

    key: str
    section: str
    label: str
    note: str
    edges: str
    reachable: str
    metrics: tuple[Metric, ...]


def entry_of(result: dict, path: str) -> object:
    """What stands under a dotted name, None where nothing does."""
    found: object = result
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def columns(result: dict) -> tuple[tuple[str, str, str], ...]:
    """`COLUMNS`, the task's own metric (the first of `_METRICS` there is), and how well single pairs are reproduced."""
    own = next((c for c in _METRICS if Metric.of(result.get(c[0])).value is not None), _METRICS[1])
    return (*COLUMNS, own, *(PER_PAIR if "per_pair" in result else ()))


def result_rows(result: dict) -> list[Row]:
    """The circuit, then what it is compared with, as far as result.json has it; a missing metric becomes "-"."""
    rows = []
    for key in _LABELS:
        entry = result if key == "circuit" else entry_of(result, key)
        if not isinstance(entry, dict) or (key == "new_words" and "kl" not in entry):
            continue
        edges = {"new_words": result.get("n_edges")}.get(key, entry.get("n_edges"))
        edges = {"full": result.get("n_edges_total"), "corrupted": 0}.get(key, edges)
        metrics = tuple(Metric.of(entry_of(entry, name)) for name, _, _ in columns(result))
        note = str(entry.get("label") or "") if key != "circuit" else str(result.get("method") or "")
        reachable = count(entry.get("n_edges_reachable"), "")
        label = _label(key, entry)
        if key.endswith("corrupted") and result.get("ablation", "interchange") != "interchange":
            label = "all edges cut"  # which is no run on a prompt
        rows.append(Row(key, _section(key, entry, result), label, note, count(edges), reachable, metrics))
    return rows


def print_table(result: dict, console: Console) -> None:
    """Print the short closing table; in a narrow terminal the less important columns lose their intervals."""
    title = f"{result.get('task')} on {result.get('model')}: {percent(result.get('sparsity'))} of "
    title += f"{count(result.get('n_edges_total'))} edges removed, {count(result.get('n_pairs'))} held-out pairs"
    table = Table(title=Text(title, "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    with_interval = {name for name, _, _ in columns(result) if console.width >= _INTERVAL_FROM.get(name, 190)}
    table.add_column("circuit", overflow="fold")
    table.add_column("edges", justify="right", no_wrap=True)
    for name, heading, _ in columns(result):
        wide, short = name in with_interval, _SHORT[name]
        table.add_column(heading if wide else short, justify="left" if wide else "right", no_wrap=True)
    section = None
    for row in result_rows(result):
        if row.section != section:
            table.add_row(Text(row.section, "italic"))
            section = row.section
        cells = [
            str(metric) if name in with_interval else metric.text()
            for (name, _, _), metric in zip(columns(result), row.metrics, strict=True)
        ]
        style = "bold" if row.key == "circuit" else ""
        table.add_row(*(Text(cell) for cell in (row.label, row.edges, *cells)), style=style)
    console.print(table)
    for note in notes(result):
        console.print(Text(note))
    failed = result.get("status") != "OK"
    reason = result.get("reason")
    closing = f"{result.get('status')}: {reason}" if reason else str(result.get("status"))
    console.print(Text(closing, "bold red" if failed else "green"))


def notes(result: dict) -> list[str]:
    """What the numbers of the circuit's row speak for, in sentences."""
    said = []
    kl, found = Metric.of(result.get("kl")), result.get("sentences")
    if kl.interval() and isinstance(found, dict):
        beyond = f"{kl.sentences()} for new sentences" if kl.sentences() else str(found.get("reason"))
        said.append(
            f"KL {kl.text()}: 95 % interval {kl.interval()} for other pairs of these {found['n']} sentences; {beyond}."
        )
    new = result.get("new_words")
    if isinstance(new, dict) and Metric.of(new.get("kl")).value is not None:
        kl = Metric.of(new["kl"])
        beyond = f", {kl.sentences()} for new sentences" if kl.sentences() else ""
        said.append(f"With words that training never saw, KL {kl.text()} {kl.interval()}{beyond}.")
    said += _agreement_notes(result)
    said += _gates_note(result.get("gates"))
    said += _expert_notes(result.get("experts"))
    tried = result.get("attributions_tried") or []
    if tried:
        best = tried[0]
        chosen = f", best of {len(tried)} rankings on validation pairs" if len(tried) > 1 else ""
        said.append(f"Attribution: {best['label']}{chosen}; scored in {best['seconds']:.1f} s.")
    claims = [(kind, result[kind]) for kind in ("random", "shuffled") if "p_holm" in (result.get(kind) or {})]
    if claims:
        listed = ", ".join(f"{kind} ones: p = {row['p_holm']:.2g} ({row['n_circuits']} draws)" for kind, row in claims)
        corrected = f"; Holm's correction for {len(claims)} claims" if len(claims) > 1 else ""
        said.append(f"KL below that of {listed}{corrected}.")
    return said


def _agreement_notes(result: dict) -> list[str]:
    """How often the circuit says what the model says, where that is right and where it is wrong."""
    said = []
    for key, asked in (("candidates", "Between right and wrong candidates"), ("vocabulary", "Of all tokens")):
        row = entry_of(result, f"agreement.{key}")
        if not isinstance(row, dict) or not isinstance(row.get("right"), dict):
            continue
        missing = row.get("reason") and f"its wrong ones are {row['reason']}"
        wrong = missing or f"of its wrong ones ({row['n_wrong']} pairs) {_with_sentences(row.get('wrong'))}"
        if row.get("kappa"):
            wrong += f", Cohen's kappa of their errors {_with_sentences(row['kappa'])}"
        right = f"of the model's right answers ({row['n_right']} pairs) {_with_sentences(row['right'])}"
        said.append(f"{asked} the circuit says the same as the model: {right}; {wrong}.")
    return said


def _with_sentences(raw: object) -> str:
    """A value with its interval for other pairs, then for new sentences where there is one."""
    metric = Metric.of(raw)
    return f"{metric} {metric.sentences()}".rstrip()


def _expert_notes(experts: object) -> list[str]:
    """Which experts the kept edges out of each MLP come from, and how many edges its router keeps."""
    said = []
    for row in experts if isinstance(experts, list) else []:
        first = ", ".join(f"{name} {percent(share)}" for name, share in list(row["shares"].items())[:4])
        more = f" and {len(row['shares']) - 4} more" if len(row["shares"]) > 4 else ""
        said.append(f"{row['node']}: {row['edges']} edges out, {row['router_edges']} into its router; {first}{more}.")
    return said


def _gates_note(gates: object) -> list[str]:
    """How far the circuit is from the gates that the last steps trained."""
    if not isinstance(gates, dict) or "kl" not in gates:
        return []
    if not gates["n_between"] and not gates["n_differ"]:
        return ["The last steps of training ran this very circuit."]
    apart = Metric.of(gates["cut_minus_gates_kl"])
    return [
        f"The gates as trained: {gates['n_between']:,} between 0 and 1, {gates['n_differ']:,} on the other side of one "
        f"half than the circuit's edges; its KL minus theirs on {gates['n_pairs']} validation pairs: {apart}."
    ]


def count(value: object, absent: str = "-") -> str:
    """A whole number with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else absent


def percent(share: object) -> str:
    """A share as `95.0 %`, with as many digits as the sparsity needs not to read 100."""
    number = _finite(share)
    if number is None:
        return "-"
    digits = next((d for d in (1, 2, 3) if number == 1 or round(100 * number, d) < 100), 4)
    return f"{100 * number:.{digits}f} %"


def _section(key: str, entry: dict, result: dict) -> str:
    """Held-out sentences with known words, with new words, or the few pairs that controls share."""
    if key in ("subset", "shuffled", "random"):
        return f"controls, {count(entry.get('n_pairs'), count(result.get('n_pairs')))} pairs"
    words = "new" if key.startswith("new_words") else "known"
    pairs = entry_of(result, "new_words.n_pairs") if words == "new" else result.get("n_pairs")
    return f"{words} words, {count(pairs)} pairs"


def _label(key: str, entry: dict) -> str:
    label = _LABELS[key]
    return f"{label}, mean of {entry['n_circuits']}" if isinstance(entry.get("n_circuits"), int) else label


def _brackets(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
