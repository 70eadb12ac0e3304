"""The paper's studies as recipes, the making of the tiny base: not installed, and users of the public API only."""
