"""Prometheus metrics of the scoring API."""

from prometheus_client import Counter, Gauge, Histogram

REQUEST_SECONDS = Histogram("prism_expert_request_seconds", "From request to scores", ["expert", "route"])
REQUEST_RESPONSES = Histogram(
    "prism_expert_request_responses",
    "Responses of one request",
    ["expert"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)
REFUSED = Counter("prism_expert_refused_total", "Requests refused or failed", ["expert", "route", "code"])
SCORES = Counter("prism_expert_scores_total", "Responses judged", ["expert", "status"])
SCORE_VALUE = Histogram(
    "prism_expert_score",
    "Raw scores",
    ["expert", "section"],
    buckets=(-10, -6, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 6, 10),
)
SCORED_TOKENS = Counter("prism_expert_scored_tokens_total", "Tokens judged, without prompts", ["expert"])
BATCH_SEQUENCES = Histogram(
    "prism_expert_batch_sequences", "Sequences of one forward pass", ["expert"], buckets=(1, 4, 8, 16, 32, 64, 128, 256)
)
BATCH_TOKENS = Histogram(
    "prism_expert_batch_tokens",
    "Tokens of one batch, each prompt once",
    ["expert"],
    buckets=(64, 256, 1024, 4096, 16384),
)
TOKENS = Counter("prism_expert_tokens_total", "Tokens through the model", ["expert"])
PREFIXES = Counter("prism_expert_prefixes_total", "Prompts computed, or remembered", ["expert", "how"])
KNOWN_SCORES = Counter("prism_expert_remembered_scores_total", "Responses whose score was remembered", ["expert"])
QUEUE_DEPTH = Gauge("prism_expert_queue_requests", "Requests waiting or being scored", ["expert"])
VERSION = Gauge("prism_expert_version", "Version of the weights in use", ["expert"])
SYNC_SECONDS = Histogram("prism_expert_weight_sync_seconds", "Whole weight push", ["expert"])
SYNC_PAUSED_SECONDS = Histogram("prism_expert_weight_sync_paused_seconds", "Scoring paused by a push", ["expert"])
