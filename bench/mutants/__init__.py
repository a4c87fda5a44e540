"""Right answers with one thing changed, given to the grader: ``python -m bench.mutants``."""
