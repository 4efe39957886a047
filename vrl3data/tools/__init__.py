"""Tools that make datasets from datasets: lazy in memory, never in place, with provenance and licence kept."""
