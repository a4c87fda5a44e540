"""Runs as their folders tell of them. Nothing here writes into a run's folder, but for its deletion."""
