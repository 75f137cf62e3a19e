"""The terminal of ``chat``: what others say appears above the line that is being typed.

:class:`Screen` is for a terminal, :class:`Paper` for a pipe or a file. Input is
read by a thread, since a terminal's line cannot be awaited.
"""

from __future__ import annotations

import asyncio
import os
import readline
import shutil
import sys
import termios
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sessions_api.cli.terminal import clean

NAMES = {"agent": "\x1b[36magent\x1b[0m", "you": "\x1b[32myou\x1b[0m"}


class Screen:
    """A terminal with a prompt at its last line; what is being typed survives everything printed."""

    is_terminal = True

    def __init__(self) -> None:
        self._prompt = ""
        self._is_reading = False
        self._in_answer = False

    def prompt(self, text: str) -> None:
        """Show *text* in front of the line being typed, without touching the line."""
        changed, self._prompt = text != self._prompt, text
        if self._is_reading and not self._in_answer and changed:
            typed = readline.get_line_buffer()
            if len(text) + len(typed) < shutil.get_terminal_size().columns:  # on one row, so \r is its start
                self._write(f"\x1b7\r{text}\x1b8" if typed else f"\r\x1b[K{text}")

    def remark(self, text: str) -> None:
        """Something about the conversation, not of it."""
        self._above(f"\x1b[2m· {clean(text)}\x1b[0m")

    def line(self, who: str, text: str) -> None:
        self._above(f"{NAMES[who]}  {clean(text)}")

    def begin_answer(self, who: str) -> None:
        self._write(f"\r\x1b[K{NAMES[who]}  ")
        self._in_answer = True

    def more(self, text: str) -> None:
        self._write(text)

    def end_answer(self, note: str) -> None:
        self._in_answer = False
        self._write(f"{note}\n{self._line()}")

    def read(self) -> str | None:
        """The next line; None at the end of the input. Blocks: for the reader's thread."""
        self._is_reading = True
        try:
            return input(self._prompt)
        except EOFError:
            self._write("\n")
            return None
        finally:
            self._is_reading = False

    def _above(self, text: str) -> None:
        self._write(f"\n{text}\n" if self._in_answer else f"\r\x1b[K{text}\n{self._line()}")

    def _line(self) -> str:
        return self._prompt + readline.get_line_buffer() if self._is_reading else ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Paper:
    """Plain lines: answers on stdout, everything else on stderr."""

    is_terminal = False

    def prompt(self, text: str) -> None:
        """Nobody is there to be prompted."""

    def remark(self, text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    def line(self, who: str, text: str) -> None:
        print(clean(text) if who == "agent" else f"{who}: {clean(text)}", flush=True)

    def begin_answer(self, who: str) -> None:
        """An answer's text begins at the line's start."""

    def more(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def end_answer(self, note: str) -> None:
        print(note, flush=True)

    def read(self) -> str | None:
        """The next line; None at the end of the input. Blocks: for the reader's thread."""
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None


@contextmanager
def open_screen() -> Iterator[Screen | Paper]:
    """The right one of the two; a terminal gets its settings back, whatever the reader was doing."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Paper()
        return
    settings = termios.tcgetattr(sys.stdin)
    try:
        yield Screen()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        os.write(sys.stdout.fileno(), b"\n")


class Lines:
    """What is typed, line by line. A line is read only when the one before was taken."""

    def __init__(self, screen: Screen | Paper) -> None:
        self._screen = screen
        self._first: deque[str] = deque()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_over = False

    def start(self) -> None:
        """Begin to read; a daemon, since nothing ends a thread that waits for a key."""
        threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True).start()

    def put_back(self, lines: Sequence[str]) -> None:
        """Lines that are to come again, first."""
        self._first.extend(lines)

    async def next(self) -> str | None:
        """The next line, or None when there are no more."""
        if self._first:
            return self._first.popleft()
        if self._is_over:
            return None
        line = await self._queue.get()
        self._is_over = line is None
        return line

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        line: str | None = ""
        while line is not None:
            line = self._screen.read()
            try:
                loop.call_soon_threadsafe(self._queue.put_nowait, line)
            except RuntimeError:  # the chat is over
                return
