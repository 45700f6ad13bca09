"""What pytest reads first: every process that runs tests gets the models and fixtures of `shared.py`.

With xdist one more process hands the tests out. It runs none, and the imports would take it as long as a hundred do.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

if gc.isenabled():  # until all is imported
    gc.disable()
if sys.dont_write_bytecode:  # each process would compile thousands of files, which takes longer than most tests
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    """Take in the fixtures, where tests are run."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(importlib.import_module("shared"))


def __getattr__(name: str) -> Any:
    """What tests import from here; pytest itself asks for names that it alone knows."""
    if name.startswith(("pytest", "_")):
        raise AttributeError(name)
    return getattr(importlib.import_module("shared"), name)


def pytest_collection_finish() -> None:
    """Imports leave 700,000 objects, through which every collection of garbage would go."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()
