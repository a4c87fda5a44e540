"""Commands about what a run has left, and how good a model is."""
