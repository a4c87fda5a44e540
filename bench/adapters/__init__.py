"""Adapters and offloaded optimizers at real sizes: what they take, and what serving them costs."""
