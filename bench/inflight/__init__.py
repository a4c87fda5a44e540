"""Long answers while weights are pushed, draining and in flight: ``python -m bench.inflight``."""
