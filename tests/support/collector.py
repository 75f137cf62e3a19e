"""A collector of traces: takes OTLP over HTTP in protobuf, as any backend does, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class Exported(NamedTuple):
    """One span as it arrived."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty: it is a root."""
    attributes: dict[str, Any]
    events: list[str]
    links: list[tuple[str, str]]
    """Trace and span of each."""
    has_failed: bool
    status_message: str
    service: dict[str, Any]
    state: str


class Collector:
    """On a free port, in threads; :meth:`hang` makes it answer nobody from then on."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Exported] = []
        self.bodies: list[bytes] = []
        """What came, as it came."""
        self._lets = threading.Event()
        self._lets.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that did not wait
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lets.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def hang(self) -> None:
        self._lets.clear()

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces", path
        self._lets.wait()
        self.bodies.append(body)
        self.spans += spans_of(ExportTraceServiceRequest.FromString(body))

    def named(self, name: str) -> list[Exported]:
        return [span for span in self.spans if span.name == name]


def spans_of(request: ExportTraceServiceRequest) -> list[Exported]:
    return [
        Exported(
            name=span.name,
            kind=KINDS[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            attributes=_values(span.attributes),
            events=[event.name for event in span.events],
            links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            has_failed=span.status.code == 2,
            status_message=span.status.message,
            service=_values(resource.resource.attributes),
            state=span.trace_state,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
