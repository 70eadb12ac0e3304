"""What a model can do: held-out losses, suites of benchmarks, paired differences and a verdict."""
