"""Make access keys, list those of a running service, remove one from a file.

    sessions-api keys new --app shop --scope app
    sessions-api keys new --app shop --scope agent:ID --file keys.txt
    sessions-api keys ls
    sessions-api keys rm ID --file keys.txt

A key opens what its scopes say: `app`, all that belongs to the application;
`agent:ID`, the turns and sessions of one agent; `admin`, everything. Several keys
may name one application: make the new one, let its users change over, remove the old.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sessions_api.access import keyring
from sessions_api.cli import service
from sessions_api.cli.errors import CommandError
from sessions_api.cli.terminal import clean, print_table

COLUMNS = ("ID", "APP", "SCOPES", "LAST USED")
KEYS = "/api/keys"


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="new | ls | rm", title="verbs")
    new = verbs.add_parser("new", help="make a key", description=_new.__doc__)
    ls = verbs.add_parser("ls", help="the keys of a running service", description=_list.__doc__)
    rm = verbs.add_parser("rm", help="remove a key from a file", description=_remove.__doc__)
    for verb, act in ((new, _new), (ls, _list), (rm, _remove)):
        verb.set_defaults(act=act)
    new.add_argument(
        "--app", required=True, type=_app, metavar="NAME", help=f"whose it is: {keyring.APP_FORM}"
    )
    new.add_argument(
        "--scope",
        required=True,
        type=_scope,
        action="append",
        metavar="SCOPE",
        help=f"what it opens, repeatable: {keyring.SCOPE_FORM}",
    )
    service.arguments(ls)
    ls.add_argument("--json", action="store_true", help="one JSON object a line, as the API sends them")
    rm.add_argument("id", metavar="ID", type=_id, help="the key's id: what stands before its dot")
    for verb in (new, rm):
        verb.add_argument("--file", type=Path, metavar="PATH", help="the file of keys (SESSIONS_KEYS_FILE)")


def run(args: argparse.Namespace) -> int:
    status: int = args.act(args)
    return status


def _new(args: argparse.Namespace) -> int:
    """Make a key. It alone goes to the output, and is shown this once.

    What is written down, to the file if there is one, holds only the hash of its secret.
    """
    line, key = keyring.mint(args.app, args.scope)
    path = _file(args)
    if path is not None:
        _append(path, line)
        told = f"key {key.partition('.')[0]} of {args.app} is written to {path}"
    else:
        told = f"write this line to the file SESSIONS_KEYS_FILE, or to SESSIONS_KEYS:\n\n    {line}\n"
    print(told, file=sys.stderr)
    print("the key, shown this once:", file=sys.stderr, flush=True)
    print(key)
    return 0


def _list(args: argparse.Namespace) -> int:
    """Every key that the service knows, and when it was last used. Asks with an admin's key."""
    found = service.Service(args).ask("GET", KEYS)["keys"]
    if args.json:
        for key in found:
            print(json.dumps(key, ensure_ascii=False))
        return 0
    print_table(COLUMNS, [_row(key) for key in found])
    if not found:
        print("no keys", file=sys.stderr)
    return 0


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    used = key.get("lastUsedAt", "-")[:19].replace("T", " ")
    return clean(key["id"]), clean(key["app"]), clean(",".join(key["scopes"])), clean(used)


def _remove(args: argparse.Namespace) -> int:
    """Remove a key from a file. A service that runs refuses it as soon as it has read the file again."""
    path = _file(args)
    if path is None:
        raise CommandError("which file? Name it with --file or SESSIONS_KEYS_FILE", status=2)
    path = path.resolve()  # a link to the file stays one
    with _held(path, os.O_RDWR) as number:
        lines = path.read_bytes().split(b"\n")
        kept = [line for line in lines if _id_of(line) != args.id.encode()]
        if len(kept) == len(lines):
            raise CommandError(f"no key {args.id} is in {path}")
        content = b"\n".join(kept)
        try:
            _replace(path, content, like=os.fstat(number))
        except PermissionError:  # the folder is another's, or the file's group one that we are not in
            _overwrite(number, content)
    print(f"key {args.id} is removed from {path}")
    if not any(map(_id_of, kept)):
        print("no key is left: a service does not start with this file and no SESSIONS_KEYS", file=sys.stderr)
    return 0


# ------------------------------------------------------------ words of the command line


def _app(text: str) -> str:
    try:
        return keyring.app_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _scope(text: str) -> str:
    try:
        return keyring.scope_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _id(text: str) -> str:
    """Refused without being shown: it may be a whole key."""
    if not keyring.is_id(text):
        raise argparse.ArgumentTypeError(f"an id is {keyring.ID_FORM}: of a key, what stands before its dot")
    return text


def _file(args: argparse.Namespace) -> Path | None:
    named = os.environ.get("SESSIONS_KEYS_FILE", "").strip()
    path: Path | None = args.file or (Path(named) if named else None)
    return path


# ------------------------------------------------------------ the file


def _id_of(line: bytes) -> bytes:
    """The first word; empty for a comment."""
    return next(iter(line.partition(b"#")[0].split()), b"")


def _append(path: Path, line: str) -> None:
    """Add *line*, on disk when this returns.

    Raises:
        CommandError: it cannot be written; the file is what it was.
        SettingsError: it has lines that the service would refuse, and with them this one.
    """
    with _held(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as number:
        before = path.read_bytes()
        keyring.parse(before.decode(errors="replace"), where=str(path))
        left = b"\n" * (before[-1:] not in {b"", b"\n"}) + line.encode() + b"\n"
        try:
            while left:
                left = left[os.write(number, left) :]
        except OSError:  # the disk is full: half a line would make the whole file a bad one
            os.ftruncate(number, len(before))
            raise
        os.fsync(number)
        _sync_folder(path)


def _replace(path: Path, content: bytes, *, like: os.stat_result) -> None:
    """Put *content* in the file's place at once, with the owner and mode of *like*."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(number, like.st_uid, like.st_gid)  # root's command must not lock the service out
            os.fchmod(number, stat.S_IMODE(like.st_mode))
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path)


def _overwrite(number: int, content: bytes) -> None:
    """Put the shorter *content* into the open file; whoever reads meanwhile may find blank lines behind it.

    Not all at once, as :func:`_replace` does: a machine that dies meanwhile may leave a mixture, which a
    service refuses to read.
    """
    size = os.fstat(number).st_size
    padded = content.ljust(size, b"\n")
    written = 0
    while written < size:
        written += os.pwrite(number, padded[written:], written)
    os.fsync(number)
    os.ftruncate(number, len(content))
    os.fsync(number)


def _sync_folder(path: Path) -> None:
    """A file's name is its folder's to keep."""
    number = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _held(path: Path, flags: int) -> Iterator[int]:
    """The file, open and locked, so that no other such command undoes what this one does.

    Raises:
        CommandError: it cannot be opened, or changed by the block.
    """
    try:
        while True:
            number = os.open(path, flags | os.O_CLOEXEC, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(number).st_mode):
                    raise CommandError(f"{path} is no file", status=2)
                fcntl.flock(number, fcntl.LOCK_EX)
                if _is_at(number, path):
                    yield number
                    return
            finally:
                os.close(number)
    except OSError as error:
        raise CommandError(f"{path} cannot be changed: {error.strerror}") from error


def _is_at(number: int, path: Path) -> bool:
    """Whether the open file still has its name; `rm` gives it to another while one waits for the lock."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
