"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server; nothing in them tells what was asked."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("tpo_requests", "Chat completions by status.", ["status"], registry=registry)
        self.running = Gauge("tpo_requests_running", "Chat completions in progress.", registry=registry)
        self.seconds = Histogram(
            "tpo_request_seconds",
            "From a request to the end of its answer.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.batch = Histogram(
            "tpo_batch_size", "Questions of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.tokens = Counter("tpo_tokens", "Tokens of answered requests.", ["kind"], registry=registry)
        self.predictions = Counter("tpo_predictions", "Predictions by head.", ["head"], registry=registry)

    def text(self) -> bytes:
        """All of them, in Prometheus' text form."""
        return generate_latest(self.registry)
