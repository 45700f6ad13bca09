"""The pages: links lead somewhere, commands are well formed, the table of verbs is whole, its names are public."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import circuitlit
from circuitlit.cli.arguments import presets, readable
from circuitlit.cli.main import VERBS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FOLDERS = ("circuitlit", "conf", "launch", "tests", ".github")
PAGES = [README, *sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("**/*.md"))]
COMMAND = re.compile(r"(?:python train\.py|uv run train\.py|python -m circuitlit (\w+)) ?([^`\n]*)")
PLACES = "DIR RUN FOLDER A B".split()  # stand for folders in commands


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} in {page}"
        assert not anchor or anchor in anchors(target), f"{link} in {page}; there are {sorted(anchors(target))}"


def test_pages_say_what_they_are_and_name_no_file_that_is_gone() -> None:
    for page in PAGES:
        text = page.read_text()
        assert text.startswith("# "), page
        for script in re.findall(r"\b((?:launch|tests)/[\w/]+\.(?:sh|sbatch|py))\b", text):
            assert (ROOT / script).exists(), f"{script} in {page}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "conf"], ids=names)
def test_commands_are_well_formed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["circuitlit"])
    for folder in PLACES:
        (tmp_path / folder).mkdir()
    for file in ("pairs.jsonl", "RUN/circuit.safetensors"):
        (tmp_path / file).touch()
    for verb, rest in COMMAND.findall(page.read_text()):
        words = shlex.split(rest.split("   #")[0].split(" # ")[0].replace("runs/...", "RUN"))
        if verb.isupper() or "..." in rest or re.search(r"=[A-Z]\b|[A-Z]{2,}=", rest):
            continue  # a pattern, such as NAME=VALUE or seed=S
        assert (verb or "train") in VERBS, f"{verb} in {page}"
        readable(verb or "train", words)
        for word in words:
            group, _, preset = word.partition("=")
            assert group not in presets() or set(preset.split(",")) <= {*presets()[group], "null"}, f"{word} in {page}"


def test_the_table_of_verbs_is_whole() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ?([^|]*) \|$", README.read_text(), re.MULTILINE)
    assert sorted(verb for verb, _ in rows) == sorted(VERBS)
    for verb, functions in rows:
        for name in re.findall(r"`(\w+)`", functions):
            assert name in circuitlit.__all__ and callable(getattr(circuitlit, name)), f"{name}, of {verb}"


def test_the_citation_is_valid_yaml_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project and citation["license"] in project
    assert (ROOT / "circuitlit" / "py.typed").exists()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "launch" / "quickstart.ipynb"], ids=names)
def test_names_that_pages_import_exist(page: Path) -> None:
    text = page.read_text().replace('\\n",', "")
    for module, imported in re.findall(r"^\W*from (circuitlit[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        for name in imported.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name} in {page}"
