"""Access keys: how one is made, written down, read and recognised.

A key is ``id.secret``. Written down is one line for each, in a file
(``SESSIONS_KEYS_FILE``), in the environment (``SESSIONS_KEYS``, where ``;`` also
ends a line) or in both::

    <id> <app> <scope>[,<scope>…] sha256:<64 hex digits>    # comment

The digest is plain SHA-256. A slow hash guards what people make up, by making
guesses dear; a secret here is 256 random bits, which nobody guesses at any
speed, and a slow hash would make every request pay.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
import string
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from sessions_api.domain.access import Caller, key_caller
from sessions_api.domain.ids import AppName, is_uuid
from sessions_api.errors import SettingsError

ID_FORM: Final = "4 to 32 of a-z and 0-9"
APP_FORM: Final = "1 to 32 of a-z, 0-9 and -"
SCOPE_FORM: Final = "admin, app or agent:<agentId>, which is a UUID"
LINE_FORM: Final = "ID APP SCOPE[,SCOPE…] sha256:HASH, as `sessions-api keys new` makes it"
FILE_BYTES: Final = 1_048_576
"""A file of keys has no more: some 8000 of them."""

_ID_CHARS: Final = string.ascii_lowercase + string.digits
_ID: Final = re.compile(r"[a-z0-9]{4,32}")
_APP: Final = re.compile(r"[a-z0-9-]{1,32}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_CREDENTIAL: Final = re.compile(r"([a-z0-9]{4,32})\.([A-Za-z0-9_-]{43})")
_CREDENTIAL_CHARS: Final = 32 + 1 + 43
_SECRET_FOR_DIGEST: Final = re.compile(r"(sha256:)?([a-z0-9]{4,32}\.)?[A-Za-z0-9_-]{43}")
_NOBODYS_DIGEST: Final = secrets.token_bytes(32)
_LOGGED_PROBLEMS: Final = 20

log = structlog.get_logger(__name__)


class Key(msgspec.Struct, frozen=True):
    """One access key, without its secret; *caller* is who shows it."""

    id: str
    app: AppName
    scopes: frozenset[str]
    digest: bytes
    caller: Caller

    def __repr__(self) -> str:
        """Without the digest: a key may stand in a log or a traceback."""
        return f"Key({self.id!r})"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def app_named(text: str) -> AppName:
    """An application's name.

    Raises:
        ValueError: says what is allowed, not what came.
    """
    if _APP.fullmatch(text) is None:
        raise ValueError(f"an app is {APP_FORM}")
    return AppName(text)


def scope_named(text: str) -> str:
    """A scope, an agent's id in lower case.

    Raises:
        ValueError: says what is allowed, not what came.
    """
    if text in {"admin", "app"}:
        return text
    if not text.startswith("agent:") or not is_uuid(text.removeprefix("agent:")):
        raise ValueError(f"a scope is {SCOPE_FORM}")
    return text.lower()


def mint(app: str, scopes: Iterable[str]) -> tuple[str, str]:
    """A new key: the line to write down, and the key itself, which is nowhere else.

    Raises:
        ValueError: no scopes, or a name that :func:`parse` would refuse.
    """
    words = sorted({scope_named(scope) for scope in scopes})
    if not words:
        raise ValueError("a key without scopes opens nothing")
    key_id = "".join(secrets.choice(_ID_CHARS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    line = f"{key_id} {app_named(app)} {','.join(words)} sha256:{_digest(secret).hex()}"
    return line, f"{key_id}.{secret}"


def parse(text: str, *, where: str) -> list[Key]:
    """The keys of *text*; *where* it is from begins each problem.

    Raises:
        SettingsError: names every bad line. Of what stands there only an id is
            shown: any other word may be a secret in the wrong place.
    """
    keys: list[Key] = []
    problems: list[str] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key_of(words)
        except ValueError as error:
            problems.append(f"{where}, line {number}: {error}")
            continue
        first = lines_of.setdefault(key.id, number)
        if first != number:
            problems.append(f"{where}, line {number}: the id {key.id} is that of line {first} too")
        keys.append(key)
    if problems:
        raise SettingsError(problems)
    return keys


class Keyring:
    """The keys of this replica; the file's may change while it runs."""

    def __init__(self, *, text: str = "", path: Path | None = None) -> None:
        self.is_configured = False
        """Whether there ever was a key: a file that lost its last one lets nobody in, not everybody."""
        self.uses: dict[str, int] = {}
        """By id, when a key was last used since :meth:`take_uses`: milliseconds of this machine's clock."""
        self._text = text
        self._path = path
        self._keys: dict[str, Key] = {}
        self._stamp: tuple[int, ...] = ()

    def load(self) -> None:
        """Read both sources anew; the keys stay what they are where one is refused.

        Raises:
            SettingsError: names every bad line, an id that both have, or why the
                file cannot be used. One that others may write is refused.
        """
        self._stamp = _stamp(self._path)  # before reading: a change meanwhile is seen by the next refresh
        keys: dict[str, Key] = {}
        problems: list[str] = []
        for read in (self._of_environment, self._of_file):
            try:
                found = read()
            except SettingsError as error:
                problems += error.problems
                continue
            problems += [
                f"SESSIONS_KEYS_FILE={self._path}: the id {key.id} is in SESSIONS_KEYS too"
                for key in found
                if key.id in keys
            ]
            keys |= {key.id: key for key in found}
        if problems:
            raise SettingsError(problems)
        self._keys = keys
        self.is_configured = self.is_configured or bool(keys)

    def refresh(self) -> bool:
        """Read again if the file has changed; True if the keys have. One ``stat`` where nothing did.

        A file that is missing or bad changes nothing and is logged, once.
        """
        if _stamp(self._path) == self._stamp:
            return False
        before = self._keys
        try:
            self.load()
        except SettingsError as error:
            problems = error.problems
            log.warning("keys_not_reloaded", problems=problems[:_LOGGED_PROBLEMS], count=len(problems))
            return False
        if self._keys == before:
            return False
        log.info("keys_reloaded", keys=len(self._keys))
        return True

    def find(self, credential: str | bytes) -> Key | None:
        """The key that *credential* is, or None; never an exception.

        How long it takes tells nothing of a secret: digests are compared in
        constant time, and for an unknown id one is compared as well.
        """
        if len(credential) > _CREDENTIAL_CHARS:
            return None
        text = credential if isinstance(credential, str) else credential.decode("latin-1")
        match = _CREDENTIAL.fullmatch(text)
        if match is None:
            return None
        key = self._keys.get(match[1])
        is_equal = hmac.compare_digest(_digest(match[2]), _NOBODYS_DIGEST if key is None else key.digest)
        if key is None or not is_equal:
            return None
        self.uses[key.id] = time.time_ns() // 1_000_000
        return key

    def keys(self) -> tuple[Key, ...]:
        return tuple(self._keys.values())

    @property
    def apps(self) -> frozenset[AppName]:
        """The applications that have a key."""
        return frozenset(key.app for key in self.keys())

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(key.id for key in self.keys())

    def take_uses(self) -> dict[str, int]:
        """:attr:`uses`, which begins anew."""
        taken, self.uses = self.uses, {}
        return taken

    def _of_environment(self) -> list[Key]:
        return parse(self._text.replace(";", "\n"), where="SESSIONS_KEYS")

    def _of_file(self) -> list[Key]:
        if self._path is None:
            return []
        return parse(_read(self._path), where=f"SESSIONS_KEYS_FILE={self._path}")


