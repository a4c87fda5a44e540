"""Faults played on the parts of a run, what is seen of the run meanwhile, and what must hold at its end."""
