"""What evaluation costs: ``python -m bench.evaluation.rate``, ``python -m bench.evaluation.every``."""
