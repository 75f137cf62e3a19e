"""Where keys are read from, environment and file: what is refused there, and what a changed file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sessions_api.access.keyring import FILE_BYTES
from sessions_api.errors import SettingsError
from tests.support.keyrings import GOOD, SECRET, lines, loaded


def refused(*, text: str = "", path: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(text=text, path=path)
    return caught.value.problems


def write(path: Path, text: str) -> None:
    """Put another file in the place of *path*, as editors and tools do: the next look sees a change."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o600)
    beside.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


class TestLoad:
    def test_without_sources_there_are_no_keys(self) -> None:
        keyring = loaded()

        assert not keyring.is_configured
        assert keyring.keys() == ()

    @pytest.mark.parametrize("between", ["\n", ";", " ; ", ";\n"])
    def test_lines_in_the_environment_end_with_a_semicolon_too(self, between: str) -> None:
        written, _ = lines(3)

        assert len(loaded(text=between.join(written)).keys()) == 3

    def test_takes_the_keys_of_both_sources(self, file: Path) -> None:
        written, credentials = lines(2)
        write(file, written[0] + "\n")

        keyring = loaded(text=written[1], path=file)

        assert keyring.is_configured
        assert all(map(keyring.find, credentials))

    def test_names_the_problems_of_both_sources(self, file: Path) -> None:
        write(file, f"{GOOD}\nbad\n")

        environment, own = refused(text="worse", path=file)

        assert environment.startswith("SESSIONS_KEYS, line 1: ")
        assert own.startswith(f"SESSIONS_KEYS_FILE={file}, line 2: ")

    def test_refuses_an_id_that_both_sources_have(self, file: Path) -> None:
        write(file, GOOD)

        assert refused(text=GOOD, path=file) == [
            f"SESSIONS_KEYS_FILE={file}: the id key1 is in SESSIONS_KEYS too"
        ]

    def test_refuses_a_file_that_is_not_there(self, file: Path) -> None:
        assert refused(path=file) == [f"SESSIONS_KEYS_FILE={file}: cannot be read: No such file or directory"]

    def test_refuses_what_is_no_file(self, file: Path, tmp_path: Path) -> None:
        """A pipe would be waited for, and could not be read a second time."""
        os.mkfifo(file)

        assert refused(path=file) == [f"SESSIONS_KEYS_FILE={file}: is no file"]
        assert refused(path=tmp_path) == [f"SESSIONS_KEYS_FILE={tmp_path}: is no file"]

    def test_refuses_a_link_to_itself(self, file: Path) -> None:
        file.symlink_to(file)

        assert refused(path=file) == [
            f"SESSIONS_KEYS_FILE={file}: cannot be read: Too many levels of symbolic links"
        ]

    def test_refuses_a_file_that_others_may_write(self, file: Path) -> None:
        """Whoever writes it makes themselves an admin."""
        write(file, GOOD)
        file.chmod(0o602)

        (problem,) = refused(path=file)

        assert "everybody may write it (mode 602)" in problem
        assert "chmod 600" in problem

    @pytest.mark.parametrize("mode, warnings", [(0o600, []), (0o660, []), (0o644, ["644"])])
    def test_warns_of_a_file_that_others_may_read(self, file: Path, mode: int, warnings: list[str]) -> None:
        """No secret can be read there, but who calls and what they may do."""
        write(file, GOOD)
        file.chmod(mode)

        with capture_logs() as logs:
            loaded(path=file)

        assert [(entry["event"], entry["mode"]) for entry in logs] == [
            ("keys_file_left_readable", each) for each in warnings
        ]

    def test_refuses_a_file_without_an_end(self, file: Path) -> None:
        write(file, "#" * FILE_BYTES)
        assert loaded(path=file).keys() == ()

        write(file, "#" * (FILE_BYTES + 1))
        assert refused(path=file) == [
            f"SESSIONS_KEYS_FILE={file}: is too large; allowed are {FILE_BYTES} bytes"
        ]

    def test_refuses_what_is_no_text(self, file: Path) -> None:
        file.write_bytes(b"\xff\xfe")

        assert refused(path=file) == [f"SESSIONS_KEYS_FILE={file}: is no UTF-8"]

    def test_one_that_is_refused_leaves_the_keys_as_they_were(self, file: Path) -> None:
        write(file, GOOD)
        keyring = loaded(path=file)
        write(file, "bad")

        with pytest.raises(SettingsError):
            keyring.load()

        assert keyring.find(f"key1.{SECRET}") is not None


