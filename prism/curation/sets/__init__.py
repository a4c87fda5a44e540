"""Which demonstrations go into which set: without duplicates and benchmarks, the best for alignment."""
