"""The grader beside math-verify called as its documentation shows: ``python -m bench.grader``."""