def _key_of(words: list[str]) -> Key:
    """The key of one line's *words*.

    Raises:
        ValueError: what is wrong and what is allowed.
    """
    if _CREDENTIAL.fullmatch(words[0]) is not None:
        raise ValueError(f"it is a key with its secret; a line is {LINE_FORM}")
    if len(words) != 4:
        raise ValueError(f"it has {len(words)} words; a line is {LINE_FORM}")
    key_id, app, scopes, digest = words
    if not is_id(key_id):
        raise ValueError(f"its first word is no id: an id is {ID_FORM}")
    try:
        name = app_named(app)
        named = frozenset(scope_named(scope) for scope in scopes.split(","))
        return Key(key_id, name, named, _digest_named(digest), key_caller(name, named, name=key_id))
    except ValueError as error:
        raise ValueError(f"key {key_id}: {error}") from error


def _digest_named(text: str) -> bytes:
    match = _DIGEST.fullmatch(text)
    if match is not None:
        return bytes.fromhex(match[1])
    if _SECRET_FOR_DIGEST.fullmatch(text) is not None:
        raise ValueError(
            "a secret is in the place of its hash. Whoever saw this line knows it: "
            "make another key with `sessions-api keys new`"
        )
    raise ValueError("a hash is sha256: and the 64 hex digits of the secret's SHA-256")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _stamp(path: Path | None) -> tuple[int, ...]:
    """What differs after a change; also of mode or owner, which may make a refused file a good one."""
    if path is None:
        return ()
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    except ValueError:  # a NUL in its name
        return (0,)
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> str:
    """The text of a file of keys.

    Raises:
        SettingsError: it cannot be read, is something else, or others may write it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise _refused(path, "is no file")
        if mode & stat.S_IWOTH:
            raise _refused(
                path, f"everybody may write it (mode {mode & 0o777:o}) and let themselves in; chmod 600 it"
            )
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise _refused(path, f"is too large; allowed are {FILE_BYTES} bytes")
        text = content.decode()
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _refused(path, "is no UTF-8") from error
    except ValueError as error:
        raise _refused(path, "is no name of a file") from error
    if mode & stat.S_IROTH:
        log.warning("keys_file_left_readable", path=str(path), mode=f"{mode & 0o777:o}")
    return text


def _refused(path: Path, why: str) -> SettingsError:
    return SettingsError([f"SESSIONS_KEYS_FILE={path}: {why}"])
