"""circuitlit."""
