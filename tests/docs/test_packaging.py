"""What a user installs is what the checkout runs: the wheel, the locks, the list of libraries."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "sessions_api"

# Run by the interpreter that has the wheel and not the checkout: -P and another folder keep it out.
READS = """
import sys
from importlib.resources import files
sys.path.insert(0, sys.argv[1])
package = files("sessions_api")
assert str(package).startswith(sys.argv[1]), package
for name in sys.argv[2:]:
    sys.stdout.write(package.joinpath(name).read_text(encoding="utf-8"))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    """The distribution's name as an import would spell it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    name = match[0].lower().replace("-", "_")
    return {"pyjwt": "jwt"}.get(name, name)


def pins(lock: str) -> dict[str, str]:
    """Name and version of each requirement in *lock*."""
    lines = (CHECKOUT / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split()[0].split("==") for line in lines if line[:1].isalnum())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release builds it: from the sdist, so that a file missing there is missed here."""
    out = tmp_path_factory.mktemp("dist")

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT, cwd=out)

    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's contents and nothing of the checkout."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


@pytest.mark.timeout(180)
class TestWheel:
    def test_carries_every_file_of_the_package(self, wheel: Path) -> None:
        """Scripts, pages and the typing marker ship with the modules; nothing else does."""
        here = {
            path.relative_to(CHECKOUT).as_posix()
            for path in PACKAGE.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

        with ZipFile(wheel) as archive:
            shipped = {name for name in archive.namelist() if ".dist-info/" not in name}

        assert shipped == here | {"sessions_api/examples/chat.html"}

    def test_gives_the_installed_service_its_scripts(self, installed: Path) -> None:
        """Every script reads the same from the wheel as from the checkout."""
        scripts = sorted((PACKAGE / "store" / "lua").rglob("*.lua"))
        assert scripts
        names = [script.relative_to(PACKAGE).as_posix() for script in scripts]

        read = run(sys.executable, "-P", "-c", READS, installed, *names, cwd=installed)

        assert read == "".join(script.read_text(encoding="utf-8") for script in scripts)

    def test_gives_the_installed_service_its_chat_page(self, installed: Path) -> None:
        """The page in examples/ is the one that the wheel carries."""
        page = CHECKOUT / "examples" / "chat.html"

        read = run(sys.executable, "-P", "-c", READS, installed, "examples/chat.html", cwd=installed)

        assert read == page.read_text(encoding="utf-8")

    def test_has_a_command_that_starts(self, installed: Path) -> None:
        """The installed command answers without the checkout."""
        start = (
            f"import sys; sys.path.insert(0, {str(installed)!r}); from sessions_api.cli import main; main()"
        )

        told = run(sys.executable, "-P", "-c", start, "--help", cwd=installed)

        assert "serve" in told


class TestLocks:
    @pytest.mark.parametrize(
        "smaller", ["requirements.lock", "requirements-otel.lock", "requirements-build.lock"]
    )
    def test_agree_with_each_other(self, smaller: str) -> None:
        """The tests run on the very versions that the service runs on."""
        everything = pins("requirements-dev.lock")

        assert pins(smaller).items() <= everything.items()

    def test_hold_every_dependency(self) -> None:
        """`make lock` was run after the last change of pyproject.toml's dependencies."""
        wanted = {name_of(each) for each in project()["project"]["dependencies"]}

        assert wanted <= {name_of(each) for each in pins("requirements.lock")}

    @pytest.mark.parametrize("lock", sorted(path.name for path in CHECKOUT.glob("*.lock")))
    def test_name_no_place(self, lock: str) -> None:
        """Where packages come from, and who made the lock where, is the user's own configuration."""
        text = (CHECKOUT / lock).read_text(encoding="utf-8")

        assert not re.search(r"://|index-url|find-links|^#.*/(home|root|work)/", text, re.MULTILINE)


class TestFloors:
    def test_keep_every_library_out_of_the_domain(self) -> None:
        """A new dependency is closed to the domain until someone opens it."""
        contracts = project()["tool"]["importlinter"]["contracts"]
        [domain] = [each for each in contracts if each.get("source_modules") == ["sessions_api.domain"]]
        libraries = {name_of(each) for each in project()["project"]["dependencies"]}

        assert set(domain["forbidden_modules"]) == libraries - {"msgspec"}

    def test_keep_the_service_out_of_the_agents(self) -> None:
        """An agent's process loads the SDK and httpx2; a new part or dependency is closed to it."""
        contracts = project()["tool"]["importlinter"]["contracts"]
        [sdk] = [each for each in contracts if each.get("source_modules") == ["sessions_api.sdk"]]
        libraries = {name_of(each) for each in project()["project"]["dependencies"]}
        parts = {
            path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }

        wanted = libraries - {"httpx2"} | {f"sessions_api.{part}" for part in parts - {"__init__", "sdk"}}
        assert set(sdk["forbidden_modules"]) == wanted
