"""What the README and docs/api.md say to type, run as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sessions_api.access.keyring import mint
from tests.support.commands import RunningService, clean_environment
from tests.support.ports import free_port

README = Path("README.md")
ADDRESS = "http://127.0.0.1:3000"

pytestmark = pytest.mark.timeout(120)


def first_minute(page: Path = README, *, heading: str = "") -> tuple[str, str]:
    """The commands that a newcomer copies, and the output that is promised."""
    text = page.read_text()
    found = re.search(
        r"<!-- tests/docs/test_readme.py .*?-->\n```sh\n(.*?)```\n\n```\n(.*?)```",
        text[text.index(heading) :],
        re.DOTALL,
    )
    assert found is not None
    return found[1], found[2]


def run(script: str, folder: Path | None = None, *, env: Mapping[str, str] | None = None) -> str:
    shell = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
        env=env,
    )
    return shell.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
class TestFirstMinute:
    def test_prints_what_the_readme_says(self, tmp_path: Path) -> None:
        script, promised = first_minute()
        assert ADDRESS in script

        with RunningService(tmp_path) as service:
            printed = run(script.replace(ADDRESS, service.url))

        assert printed == promised

    def test_the_lines_that_dev_prints_work_as_they_stand(self, tmp_path: Path) -> None:
        with RunningService(tmp_path) as service:
            banner = service.out()
            lines = [line for line in banner.split("\n\n") if "curl" in line or "SESSION=" in line]
            script = "\n".join(lines).replace("curl -N", "curl -N -m 1")

            printed = run(script)

        assert '"text":"echo: hello there"' in printed
        assert printed.count("event: message.created") == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
class TestWorkerByHand:
    def test_prints_what_the_page_says(self, tmp_path: Path) -> None:
        """docs/api.md shows the workers' protocol with nothing but curl."""
        script, promised = first_minute(Path("docs/api.md"), heading="## Workers")
        assert ADDRESS in script

        with RunningService(tmp_path) as service:
            printed = run(script.replace(ADDRESS, service.url), tmp_path)

        assert printed == promised


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
class TestAccess:
    def test_on_a_network_it_prints_what_the_readme_says(self, tmp_path: Path) -> None:
        """Here it stays on this machine: only the address to listen on is another."""
        script, promised = first_minute(heading="## Put it on a network")
        port = free_port()
        here = {ADDRESS: f"http://127.0.0.1:{port}", "HOST=0.0.0.0": f"HOST=127.0.0.1 PORT={port}"}
        for written, meant in {**here, ".venv/bin/": f"{Path(sys.executable).parent}/"}.items():
            assert written in script
            script = script.replace(written, meant)

        printed = run(script + "\nkill $!; wait", tmp_path, env=clean_environment({}))

        assert printed == promised

    def test_of_a_page_by_token_prints_what_the_api_says(self, tmp_path: Path) -> None:
        script, promised = first_minute(Path("docs/api.md"), heading="## Access")
        assert ADDRESS in script
        line, key = mint("shop", ["app"])

        with RunningService(tmp_path, env={"SESSIONS_KEYS": line}) as service:
            printed = run(script.replace(ADDRESS, service.url), env=clean_environment({"KEY": key}))

        assert printed == promised


class TestAnAgentOfYours:
    def test_answers_when_both_lines_are_pasted_at_once(self, tmp_path: Path) -> None:
        """The chat waits for the worker that the line before has only just started."""
        script, promised = first_minute(heading="## An agent of yours")

        with RunningService(tmp_path) as service:
            printed = run(
                script.replace(".venv/bin/", f"{Path(sys.executable).parent}/") + "\nkill $!; wait",
                env=clean_environment({"SESSIONS_URL": service.url}),
            )

        assert printed.rstrip(" \n") == promised.rstrip()


class TestLinks:
    @pytest.mark.parametrize("page", [README, *sorted(Path("docs").rglob("*.md"))], ids=str)
    def test_lead_to_files_that_exist(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), target
