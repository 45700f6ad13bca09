"""A W&B workspace for a task's mask runs: sections, panels and their axes, as W&B's own specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuitlit.errors import UserError
from circuitlit.files import write_json

STEP = "trainer/global_step"
CURVES = {
    "Masks": {
        "Overlap with the snapshot before and the start": ["masks/overlap_previous", "masks/overlap_start"],
        "Edges changed": ["masks/churn"],
        "Undecided gates": ["masks/undecided"],
        "Stage so far, not tested, 1 to 4": ["masks/stage_untested"],
    },
    "Circuit as cut, validation": {
        "KL (nats)": ["val/hard_kl"],
        "Accuracy": ["val/hard_accuracy"],
        "Reachable edges": ["val/reachable"],
    },
    "Training": {"Loss": ["train/loss"], "Sparsity": ["train/sparsity"]},
}
RESULTS = {"KL (nats)": "result/kl", "Faithfulness": "result/faithfulness", "Accuracy": "result/accuracy"}
TABLES = ("result/table", "timeline/stages", "circuit/edges")
MEDIA = (
    "figures/page",
    "figures/timeline",
    "figures/layers_over_steps",
    "figures/layers",
    "figures/kept",
    "figures/circuit",
    "figures/training",
)


def write_workspace(entity: str, project: str, task: str, path: Path, online: bool = False) -> str | None:
    """Write a workspace's specification as json; `online` saves it at W&B, too, and gives its address.

    Raises:
        UserError: W&B does not take it.
    """
    import wandb

    workspace = build_workspace(entity, project, task)
    write_json(path, workspace_spec(workspace))
    if not online:
        return None
    try:
        workspace.save()
    except wandb.Error as error:
        raise UserError(f"W&B did not take the workspace ({error}); `wandb login`, or leave online=true out") from error
    return workspace.url


def build_workspace(entity: str, project: str, task: str) -> Any:
    """The workspace, which shows the runs of one task; not yet saved anywhere, and nothing is asked of the network."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=name,
            is_open=True,
            panels=[panels.LinePlot(title=title, x=STEP, y=list(keys)) for title, keys in curves.items()],
        )
        for name, curves in CURVES.items()
    ]
    bars = [panels.BarPlot(title=title, metrics=[key]) for title, key in RESULTS.items()]
    tables = [panels.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    results = ws.Section(name="Result on held-out pairs", is_open=True, panels=[*bars, *tables])
    media: list[Any] = [panels.MediaBrowser(title=key.split("/")[-1], media_keys=[key]) for key in MEDIA]
    shown = ws.Section(name="Page and figures", is_open=True, panels=media)
    own = ws.RunsetSettings(filters=[ws.Config("task.value.name") == task])  # W&B keeps settings below "value"
    sections = [results, *sections, shown]
    return ws.Workspace(entity=entity, project=project, name=task, sections=sections, runset_settings=own)


def workspace_spec(workspace: Any) -> dict[str, Any]:
    """What would be sent to W&B, with the panels' random names replaced by their numbers."""
    spec = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return _numbered(spec, iter(range(1_000_000)))


def _numbered(value: Any, numbers: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: f"panel-{next(numbers)}" if key == "__id__" else _numbered(item, numbers)
            for key, item in value.items()
        }
    return [_numbered(item, numbers) for item in value] if isinstance(value, list) else value
