"""deploy/Dockerfile makes a small image of what the locks and the package hold, and runs it as nobody."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.deploy.compose import health_command, image, image_environment, services, stages
from tests.deploy.deployed import CHECKOUT, DEPLOY


def copied() -> list[str]:
    """What the first stage takes from the checkout."""
    arguments = [shlex.split(arguments) for name, arguments in stages()[1] if name == "COPY"]
    return [source for words in arguments for source in words[:-1]]


def admitted() -> list[str]:
    """What .dockerignore lets through to the builder."""
    lines = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def pins(lock: str) -> set[tuple[str, str]]:
    """Name and version of each package in *lock*."""
    lines = (CHECKOUT / lock).read_text().splitlines()
    found = [line.split()[0].partition("==") for line in lines if line[:1].isalnum()]
    return {(name, version) for name, _, version in found}


def installs() -> list[str]:
    """Every call of pip."""
    runs = [arguments for stage in stages() for name, arguments in stage if name == "RUN"]
    return [part.strip() for run in runs for part in run.split("&&") if part.strip().startswith("pip ")]


class TestTheFile:
    def test_passes_the_linter(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")

        linted = subprocess.run(
            [hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
        )

        assert linted.returncode == 0, linted.stdout + linted.stderr

    def test_takes_what_it_needs_and_nothing_else(self) -> None:
        """The builder is sent what is copied: no .git, no secret, no test."""
        assert sorted(copied()) == sorted(admitted())
        assert [source for source in copied() if not (CHECKOUT / source).exists()] == []
        assert not [source for source in copied() if fnmatch.fnmatch("deploy/secrets/x", f"{source}*")]

    def test_installs_only_what_a_lock_has_a_hash_for(self) -> None:
        """What pip may ask an index for is in a lock; our own package comes from the checkout."""
        for install in installs():
            from_lock = {"--require-hashes", "--no-deps", "-r"} <= set(install.split())
            of_ours = "--no-deps" in install and (
                "--no-index" in install or "--no-build-isolation" in install
            )
            assert from_lock or of_ours, install

    def test_can_have_opentelemetry_in_it(self) -> None:
        """By the argument in docs/tracing.md: a lock of all that the usual one has, and the extra `otel`."""
        [argument] = [arguments for name, arguments in stages()[1] if name == "ARG"]
        assert argument == "LOCK=requirements.lock"
        assert [install for install in installs() if '-r "${LOCK}"' in install]
        [named] = set(re.findall(r"LOCK=(\S+-\S+\.lock)", (CHECKOUT / "docs" / "tracing.md").read_text()))
        assert named in copied()

        usual, traced = pins("requirements.lock"), pins(named)
        extra = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
            "otel"
        ]
        assert usual < traced
        names = {name for name, _ in traced - usual}
        assert {re.split("[<>=]", each)[0] for each in extra} <= names

    def test_is_built_and_run_on_one_python_that_can_be_pinned(self) -> None:
        """A tag that names a version, which an argument replaces by a digest."""
        [argument] = [arguments for name, arguments in stages()[0] if name == "ARG"]
        assert argument == "PYTHON=python:3.11-slim-bookworm"

        froms = [stage[0][1].split()[0] for stage in stages()[1:]]
        assert froms == ["${PYTHON}", "${PYTHON}"]

    def test_builds_the_package_from_that_alone(self, tmp_path: Path) -> None:
        """The builder's own command, on what it is sent, makes the wheel with every file of the package."""
        for source in copied():
            target = tmp_path / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (CHECKOUT / source).is_dir():
                shutil.copytree(CHECKOUT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(CHECKOUT / source, target)
        [build] = [install for install in installs() if install.startswith("pip wheel")]

        built = subprocess.run(
            [sys.executable, "-m", *shlex.split(build)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert built.returncode == 0, built.stderr
        [wheel] = (tmp_path / "wheels").glob("*.whl")
        with ZipFile(wheel) as archive:
            shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        modules = (path for path in (tmp_path / "sessions_api").rglob("*") if path.is_file())
        ours = {path.relative_to(tmp_path).as_posix() for path in modules}
        assert shipped == ours | {"sessions_api/examples/chat.html"}


class TestTheImage:
    def test_runs_as_nobody(self) -> None:
        """By number, which an orchestrator can tell from root; the compose file says the same."""
        user, _, group = image()["USER"].partition(":")

        assert user.isdecimal()
        assert group.isdecimal()
        assert int(user) > 1000
        assert services()["api-1"]["user"] == image()["USER"]

    def test_needs_no_shell(self) -> None:
        assert json.loads(image()["ENTRYPOINT"]) == ["sessions-api"]
        assert json.loads(image()["CMD"]) == ["serve"]
        assert health_command()[0] == "python"

    def test_says_its_port(self) -> None:
        """The port that the balancer asks, and that the service takes by itself."""
        assert image()["EXPOSE"] == "3000"
        assert f"api-1:{image()['EXPOSE']}\n" in (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
        assert "PORT" not in image_environment().keys() | services()["api-1"]["environment"].keys()


@pytest.mark.parametrize(
    "secret", ["deploy/secrets/redis_password", ".git/config", ".env", "tests/conftest.py"]
)
def test_an_image_cannot_hold(secret: str) -> None:
    """Whatever lies about in the checkout stays there."""
    assert not [source for source in admitted() if secret.startswith(source)]
