"""New families from the command line, in float32, as users run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import call, settings, write_local
from families import tiny_family

from circuitlit.model import Subject


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi", "granite", "mixtral", "gemma", "falcon:one key", "olmo2", "bloom", "gpt_oss"])
def test_a_family_from_the_command_line(name: str, tmp_path: Path) -> None:
    """Masks are trained on a folder of its weights in float32, with the library's own experts."""
    local = write_local(tmp_path)
    own = {"experts_implementation": "grouped_mm"} if name == "mixtral" else {}
    tiny_family(name, vocab_size=41, **own).float().save_pretrained(local / "model")
    cache = f"paths.cache_dir={tmp_path}"
    if Subject(tiny_family(name)).anatomy.borrowed:
        call(*settings(local, tmp_path / "check"), cache, verb="check")
    call(*settings(local, tmp_path / "run"), "logger=none", cache)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["n_edges_total"] == Subject(tiny_family(name)).graph.n_edges
    assert result["full"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
