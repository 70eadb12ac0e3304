"""How outputs become scores where lm-evaluation-harness has no scorer that runs offline and apart."""
