"""Prometheus metrics of a rollout worker."""

from prometheus_client import Counter, Gauge, Histogram

GROUPS = Counter("prism_rollouts_groups_total", "Requests by how they ended", ["outcome"])
TOKENS = Counter("prism_rollouts_tokens_total", "Response tokens sampled")
MIXED_SAMPLES = Counter("prism_rollouts_mixed_samples_total", "Responses with tokens of several policy versions")
JUDGEMENTS = Counter("prism_rollouts_judgements_total", "Scores and verdicts by status", ["judge", "status"])
GENERATE_SECONDS = Histogram("prism_rollouts_generate_seconds", "Sampling one group")
JUDGE_SECONDS = Histogram("prism_rollouts_judge_seconds", "Scoring and grading one group")
STREAM = Gauge("prism_rollouts_stream_entries", "Entries of the run's streams, the same from every worker", ["stream"])
AT_WORK = Gauge("prism_rollouts_groups_at_work", "Groups being sampled or judged")
