"""Speed and memory: `python -m circuitlit bench`, of steps, whole runs, scaling and attribution."""

from __future__ import annotations

import platform
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig
from rich.table import Table

from circuitlit.cli import ranks
from circuitlit.cli.build import PACKAGES, device_of, version
from circuitlit.cli.checks import run_dir
from circuitlit.discover import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE
from circuitlit.run.bench.data import random_subject, random_workbench
from circuitlit.run.bench.plan import summary
from circuitlit.run.bench.step import stock_step, time_step
from circuitlit.run.bench.timer import now
from circuitlit.run.bench.whole import whole_run


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure what `bench` names, print a table and write bench.json.

    Raises:
        UserError: a setting out of range, or a model without architecture numbers.
    """
    kinds: dict[str, Callable[[DictConfig], list[dict[str, Any]]]] = {
        "step": steps,
        "run": whole_run,
        "scaling": scaling,
        "eap": attribution,
    }
    if cfg.bench not in kinds:
        raise UserError(f"bench={cfg.bench} is not one of {', '.join(kinds)}")
    if cfg.repeats < 2 or cfg.warmup < 0:
        raise UserError(f"repeats={cfg.repeats} and warmup={cfg.warmup}: at least 2 and 0 are needed")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    if cfg.plan:
        rows = [summary(cfg)]
        _print(f"Memory of one step: {cfg.model.name}", [_plan_row(rows[0])], upright=True)
    else:
        rows = kinds[cfg.bench](cfg)
    result = {"bench": "plan" if cfg.plan else cfg.bench, "machine": machine(cfg), "rows": rows}
    if ranks.is_writer():
        write_json(run_dir() / "bench.json", result)
    ranks.leave()
    CONSOLE.print(f"{run_dir() / 'bench.json'}", highlight=False, soft_wrap=True)
    return result


def machine(cfg: DictConfig) -> dict[str, Any]:
    """Device and versions."""
    device = device_of(cfg)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def steps(cfg: DictConfig) -> list[dict[str, Any]]:
    """One training step at each of `dtypes`."""
    rows = [time_step(cfg, dtype) for dtype in cfg.dtypes]
    _print(f"One step of {_title(cfg)}", [_step_row(row) for row in rows], upright=True)
    return rows


def scaling(cfg: DictConfig) -> list[dict[str, Any]]:
    """Steps at a quarter, half and all of the layers, half and double the tokens, and 200 to 100,000 examples.

    References are computed in every step, so that the number of examples is all that changes.
    """
    cfg.mask.cache_gib = 0
    depth = "n_layer" if "n_layer" in cfg.model.architecture else "num_hidden_layers"
    layers = cfg.model.architecture[depth]
    changes: list[dict[str, Any]] = [{depth: max(1, layers // part)} for part in (4, 2)]
    changes += [{"tokens": max(1, cfg.tokens // 2)}, {}, {"tokens": 2 * cfg.tokens}]
    changes += [{"examples": number} for number in (200, 10_000, 100_000)]
    rows = []
    for change in changes:
        given = cfg.copy()
        for name, value in change.items():
            (given.model.architecture if name == depth else given)[name] = value
        row = time_step(given, cfg.dtypes[0])
        rows.append(row | {"layers": given.model.architecture[depth], "examples": given.examples})
    names = ("layers", "edges", "tokens", "examples", "step", "to_stock", "peak_gib")
    _print(f"Scaling of {_title(cfg)}", [{name: _figure(row[name]) for name in names} for row in rows])
    return rows


def attribution(cfg: DictConfig) -> list[dict[str, Any]]:
    """Scores of all edges by `method` on random batches, beside as many stock forwards and backwards."""
    rows = []
    for dtype in cfg.dtypes:
        subject = random_subject(cfg, dtype)
        bench = random_workbench(cfg, subject, cfg.examples or cfg.repeats * cfg.data.batch_size)
        loss = MaskedLoss(bench.model, bench.layout, instantiate(cfg.method.objective), cfg.mask.capture)
        score = instantiate(cfg.method.score)
        batches = [b.to(subject.device) for b in bench.data.train.batches(cfg.data.batch_size, cfg.tokens)]
        fresh, ours, stock = bench.fresh_references(), [], []
        for number, batch in enumerate([batches[0], *batches]):
            begun = now()
            stock_step(subject, batch)
            middle = now()
            score(loss, fresh, [batch])
            if number:  # the first one warms up
                stock.append(middle - begun)
                ours.append(now() - middle)
        row = {"method": cfg.method.name, "dtype": dtype, "edges": subject.graph.n_edges, "batches": len(batches)}
        row |= {"batch_seconds": median(ours), "stock": median(stock), "to_stock": median(ours) / median(stock)}
        rows.append(row)
    _print(f"Scores of all edges of {_title(cfg)}", [{k: _figure(v) for k, v in row.items()} for row in rows])
    return rows


def _title(cfg: DictConfig) -> str:
    micro = cfg.trainer.accumulate_grad_batches
    times = f"{micro} micro-batches of " if micro > 1 else ""
    return f"{cfg.model.name}, {times}{cfg.data.batch_size} x {cfg.tokens} tokens, random weights"


def _step_row(row: dict[str, Any]) -> dict[str, str]:
    shown = {
        "dtype": row["dtype"],
        "edges": f"{row['edges']:,}",
        "step": f"{row['step'] * 1e3:.1f} ms ({row['low'] * 1e3:.1f} to {row['high'] * 1e3:.1f})",
        "stock forward and backward": f"{row['stock'] * 1e3:.1f} ms" if row["stock"] else "-",
        "step / stock": f"{row['to_stock']:.2f}" if row["stock"] else "-",
        "mixing's traffic": f"{row['traffic_bytes'] / 1e9:.2f} GB",
        "step / time of that traffic": f"{row['to_traffic']:.1f}",
        "peak memory": ", ".join(f"{peak:.2f}" for peak in row["peaks_gib"]) + " GiB",
        "planned": f"{row['planned_gib']:.2f} GiB",
        "references": "cached" if row["cached"] else "computed in the step",
    }
    return shown | {f"  {name}": f"{seconds * 1e3:.1f} ms" for name, seconds in row["phases"].items()}


def _plan_row(row: dict[str, Any]) -> dict[str, str]:
    shown = {name: f"{size:.2f} GiB" for name, size in row["gib"].items()}
    size = f"{row['batch']} x {row['tokens']} tokens, {row['dtype']}, {'with' if row['recompute'] else 'no'} recompute"
    return (
        {"batch": size, "on": f"{row['devices']} x {row['strategy']}", "edges": f"{row['edges']:,}"}
        | shown
        | {
            "sum": f"{row['total_gib']:.2f} GiB",
            f"largest batch in {row['room_gib']:.0f} GiB": str(row["largest_batch"]),
        }
    )


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str("-" if value is None else value)


def _print(title: str, rows: list[dict[str, str]], upright: bool = False) -> None:
    """A table; upright puts every row of figures into a column."""
    table = Table(title=title, show_header=not upright)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if upright:
        for name in names:
            table.add_row(name, *(row.get(name, "") for row in rows))
    else:
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*(row.get(name, "") for name in names))
    CONSOLE.print(table)
