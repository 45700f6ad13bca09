"""What every verb writes and prints on tiny models, as it was before the house was rebuilt (tests/golden/).

    uv run pytest -m golden -n 2                     # compare
    CIRCUITLIT_RECORD=1 uv run pytest -m golden -n 2 # write anew, after a change that is meant

Numbers agree to 1e-6, everything else exactly. Times, paths, versions and hashes are left out.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import call, settings
from test_compare import compare
from test_evolve import series  # noqa: F401
from test_evolve import settings as evolve
from test_finetune import tune
from test_heads_verb import arguments, named_pairs
from test_intervene import entry, mask_run, quick, tuned  # noqa: F401
from test_knowledge import reader  # noqa: F401
from test_prompts import MORE as PROMPTS
from test_story import STORY
from test_study import MATCH, small

from circuitlit import progress

STORED = Path(__file__).parent / "golden"
VOLATILE = {"seconds", "seconds_by_phase", "provenance", "command", "format", "schema", "step_seconds", "path", "file"}
TOLERANCE = 1e-6
# Key paths that have another name now, by case or "*": old path -> new one, or None where the key is gone.
RENAMED: dict[str, dict[str, str | None]] = {
    "capabilities": {"settings.tasks": None},  # the keys of "tasks"
    "generality": {f"settings.{key}": None for key in ("tasks", "circuits", "prevent")},  # the other keys say them
    "knowledge": {"settings.packs": None, "settings.inject": None},
    "compare_models": {"*.kept": "retained"},  # of an overlap; a circuit keeps edges
    "compare_tunings": {"*.kept": "retained"},
    "story": {
        **{"*.kept": "retained", "settings.other_tasks": None, "settings.passages": None},
        **{f"{at}transfer.tuned.name": None for at in ("", "content.", "ways.lora.nodes.", "ways.full.nodes.")},
    },  # what is put back into a way's model is the base's, and is called so
    "intervene": {"settings.other_tasks": None, "settings.passages": None},  # the keys of "other_tasks", and "text"
}
# Printed lines that read otherwise now, by case: old line -> new one or several, or None.
REWORDED: dict[str, dict[str, str | None]] = {
    "difference": {"<out>/difference.json": "<out>/difference.json\n<out>/difference.html"},  # it has a page now
}

Case = Callable[[pytest.FixtureRequest, Path, Path], None]


def train(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out / "train", "logger=csv"))
    call(f"run={out}/train", "format=html", f"hydra.run.dir={out}/report", verb="report")
    call(f"run={out}/train", f"hydra.run.dir={out}/timeline", verb="timeline")


def train_joint(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, "logger=none", "adapter=lora", "adapter.train=true", "seed=1"))


def several(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    run = ["logger=none", "callbacks.snapshot_every=5", "callbacks.probe_every=5", "mask.schedule.steps=40"]
    for seed in (0, 1):
        call(*settings(local, out / f"{seed}", *run, f"seed={seed}"))
    runs = f"runs=[{out}/0,{out}/1]"
    call(runs, f"hydra.run.dir={out}/report", verb="report")
    call(runs, f"hydra.run.dir={out}/timeline", verb="timeline")


def attribute(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out / "run", "logger=none", "method=eap_ig", "ablation=mean"), verb="attribute")
    fast = ["logger=none", "evaluate.knockouts=2", "evaluate.parts=3", "evaluate.ablation_pairs=4"]
    call(*settings(local, out / "again", *fast, f"circuit={out}/run", "evaluate.smallest=0.8"), verb="evaluate")
    for kind in ("mib_json", "eap_ig_json"):
        call(f"circuit={out}/run", f"format={kind}", f"hydra.run.dir={out}/{kind}", verb="export")
    pruned = [f"circuit={out}/run", "format=pruned", "passages.count=4", "passages.length=8", "logger=none"]
    call(*settings(local, out / "pruned", *pruned), verb="export")


def unable(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, "logger=none", "task.min_accuracy=0.99"))


def behaviour(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["behaviour.tasks=[{name: mine,with: ['task.min_accuracy=0.9']}]", "behaviour.pairs=8", "logger=none"]
    call(*settings(local, out, *more), verb="behaviour")


def study(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*small(local, out, MATCH), verb="study")


def compare_models(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["logger=none", "adapter=lora", "tune.steps=20", "tune.lr=2e-2", "tune.checkpoints=0"]
    call(*settings(local, out / "tune", *more), verb="finetune")
    call(*compare(local, out / "out", f"tuned={out}/tune"), verb="compare")


def compare_tunings(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    common = ["logger=none", "tune.steps=6", "tune.checkpoints=[0,2,6]", "tune.lr=1e-2", "tune.probe_every=0"]
    for name, own in {"sft": ["adapter=lora"], "full": ["adapter=none", "tune.freeze=[a0.h1,m1]"]}.items():
        call(*settings(local, out / name, *common, *own), verb="finetune")
    fast = ["logger=none", "sparsity.target=0.6", "method.score.steps=1", "compare.text={passages: 2, length: 8}"]
    call(*settings(local, out / "out", *fast, f"runs=[{out}/sft,{out}/full]"), verb="compare")


def difference(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = ["method=eap", f"tuned={folder}/adapter", "logger=none", "callbacks=none", "mask.schedule.steps=12"]
    call(*settings(local, out, *more, "difference.penalty=0.003"), verb="difference")


def intervene(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = [f"tuned={folder}/adapter", f"task.build.path={folder}/new.jsonl", "intervene.size=2", "intervene.edges=3"]
    more += [f"circuit={mask_run(out / 'circuit')}", f"intervene.other_tasks=[{entry(folder, 'old')}]"]
    more += ["intervene.passages={count: 4, length: 8}", "ablation=zero", "intervene.doses=[0.0,1.0,2.0]"]
    call(*quick(local, out / "out", *more, "intervene.steps=[1,2]", "intervene.candidates=null"), verb="intervene")


def capabilities(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    tasks = f"capabilities.tasks=[{entry(folder, 'new')}, {entry(folder, 'old')}]"
    call(*quick(local, out, f"tuned={folder}/adapter", tasks), verb="capabilities")


def generality(request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    folder = request.getfixturevalue("tuned")
    more = [f"tuned={folder}/adapter", "generality.revert=3", "generality.prevent.tune_on=new", "tune.steps=4"]
    more += ["generality.prevent.nodes=2", "generality.prevent.seeds=[0,1]", "tune.lr=1e-2"]
    call(
        *quick(local, out, *more, f"generality.tasks=[{entry(folder, 'new')}, {entry(folder, 'old')}]"),
        verb="generality",
    )


def prompts(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, *PROMPTS), verb="prompts")


def knowledge(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    packs = ["logger=none", "knowledge.packs.linguistic=[]", "knowledge.packs.reasoning=[]"]
    own = 'knowledge.packs.factual=[{name: own, with: ["task=jsonl"]}]'
    call(*settings(local, out, *packs, own), verb="knowledge")


def injection(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    folder = request.getfixturevalue("reader")
    more = ["experiment=inject_facts", "task=factual", "model=local", f"model.path={folder}", "adapter=none"]
    more += [f"hydra.run.dir={out}", "logger=none", "callbacks=headless", "callbacks.checkpoint_every=0"]
    more += ["knowledge.inject.new=6", "knowledge.inject.revised=6", "knowledge.inject.only_known=false"]
    more += ["knowledge.inject.nodes=2", "tune.steps=10", "tune.lr=3e-3", "data.batch_size=12"]
    call(*more, verb="knowledge")


def heads(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    named = named_pairs(out)
    call(
        *arguments(local, out / "out", f"task.build.path={named}", "heads.thresholds.copying=-1"),
        "logger=none",
        verb="heads",
    )


def evolution(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    call(*evolve(request.getfixturevalue("series"), out), verb="evolve")


def evolution_by_masks(request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    masks = ["evolve.circuits=masks", "mask.schedule.steps=4", "logger=none", "evolve.heads.run=false"]
    masks += ["evolve.cold_every=2", "evolve.schedule=[0,1,2]", "evolve.faithfulness=0.5"]
    call(*evolve(request.getfixturevalue("series"), out, *masks), verb="evolve")


def finetune(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*tune(local, out / "lora", "adapter=lora", "tune.checkpoints=[0,3,12]"), verb="finetune")
    call(*tune(local, out / "full", "adapter=none", "adapter.lr=1e-3"), verb="finetune")
    call(*tune(local, out / "dpo", "adapter=lora", "tune=dpo"), verb="finetune")


def guided(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    more = ["tune.steps=4", "guided.rank=2", "guided.seeds=[0,1]", "guided.circuit_pairs=8", "tune.score=metric"]
    ways = "guided.ways=[uniform,circuit_difference,base_circuit,random_layers]"
    call(*settings(local, out, *more, "method=eap", "logger=none", "callbacks=none", ways), verb="guided")


def story(_request: pytest.FixtureRequest, local: Path, out: Path) -> None:
    call(*settings(local, out, *STORY), verb="finetune")


def bench(_request: pytest.FixtureRequest, _local: Path, out: Path) -> None:
    shape = ["plan=true", "model=codellama_13b", "data.batch_size=8", "tokens=64"]
    call(*shape, f"hydra.run.dir={out}", verb="bench")


CASES: list[Case] = [
    train,
    train_joint,
    several,
    attribute,
    unable,
    behaviour,
    study,
    compare_models,
    compare_tunings,
    difference,
    intervene,
    capabilities,
    generality,
    prompts,
    knowledge,
    injection,
    heads,
    evolution,
    evolution_by_masks,
    finetune,
    guided,
    story,
    bench,
]


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_has_changed(
    case: Case,
    request: pytest.FixtureRequest,
    local: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress.CONSOLE, "_width", 80)
    case(request, local, tmp_path)
    found = {"printed": printed(capsys.readouterr().out, tmp_path), "files": files(tmp_path)}
    path = STORED / f"{case.__name__}.json"
    if os.environ.get("CIRCUITLIT_RECORD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    differing = list(differences(case.__name__, json.loads(path.read_text()), found))
    assert not differing, "\n".join(differing[:40])


def files(root: Path) -> dict[str, Any]:
    """All json files and the words of all pages, by their paths."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".json" and not re.search(r"tuned/|adapter/|/?base/|checkpoint-|pruned/|step_\d+/", name):
            found[name] = normalised(json.loads(path.read_text()), root)
        elif path.suffix == ".html":
            found[name] = words(path.read_text(encoding="utf-8"), root)
    return found


