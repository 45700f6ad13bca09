"""Methods x tasks x sparsities: cells that are made once, and what a table of them shows."""
