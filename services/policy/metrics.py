"""Prometheus metrics of the policy service; in the default registry, so they stand on the page of vLLM's own."""

from prometheus_client import Counter, Gauge, Histogram

SYNC_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

VERSION = Gauge("prism_policy_version", "Version of the weights that are served")
ATTEMPT = Gauge("prism_policy_attempt", "Attempt of the run that pushed the weights that are served")
SYNC_SECONDS = Histogram(
    "prism_policy_weight_sync_seconds", "From a push's arrival to generation with its weights", buckets=SYNC_BUCKETS
)
SYNC_PAUSED_SECONDS = Histogram(
    "prism_policy_weight_sync_paused_seconds", "Of these, with new requests waiting", buckets=SYNC_BUCKETS
)
PUSHES = Counter("prism_policy_pushes", "Pushes of weights by how they ended", ["outcome"])
PROBE_DIFFERENCE = Gauge(
    "prism_policy_probe_difference", "Mean absolute difference between the server's and the learner's logprobs"
)
IN_FLIGHT = Gauge("prism_policy_requests_in_flight", "Generation requests past the gate and not yet answered in full")
ANSWERS_KEPT = Counter("prism_policy_answers_kept", "Answers that went on over a swap of weights, once for each swap")
ANSWERS_LOST = Counter("prism_policy_answers_lost", "Answers in flight that failed with the weights swapped under them")
BUSY_SECONDS = Counter("prism_policy_busy_seconds", "Time in which at least one generation request was in flight")
GATE_WAIT_SECONDS = Histogram(
    "prism_policy_gate_wait_seconds", "What a generation request waited at the gate", buckets=(0.001, *SYNC_BUCKETS)
)
REFUSED = Counter("prism_policy_requests_refused", "Generation requests refused with 503, by phase", ["phase"])
