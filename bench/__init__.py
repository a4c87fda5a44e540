"""Figures of speed, each beside what a user would pick instead, in one run: ``python -m bench``."""
