"""docs/performance.md and its plots show the published figures: `make bench-report` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import page, plots
from bench.figures import PUBLISHED, read

ROOT = Path(__file__).parents[2]


class TestPage:
    def test_has_the_published_figures(self) -> None:
        """Every table says what published.json says."""
        text = page.PAGE.read_text()

        assert page.filled(text, read(PUBLISHED)) == text

    def test_says_so_where_a_part_was_never_published(self) -> None:
        text = "<!-- figures: growth -->\nold\n<!-- end -->"

        assert "Not published yet: `python -m bench --only growth`" in page.filled(text, {})

    def test_has_a_place_for_every_published_part(self) -> None:
        assert read(PUBLISHED).keys() <= set(re.findall(r"<!-- figures: (\w+) -->", page.PAGE.read_text()))


class TestPlots:
    def test_are_those_of_the_published_figures(self) -> None:
        """A picture carries the digest of the data it was made from: `make bench-report` was run since."""
        shown = plots.shown(read(PUBLISHED))
        assert shown

        drawn = {path.stem: plots.digest_in(path.read_text()) for path in plots.FOLDER.glob("*.svg")}

        assert drawn == {name: plots.digest(data) for name, (_, data) in shown.items()}

    def test_are_all_on_the_page(self) -> None:
        named = re.findall(r"!\[[^\]]+\]\(performance/([\w-]+)\.svg\)", page.PAGE.read_text())

        assert sorted(named) == sorted(plots.shown(read(PUBLISHED)))

    def test_have_another_digest_once_a_figure_changes(self) -> None:
        _, data = plots.shown(read(PUBLISHED))["scripts"]
        changed = {**data, "append": [data["append"][0] + 0.01, data["append"][1]]}

        assert plots.digest(changed) != plots.digest(data)

    def test_are_drawn_alike_again(self, tmp_path: Path) -> None:
        """The same figures give the same files, so that a diff shows what changed and nothing else."""
        pytest.importorskip("matplotlib", reason="only `make bench-report` installs matplotlib")

        drawn = plots.render(read(PUBLISHED), tmp_path)

        assert drawn
        for name in drawn:
            assert (tmp_path / f"{name}.svg").read_text() == (plots.FOLDER / f"{name}.svg").read_text()


class TestLock:
    def test_goes_with_that_of_the_tests(self) -> None:
        """Plots are drawn in the environment of the tests: a shared package has one version."""
        pins = {
            name: dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))
            for name in ("requirements-bench.lock", "requirements-dev.lock")
        }
        bench, dev = pins.values()
        assert "matplotlib" in bench
        assert "matplotlib" not in dev

        assert {name: dev[name] for name in bench.keys() & dev.keys()} == {
            name: bench[name] for name in bench.keys() & dev.keys()
        }
