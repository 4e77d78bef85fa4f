"""What Prometheus asks for."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory and time of the processor
        self._requests = Counter(
            "fwd2bot_requests", "Requests answered.", ["method", "path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fwd2bot_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._model_rows = Histogram(
            "fwd2bot_model_rows",
            "Rows of each call of the model, of how many clients ever.",
            ["kind"],
            buckets=ROWS,
            registry=self._registry,
        )

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """``path``: of the route, so that there are few; of methods there are as many as clients think of."""
        self._requests.labels(method if method in METHODS else "other", path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def model_call(self, kind: str, rows: int) -> None:
        self._model_rows.labels(kind).observe(rows)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(f"fwd2bot_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
