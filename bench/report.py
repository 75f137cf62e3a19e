"""``python -m bench.report``: the tables and plots of docs/performance.md from the published figures."""

from __future__ import annotations

import sys

from bench import page, plots, sizing
from bench.figures import PUBLISHED, read


def main() -> int:
    runs = read(PUBLISHED)
    page.write(runs)
    sizing.write(runs)
    try:
        drawn = plots.render(runs)
    except ModuleNotFoundError as error:
        print(f"{error}; `make bench-report` installs what plots need", file=sys.stderr)
        return 1
    print(f"wrote {page.PAGE} and, in {plots.FOLDER}, {', '.join(drawn)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
