"""That the budget holds: the bounds' coverage, and many runs."""
