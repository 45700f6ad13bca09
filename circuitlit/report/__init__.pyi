# What report/__init__.py offers, each imported when it is first used.
from .behaviour import print_behaviour
from .page import write_page
from .plot import plot_circuit
from .runs import write_runs
from .table import print_table

__all__ = [
    "plot_circuit",
    "print_behaviour",
    "print_table",
    "write_page",
    "write_runs",
]
