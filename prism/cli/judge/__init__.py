"""Responses scored and graded, by a run's services or without."""
