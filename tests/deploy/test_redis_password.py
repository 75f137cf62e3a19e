"""REDIS_PASSWORD_FILE: the password of Redis from a file, whatever the topology and the characters."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sessions_api.errors import SettingsError
from sessions_api.settings import Settings

PASSWORD = "p/a:s?s#w@%ö+d"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "redis_password"
    path.write_text(PASSWORD + "\n")
    return path


def told(url: str, path: Path | str) -> str:
    return Settings.from_env({"REDIS_URL": url, "REDIS_PASSWORD_FILE": str(path)}).redis_url


class TestAPasswordFromAFile:
    @pytest.mark.parametrize(
        "before, behind",
        [
            ("redis://sessions", "redis:6379/0"),
            ("rediss://sessions", "redis:6379/0?ssl_ca_certs=/ca.pem"),
            ("redis+sentinel://sessions", "one:26379,two:26379/sessions/0"),
            ("redis+cluster://sessions", "one:6379,two:6379"),
            ("unix://sessions", "/run/redis.sock?db=0"),
        ],
    )
    def test_stands_in_any_address(self, file: Path, before: str, behind: str) -> None:
        """Encoded, and everything around it as it was."""
        url = told(f"{before}@{behind}", file)

        assert url.startswith(f"{before}:")
        assert url.endswith(f"@{behind}")
        assert unquote(urlsplit(url).netloc.rpartition("@")[0].partition(":")[2]) == PASSWORD

    def test_may_be_of_the_user_without_a_name(self, file: Path) -> None:
        assert urlsplit(told("redis://redis:6379/0", file)).username == ""

    @pytest.mark.parametrize(
        "url, fault",
        [("", "names no server"), ("redis://sessions:other@redis", "has a password already")],
    )
    def test_belongs_to_an_address_without_one(self, file: Path, url: str, fault: str) -> None:
        with pytest.raises(SettingsError, match=fault) as caught:
            told(url, file)

        assert "other" not in str(caught.value)
        assert PASSWORD not in str(caught.value)

    @pytest.mark.parametrize("content, fault", [(b"\n", "is empty"), (b"\xff\xfe", "no text")])
    def test_is_text(self, tmp_path: Path, content: bytes, fault: str) -> None:
        (tmp_path / "password").write_bytes(content)

        with pytest.raises(SettingsError, match=fault):
            told("redis://sessions@redis", tmp_path / "password")

    def test_that_is_not_there_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="No such file"):
            told("redis://sessions@redis", tmp_path / "nowhere")
