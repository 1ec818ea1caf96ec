"""Every metric of the auth service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_COMMIT_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)


class AuthMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.admissions = Counter(
            "vllm_proxy_auth_admissions_total", "Admissions that were decided.", ["result", "limit"], registry=registry
        )
        self.admitted = self.admissions.labels(result="admitted", limit="")
        self.settlements = Counter(
            "vllm_proxy_auth_settlements_total", "Settlements by what came of them.", ["result"], registry=registry
        )
        self.settled = self.settlements.labels(result="settled")
        self.tokens = Counter(
            "vllm_proxy_auth_tokens_total", "Tokens that were charged first time.", ["kind"], registry=registry
        )
        self.prompt_tokens = self.tokens.labels(kind="prompt")
        self.completion_tokens = self.tokens.labels(kind="completion")
        self.leases = Gauge("vllm_proxy_auth_open_leases", "Leases that are open.", registry=registry)
        self.keys = Gauge("vllm_proxy_auth_keys", "Keys in force.", registry=registry)
        self.sessions = Gauge("vllm_proxy_auth_sessions", "Sessions that are open.", registry=registry)
        self.commit_seconds = Histogram(
            "vllm_proxy_auth_commit_seconds",
            "Duration of a store transaction.",
            buckets=_COMMIT_BUCKETS_S,
            registry=registry,
        )
        self.committed_records = Counter(
            "vllm_proxy_auth_committed_records_total", "Records written to the store.", registry=registry
        )
