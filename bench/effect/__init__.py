"""The study of what alignment is worth: the world is in configs/effect, the plan in its plan.toml."""
