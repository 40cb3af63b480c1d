"""Speed and memory against the naive formulation: ``python -m benchmarks`` prints the table."""