def normalised(content: Any, root: Path) -> Any:
    """Without what differs from run to run; long lists of numbers thinned out."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in VOLATILE}
        kept = {key: value for key, value in kept.items() if not (key == "settings" and isinstance(value, str))}
        return {key: normalised(value, root) for key, value in kept.items()}
    if isinstance(content, list):
        if len(content) > 20 and all(isinstance(one, int | float) for one in content):
            step = -(-len(content) // 8)
            return [len(content), _short(math.fsum(content)), *(_short(one) for one in content[::step])]
        if len(content) > 60:
            content = [len(content), *content[:: -(-len(content) // 20)]]
        return [normalised(one, root) for one in content]
    return _short(content) if isinstance(content, float) else plain(content, root)


def _short(number: float) -> float:
    return float(f"{number:.9g}")


def plain(content: Any, root: Path) -> Any:
    """A string without paths of this run."""
    if not isinstance(content, str):
        return content
    base = re.escape(str(root.parent.parent))
    return re.sub(rf"{base}/[\w-]+/[\w.-]+", "<tmp>", content.replace(str(root), "<out>"))


def printed(text: str, root: Path) -> list[str]:
    """Lines of the terminal without times, one space for many."""
    lines = (re.sub(r"\s+", " ", plain(line, root)).strip() for line in text.splitlines())
    timed = re.compile(r"^\d+\.\d s$|\d s left|s from here on|scored in|^\d+ %:|steps/s")
    return [line for line in lines if line and not timed.search(line)]


def words(page: str, root: Path) -> str:
    """What a reader sees of a page, without figures and times."""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
    text = re.sub(r"(?s)<[^>]*>", " ", text)
    text = re.sub(r"seconds(\.\w+)?\s+\d+(\.\d+)?", "~", text)
    text = re.sub(r"\d+(\.\d+)? (s|seconds|minutes|min)\b|\d+\.\d+\.\d+\S*|\d{4}-\d\d-\d\d\S*|[\da-f]{12,}", "~", text)
    return re.sub(r"\s+", " ", plain(text, root)).strip()


def differences(case: str, old: dict[str, Any], new: dict[str, Any], listed: bool = True) -> Iterator[str]:
    """What differs, with its place; keys that are new are no difference, those that were renamed are listed."""
    renamed, reworded = (own.get("*", {}) | own.get(case, {}) if listed else {} for own in (RENAMED, REWORDED))
    expected = [reworded.get(line, line) for line in old["printed"]]
    lines = [part for line in expected if line is not None for part in line.split("\n")]
    yield from _apart("printed", lines, new["printed"], {})
    for name, content in old["files"].items():
        if name not in new["files"]:
            yield f"{name} is not written"
        else:
            yield from _apart(name, content, new["files"][name], renamed)


def _apart(place: str, old: Any, new: Any, renamed: dict[str, str | None]) -> Iterator[str]:
    number = isinstance(old, int | float) and isinstance(new, int | float)
    if number and not isinstance(old, bool):
        if not math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{place}: {old} is now {new}"
    elif isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            inner = re.sub(r"^[^:]*:?", "", f"{place}.{key}" if ":" in place else f"{place}:{key}")
            moved = renamed.get(inner, renamed.get(f"*.{key}", key))
            if moved is None or (value is None and moved not in new):
                continue
            moved = key if moved == key else moved.rsplit(".", 1)[-1]
            if moved not in new:
                yield f"{place}: '{key}' is gone"
            else:
                yield from _apart(f"{place}.{key}" if ":" in place else f"{place}:{key}", value, new[moved], renamed)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{place}: {len(old)} entries are now {len(new)}: {_first_apart(old, new)}"
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from _apart(f"{place}[{number}]", one, other, renamed)
    elif old != new:
        yield f"{place}: {_first_apart(str(old), str(new))}"


def _first_apart(old: Any, new: Any) -> str:
    at = next((place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), 0)
    before = max(0, at - 40) if isinstance(old, str) else at
    return f"...{old[before : at + 60]!r} is now {new[before : at + 60]!r}"


@pytest.mark.parametrize("case", sorted(path.stem for path in STORED.glob("*.json")))
def test_a_planted_change_is_seen(case: str) -> None:
    """One number of each file a ten-thousandth off, one key gone, one printed word another: each is named."""
    stored = json.loads((STORED / f"{case}.json").read_text())
    assert not list(differences(case, stored, copy.deepcopy(stored), listed=False))
    for name, content in stored["files"].items():
        changed = copy.deepcopy(stored)
        if isinstance(content, str):
            changed["files"][name] = content[:-9] + "elsewhere"
        elif not _spoil(changed["files"][name]):
            continue
        assert any(name in line for line in differences(case, stored, changed, listed=False)), name
    changed = copy.deepcopy(stored)
    changed["printed"][0] += "!"
    assert list(differences(case, stored, changed, listed=False))


def _spoil(content: Any) -> bool:
    """Change the last number that is found."""
    inner = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in reversed(inner):
        if isinstance(value, dict | list) and _spoil(value):
            return True
        if isinstance(value, float) and value not in (0.0, 1.0):
            content[key] = value * (1 + 1e-4) + 1e-5
            return True
    return False
