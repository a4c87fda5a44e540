"""Checkpoints: one folder a step, saved behind the loop, resumed with the groups that it does not contain."""
