"""The labels of our metrics and the values that they take, by the code and its docs; what a query asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import yaml

import sessions_api
from sessions_api import errors
from sessions_api.api.routes import ROUTES
from sessions_api.live import closing
from tests.deploy.deployed import CHECKOUT, DEPLOY

OF_TARGETS: Final = {"instance", "job"}
"""Labels that Prometheus adds to whatever it scrapes."""
OF_HAPROXY: Final = {"proxy", "code"}
_SELECTOR: Final = re.compile(r"""([a-zA-Z_:][\w:]*)\{((?:[^"}]|"[^"]*")*)\}""")
_MATCHER: Final = re.compile(r"""(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)\"""")
_GROUP: Final = re.compile(r"\(([^()]*)\)")
_WORDS: Final = re.compile(r"`([\w-]+)`")
_ROW: Final = re.compile(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|(.*)\|$", re.MULTILINE)


class Row(NamedTuple):
    """A metric as docs/metrics.md has it."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


class Asked(NamedTuple):
    """A value that a query, or a series, names of a metric's label."""

    metric: str
    label: str
    value: str


@cache
def documented() -> dict[str, Row]:
    """Every metric of ours; a histogram under the names of its series as well."""
    text = (CHECKOUT / "docs" / "metrics.md").read_text()
    found = {}
    for name, kind, labels, meaning in _ROW.findall(text):
        row = Row(kind, tuple(_WORDS.findall(labels)), meaning)
        found[name] = row
        if kind == "histogram":
            series = row._replace(labels=(*row.labels, "le"))
            found |= {f"{name}_bucket": series, f"{name}_sum": row, f"{name}_count": row}
    return found


@cache
def _source() -> str:
    package = (CHECKOUT / sessions_api.__name__).rglob("*")
    return "\n".join(path.read_text() for path in package if path.suffix in {".py", ".lua"})


def _codes(kind: type[errors.SessionsError] = errors.SessionsError) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


def _policies() -> set[str]:
    """As docs/errors.md has them, and the code."""
    [row] = re.findall(
        r"^.*\| `RATE_LIMIT_EXCEEDED` \|.*$", (CHECKOUT / "docs" / "errors.md").read_text(), re.MULTILINE
    )
    return _literal(_WORDS.findall(row))


def _literal(words: list[str]) -> set[str]:
    """Those that the code has as words of its own."""
    return {word for word in words if f'"{word}"' in _source() or f"'{word}'" in _source()}


def _told_of(row: Row, label: str) -> str:
    """What a row says of one of its labels: behind its name, or all, where none is named."""
    parts = re.split(rf"`({'|'.join(row.labels)})`: ", row.meaning)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    return named.get(label, "") if named else row.meaning


def _values(label: str, row: Row) -> set[str]:
    """What docs/metrics.md says that it may be, if the code has it as well.

    A row that says nothing of a label has it as another row does.
    """
    told = [_told_of(row, label)]
    told += [each.meaning for each in documented().values() if f"`{label}`: `" in each.meaning]
    words = next((words for words in map(_WORDS.findall, told) if words), [])
    return _literal(words)


def known(metric: str, label: str) -> set[str] | None:
    """The values that the code gives to this label; None where they are anybody's, as an agent's id."""
    match metric, label:
        case _, "agent" | "instance" | "le":
            return None
        case _, "job":
            text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
            return {each["job_name"] for each in yaml.safe_load(text)["scrape_configs"]}
        case _, "proxy":
            text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
            return set(re.findall(r"^(?:frontend|backend) (\S+)$", text, re.MULTILINE))
        case _, "route":
            return {route.path for route in ROUTES}
        case _, "method":
            return {route.method for route in ROUTES}
        case _, "status":
            return {str(status) for status in range(100, 600)}
        case _, "policy":
            return _policies()
        case "sessions_errors_total", "code":
            return _codes()
        case "sessions_followers_cut_total", "code":
            return {str(each.code) for each in closing.ALL}
        case _:
            return _values(label, documented()[metric])


def labels_of(metric: str) -> set[str]:
    if metric.startswith("haproxy_"):
        return OF_TARGETS | OF_HAPROXY
    row = documented().get(metric)
    return OF_TARGETS | set(row.labels if row else ())


def alternatives(pattern: str) -> Iterator[str]:
    """What a matcher's pattern is an *or* of: ``a|b``; ``x(a|b)``, which is ``xa`` and ``xb``."""
    group = _GROUP.search(pattern)
    if group is None:
        yield from pattern.split("|")
        return
    for each in group[1].split("|"):
        yield from alternatives(pattern[: group.start()] + each + pattern[group.end() :])


def asked(query: str) -> Iterator[Asked]:
    """Every value that it names, one of an *or* at a time, as a pattern that it matches whole."""
    for metric, matchers in _SELECTOR.findall(query):
        for label, operator, value in _MATCHER.findall(matchers):
            for each in alternatives(value) if "~" in operator else [re.escape(value)]:
                yield Asked(metric, label, each)


def strange(query: str) -> set[Asked]:
    """Labels that a metric does not have, and values that no label of that metric ever has."""
    found = set()
    for each in asked(query):
        values = known(each.metric, each.label) if each.label in labels_of(each.metric) else set()
        if values is not None and not any(re.fullmatch(each.value, value) for value in values):
            found.add(each)
    return found


def grouped_by_nothing(query: str) -> set[str]:
    """Labels that it groups by, and that no metric of it has."""
    by = {label for labels in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", query) for label in labels.split(",")}
    made = set(re.findall(r'label_replace\(.*, "(\w+)", "[^"]*", "\w+", "[^"]*"\)', query))
    metrics = re.findall(r"\b(?:sessions|haproxy)_\w+", query)
    return {label.strip() for label in by} - {""} - made - set().union(*map(labels_of, metrics), {"le"})
