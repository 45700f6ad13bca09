"""One file a verb: it checks, builds, calls the analysis, saves and shows."""
