"""The load generator: wrk, on the core of the load, sending ready-made requests in turn."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.machine import cpu_s
from bench.processes import Service

CONNECTIONS = 32

# The requests are made before the run and read from a file: `<bytes>\n<request>` each.
SCRIPT = """
local requests, at = {}, 0
function init(args)
  local file = assert(io.open(args[1], 'rb'))
  while true do
    local size = file:read('*n')
    if not size then break end
    file:read(1)
    requests[#requests + 1] = file:read(size)
  end
  file:close()
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests":%d,"us":%d,"bytes":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Request(msgspec.Struct, frozen=True):
    """One HTTP request; *body* is JSON."""

    method: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = {}

    def encode(self, port: int) -> bytes:
        head = f"{self.method} {self.target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        if self.method != "GET":
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + self.body


class Round(msgspec.Struct, frozen=True):
    """What one run of wrk saw."""

    requests: int
    us: int
    bytes: int
    refused: int
    broken: int
    p50_us: int
    p99_us: int
    cpu_us: float = 0.0
    """Per request, of the process under load."""

    @property
    def per_s(self) -> float:
        return self.requests / self.us * 1e6


class Load:
    """A stream of requests to one service."""

    def __init__(
        self, folder: Path, name: str, target: Service, requests: Sequence[Request], *, nice: int = 0
    ) -> None:
        """*nice*: as of a process, so that others on its core do not wait for it."""
        self._nice = nice
        self._target = target
        self._script = folder / "requests.lua"
        self._script.write_text(SCRIPT)
        self._file = folder / f"{name}-{target.port}.requests"
        encoded = (request.encode(target.port) for request in requests)
        self._file.write_bytes(b"".join(b"%d\n%b\n" % (len(raw), raw) for raw in encoded))

    def run(self, seconds: int, *, takes_refusals: bool = False) -> Round:
        """Send for *seconds* over 32 connections.

        Raises:
            RuntimeError: an answer was an error (unless *takes_refusals*), or a connection broke.
        """
        url = f"http://127.0.0.1:{self._target.port}"
        command = [
            "nice",
            f"-n{self._nice}",
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}s",
            "--timeout",
            "10s",
        ]
        command += ["-s", str(self._script), url, "--", str(self._file)]
        before_s = cpu_s(self._target.pid)
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + 30
        ).stdout
        spent_s = cpu_s(self._target.pid) - before_s
        result = msgspec.json.decode(output.rpartition("RESULT ")[2], type=Round)
        if (result.refused and not takes_refusals) or result.broken or not result.requests:
            raise RuntimeError(f"not every request was answered well: {result}\n{output}")
        return msgspec.structs.replace(result, cpu_us=spent_s / result.requests * 1e6)
