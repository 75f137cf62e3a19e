"""A real WebSocket of the whole service: whatever comes in, an ack, an error or a close code comes out."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions_api.cli.upgraded import MAX_FRAGMENTS, MAX_WAITING
from sessions_api.live.closing import ALL
from sessions_api.live.framing import FRAMES_BURST, TYPES
from tests.support.client import Api, eventually
from tests.support.garbage import objects, sent, values
from tests.support.service import Service
from tests.support.wire import BINARY, CLOSE, PING, PONG, TEXT, Frames, Wire, frame, handshake, quietly_reset

pytestmark = pytest.mark.timeout(120)
OURS = {closing.code for closing in ALL} - {1011}
OF_THE_PROTOCOL = {1002, 1007, 1009}
GOODBYE = frame(CLOSE, struct.pack("!H", 1000))
CONT = 0
quick = settings(max_examples=60, deadline=None)

near_frames = st.one_of(
    objects("type ref content metadata idempotencyKey".split(), {"type": "message", "content": "hello"}),
    objects("type ref turnId after token".split(), {"type": "cancel", "after": 0}),
    st.tuples(
        st.sampled_from(sorted(TYPES)), objects("ref content after turnId token idempotencyKey".split())
    ).map(lambda both: both[1] | {"type": both[0]}),
)
payloads = st.one_of(near_frames.map(sent), values.map(sent), st.binary(max_size=60))
broken_frames = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.builds(frame, st.integers(0, 15), st.binary(max_size=130), is_last=st.booleans()),
    st.builds(lambda data, cut: frame(TEXT, data)[:cut], st.binary(max_size=40), st.integers(1, 8)),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("frames")) as service:
        yield service
        service.assert_no_bug_logged()


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[Api]:
    api = Api(service.url)
    yield api
    api.close()


@pytest.fixture
def session_id(api: Api) -> Iterator[str]:
    """A session, with which others can be spoken to as ever when the test is over."""
    session_id = api.session()
    yield session_id
    with api.websocket(session_id) as socket:
        socket.send(json.dumps({"type": "ping", "ref": "after"}))
        while json.loads(socket.recv(timeout=10))["type"] != "ack":
            pass


@pytest.fixture(autouse=True)
def nobody_stays(api: Api) -> Iterator[None]:
    """Whatever a client did, once it is gone it follows nothing any more."""
    yield
    eventually(lambda: 'sessions_followers{transport="ws"} 0.0' in api.http.get("/metrics").text)


@pytest.fixture(scope="module")
def talked_to(api: Api) -> str:
    """One session for all the frames of a fuzz."""
    return api.session()


def assert_ours(frames: list[dict[str, Any]]) -> None:
    for each in frames:
        assert isinstance(each["type"], str)
        if each["type"] == "error":
            assert 400 <= each["status"] < 500, each
            assert each["error"]["code"] != "INTERNAL_ERROR"


class TestFuzz:
    @quick
    @given(frames=st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), payloads), min_size=1, max_size=4))
    def test_frames_of_anything(
        self, service: Service, talked_to: str, frames: list[tuple[int, bytes]]
    ) -> None:
        """Each is answered by an ack or an error; one that is no frame of ours ends it with 4400."""
        with Frames(service.port).open(talked_to) as wire:
            for opcode, payload in frames:
                wire.send(frame(opcode, payload))
            wire.send(GOODBYE)
            code, answers = wire.until_closed()

        assert code in OURS | {1000, 1007}
        assert_ours(answers)

    def test_a_frame_of_very_many_arrays(self, service: Service, session_id: str) -> None:
        """It would hold everybody up while it is made, and again by the garbage that it becomes."""
        with Frames(service.port).open(session_id) as wire:
            wire.send(frame(TEXT, b'{"type":"ping","x":[' + b"[]," * 20_000 + b"[]]}"))
            code, answers = wire.until_closed()

        assert code == 4400
        assert "objects and arrays" in answers[-1]["error"]["message"]

    @quick
    @given(pieces=st.lists(broken_frames, min_size=1, max_size=4))
    def test_bytes_of_anything(self, service: Service, talked_to: str, pieces: list[bytes]) -> None:
        """What breaks the protocol is refused with the protocol's own code, what is cut off with none."""
        with Frames(service.port).open(talked_to) as wire:
            for piece in pieces:
                wire.send(piece)
            wire.send(GOODBYE)
            wire.end()
            code, answers = wire.until_closed()

        assert code in OURS | OF_THE_PROTOCOL | {1000, 1005, 1006}
        assert_ours(answers)

    @quick
    @given(pieces=st.lists(broken_frames | payloads.map(lambda raw: frame(TEXT, raw)), max_size=3))
    def test_frames_that_do_not_wait_for_the_handshake(
        self, service: Service, talked_to: str, pieces: list[bytes]
    ) -> None:
        """What comes before the handshake is answered may be lost; nothing of it crashes."""
        with Wire(service.port) as wire:
            wire.send(handshake(talked_to))
            for piece in pieces:
                wire.send(piece)
            wire.send(GOODBYE)
            wire.end()
            wire.rest()


