"""Who waits for whom in a step."""