class TestRefresh:
    def test_of_keys_without_a_file_does_nothing(self) -> None:
        keyring = loaded(text=GOOD)

        assert keyring.refresh() is False
        assert keyring.find(f"key1.{SECRET}") is not None

    def test_of_an_unchanged_file_does_nothing(self, file: Path) -> None:
        write(file, GOOD)
        keyring = loaded(path=file)

        assert keyring.refresh() is False

    def test_takes_new_keys_and_drops_old_ones(self, file: Path) -> None:
        (old, new), credentials = lines(2)
        write(file, old)
        keyring = loaded(path=file)

        write(file, new)

        assert keyring.refresh() is True
        assert [keyring.find(each) is not None for each in credentials] == [False, True]
        assert keyring.refresh() is False

    def test_sees_a_line_that_is_added_in_place(self, file: Path) -> None:
        written, credentials = lines(2)
        write(file, f"{written[0]}\n")
        keyring = loaded(path=file)

        with file.open("a") as end:
            end.write(f"{written[1]}\n")

        assert keyring.refresh() is True
        assert all(map(keyring.find, credentials))

    def test_sees_a_link_that_leads_elsewhere(self, file: Path, tmp_path: Path) -> None:
        """Kubernetes changes a mounted secret so."""
        written, credentials = lines(2)
        for number, line in enumerate(written):
            write(tmp_path / f"v{number}", line)
        file.symlink_to(tmp_path / "v0")
        keyring = loaded(path=file)

        link = tmp_path / "link"
        link.symlink_to(tmp_path / "v1")
        link.replace(file)

        assert keyring.refresh() is True
        assert [keyring.find(each) is not None for each in credentials] == [False, True]

    def test_is_false_where_only_comments_and_order_changed(self, file: Path) -> None:
        written, _ = lines(2)
        write(file, "\n".join(written))
        keyring = loaded(path=file)

        write(file, "# the same\n" + "\n".join(reversed(written)))

        assert keyring.refresh() is False

    def test_leaves_the_keys_of_the_environment(self, file: Path) -> None:
        written, credentials = lines(3)
        write(file, written[0])
        keyring = loaded(text=written[2], path=file)

        write(file, written[1])

        assert keyring.refresh() is True
        assert [keyring.find(each) is not None for each in credentials] == [False, True, True]

    def test_of_a_bad_file_keeps_the_keys_and_says_so_once(self, file: Path) -> None:
        """A slip of an editor locks nobody out, and does not fill the log."""
        written, credentials = lines(2)
        write(file, written[0])
        keyring = loaded(path=file)

        write(file, f"{written[1]}\nkey1 shop app {SECRET}\n")
        with capture_logs() as logs:
            assert [keyring.refresh() for _ in range(3)] == [False, False, False]

        assert [keyring.find(each) is not None for each in credentials] == [True, False]
        (entry,) = logs
        assert (entry["event"], entry["log_level"], entry["count"]) == ("keys_not_reloaded", "warning", 1)
        assert entry["problems"][0].startswith(f"SESSIONS_KEYS_FILE={file}, line 2: key key1: a secret")
        assert SECRET not in str(entry)

        write(file, written[1])
        assert keyring.refresh() is True

    def test_says_so_again_after_another_bad_change(self, file: Path) -> None:
        write(file, GOOD)
        keyring = loaded(path=file)

        with capture_logs() as logs:
            for text in ("bad", "bad too"):
                write(file, text)
                assert keyring.refresh() is False

        assert [entry["event"] for entry in logs] == ["keys_not_reloaded"] * 2

    def test_logs_twenty_problems_of_many(self, file: Path) -> None:
        write(file, GOOD)
        keyring = loaded(path=file)
        write(file, "bad\n" * 1000)

        with capture_logs() as logs:
            keyring.refresh()

        assert (len(logs[0]["problems"]), logs[0]["count"]) == (20, 1000)

    def test_of_a_missing_file_keeps_the_keys_until_it_is_back(self, file: Path) -> None:
        written, credentials = lines(2)
        write(file, written[0])
        keyring = loaded(path=file)

        file.unlink()
        with capture_logs() as logs:
            assert [keyring.refresh() for _ in range(3)] == [False, False, False]

        assert keyring.find(credentials[0]) is not None
        assert [entry["event"] for entry in logs] == ["keys_not_reloaded"]
        write(file, written[1])
        assert keyring.refresh() is True

    def test_takes_a_refused_file_once_its_mode_is_put_right(self, file: Path) -> None:
        """A new mode leaves size and modification time as they are."""
        written, credentials = lines(2)
        write(file, written[0])
        keyring = loaded(path=file)
        write(file, f"{written[1]}\n")
        file.chmod(0o666)
        with capture_logs():
            assert keyring.refresh() is False

        file.chmod(0o600)

        assert keyring.refresh() is True
        assert keyring.find(credentials[1]) is not None

    @pytest.mark.parametrize("text", ["", "# nobody\n"])
    def test_of_an_emptied_file_lets_nobody_in(self, file: Path, text: str) -> None:
        """Without keys the service is open to its own machine; a file that lost its keys must not open it."""
        write(file, GOOD)
        keyring = loaded(path=file)

        write(file, text)

        assert keyring.refresh() is True
        assert keyring.keys() == ()
        assert keyring.find(f"key1.{SECRET}") is None
        assert keyring.is_configured

    def test_of_the_first_key_closes_the_service(self, file: Path) -> None:
        write(file, "# none yet\n")
        keyring = loaded(path=file)
        assert not keyring.is_configured

        write(file, GOOD)

        assert keyring.refresh() is True
        assert keyring.is_configured
