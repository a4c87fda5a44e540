"""Adapters and offloaded optimizers at real sizes: what they take, what serving them costs."""
