"""The page and the closing table of a run. Reads artefacts, never models."""

from circuitlit.report.behaviour import print_behaviour
from circuitlit.report.page import write_page
from circuitlit.report.table import print_table

__all__ = ["print_behaviour", "print_table", "write_page"]
