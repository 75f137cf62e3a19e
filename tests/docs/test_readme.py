"""The README's first minute and a worker's turn by hand, run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.commands import RunningService, clean_environment

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
        script, promised = first_minute(Path("docs/api.md"))
        assert ADDRESS in script

        with RunningService(tmp_path) as service:
            printed = run(script.replace(ADDRESS, service.url), tmp_path)

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