class TestFloods:
    """A conversation that is a flood is ended with 4429, and costs the others nothing."""

    def test_fragments_without_end(self, service: Service, session_id: str) -> None:
        with Frames(service.port).open(session_id) as wire:
            wire.send(frame(TEXT, b"", is_last=False) + frame(CONT, is_last=False) * (MAX_FRAGMENTS + 1))

            assert wire.until_closed()[0] == 4429

    def test_a_message_may_come_in_many_fragments(self, service: Service, session_id: str) -> None:
        text = json.dumps({"type": "ping", "ref": "whole"}).encode()
        with Frames(service.port).open(session_id) as wire:
            wire.send(frame(TEXT, is_last=False) + frame(CONT, is_last=False) * (MAX_FRAGMENTS - 2))
            wire.send(frame(CONT, text) + frame(TEXT, b"no frame of ours"))
            code, answers = wire.until_closed()

        assert code == 4400
        assert {"type": "ack", "ref": "whole", "status": 200, "data": {}} in answers

    @pytest.mark.parametrize("opcode", [PING, PONG])
    def test_pings_and_pongs(self, service: Service, session_id: str, opcode: int) -> None:
        with Frames(service.port).open(session_id) as wire:
            wire.send(frame(opcode, b"x") * int(FRAMES_BURST + 40))

            assert wire.until_closed()[0] == 4429

    def test_messages_in_one_piece(self, service: Service, session_id: str) -> None:
        with Frames(service.port).open(session_id) as wire:
            wire.send(frame(TEXT, b'{"type":"ping"}') * (MAX_WAITING + 10))

            assert wire.until_closed()[0] == 4429

    @pytest.mark.parametrize(
        "flood",
        [
            frame(CONT, is_last=False),
            frame(PING, b"x" * 125),
            frame(PONG),
            frame(TEXT, b'{"type":"ping"}'),
            frame(TEXT, b"{"),
            b"\x00",
        ],
        ids=["fragments", "pings", "pongs", "messages", "garbage", "zeroes"],
    )
    def test_that_goes_on_is_hung_up_on(self, service: Service, session_id: str, flood: bytes) -> None:
        """Also by a client that reads nothing of what it is told: the service keeps little for it."""
        before_kb = resident_kb(service.pid)
        for _ in range(4):
            with Frames(service.port, buffer=4096).open(session_id) as wire:
                wire.send(frame(TEXT, b"", is_last=False))
                taken = wire.send_while_open(flood * (32_768 // len(flood)), most_bytes=64 * 1024 * 1024)
                assert taken < 32 * 1024 * 1024

        assert resident_kb(service.pid) - before_kb < 20 * 1024


class TestLeaving:
    @pytest.mark.parametrize("last", [b"{}", b'{"type":"ping"}'], ids=["refused", "answered"])
    def test_in_the_middle_of_an_answer(self, service: Service, session_id: str, last: bytes) -> None:
        """Nobody is left to tell; that must not keep the conversation for ever."""
        for _ in range(20):
            with Frames(service.port).open(session_id) as wire:
                wire.send(frame(TEXT, last) * 40)
                quietly_reset(wire)


class TestHandshake:
    @pytest.mark.parametrize(
        "request_",
        [
            handshake("{}").replace(b"Sec-WebSocket-Key", b"X-Key"),
            handshake("{}").replace(b"dGhl", b"\xff\xfe"),
            handshake("{}", extra="Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            handshake("{}").replace(b"Version: 13", b"Version: 12"),
            handshake("{}", method="POST"),
            handshake("{}", extra="Content-Length: 5\r\n") + b"hello",
            handshake("{}", extra="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
            handshake("{}", extra="X-A: " + "a" * 9_000 + "\r\n"),
            handshake("{}", extra="".join(f"X-{number}: a\r\n" for number in range(200))),
            handshake("{}", extra='Sec-WebSocket-Protocol: ,,;="\r\n'),
            handshake("{}", extra="Upgrade: websocket\r\n"),
        ],
        ids="nokey badkey twokeys version method body chunks longline manylines protocol twice".split(),
    )
    def test_that_is_none_is_refused_in_the_envelope(
        self, service: Service, session_id: str, request_: bytes
    ) -> None:
        """And its connection is closed: none of these may hold one."""
        with Wire(service.port) as wire:
            wire.send(request_.replace(b"%7B%7D", b"{}").replace(b"{}", session_id.encode()))
            (refused,) = wire.replies()

        assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
        assert refused.body["error"]["details"]["errors"][0]["field"] == "Upgrade"
        assert refused.headers["connection"] == "close"

    def test_is_told_of_an_end_before_its_answer(self, service: Service, session_id: str) -> None:
        """A client that leaves, or says goodbye, in the middle of the handshake crashes nothing."""
        for number in range(40):
            with Wire(service.port) as wire:
                wire.send(handshake(session_id))
                if number % 2:
                    wire.send(GOODBYE)
                    wire.end()
                    wire.rest()
                else:
                    quietly_reset(wire)

        service.assert_no_bug_logged()


def resident_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
