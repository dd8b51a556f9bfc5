"""PrometheusInstrument: counters and gauges for a Prometheus server to collect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogaio.connection import Connection
    from aiogaio.operation import Operation


class PrometheusInstrument:
    """Metrics by the ``prometheus-client`` package, each name beginning with ``aiogaio_``.

    ``operations_submitted_total`` and ``operations_completed_total`` by ``type`` (and
    ``outcome``, ``ok`` or the error's class), ``bytes_total`` by ``type``, ``connections`` (open
    now), ``connections_opened_total``, and the histogram ``batch_size``. Several watchers may
    share one.

    :param registry: where to register; by default the package's own.
    :raises ImportError: ``prometheus-client`` is not installed.

    >>> registry = prometheus_client.CollectorRegistry()
    >>> watched = Watcher(instrument=PrometheusInstrument(registry))
    >>> op = watched.write(peer, b"hello")
    >>> registry.get_sample_value("aiogaio_bytes_total", {"type": "write"})
    5.0
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            import prometheus_client as prometheus  # noqa: PLC0415 - optional
        except ImportError:
            raise ImportError(
                "PrometheusInstrument needs the prometheus-client package: "
                "pip install prometheus-client"
            ) from None
        where: dict[str, Any] = {
            "registry": registry or prometheus.REGISTRY,
            "namespace": "aiogaio",
        }
        self._submitted = prometheus.Counter(
            "operations_submitted", "Requests accepted", ["type"], **where
        )
        self._completed = prometheus.Counter(
            "operations_completed", "Operations completed", ["type", "outcome"], **where
        )
        self._bytes = prometheus.Counter("bytes", "Bytes moved", ["type"], **where)
        self._open = prometheus.Gauge("connections", "Connections open now", **where)
        self._opened = prometheus.Counter("connections_opened", "Connections so far", **where)
        self._batch = prometheus.Histogram(
            "batch_size",
            "Results handed over at a time",
            buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
            **where,
        )

    def submitted(self, operation: Operation) -> None:
        """As :meth:`Instrument.submitted`."""
        self._submitted.labels(operation.type.name.lower()).inc()

    def completed(self, operation: Operation) -> None:
        """As :meth:`Instrument.completed`."""
        kind = operation.type.name.lower()
        outcome = "ok" if operation.error is None else type(operation.error).__name__
        self._completed.labels(kind, outcome).inc()
        self._bytes.labels(kind).inc(operation.size)

    def batch(self, operations: Sequence[Operation]) -> None:
        """As :meth:`Instrument.batch`."""
        if operations:
            self._batch.observe(len(operations))

    def connection_opened(self, conn: Connection) -> None:
        """As :meth:`Instrument.connection_opened`."""
        self._open.inc()
        self._opened.inc()

    def connection_closed(self, descriptor: int) -> None:
        """As :meth:`Instrument.connection_closed`."""
        self._open.dec()
