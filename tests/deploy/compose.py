"""docker-compose.yml, its variants and deploy/Dockerfile, read."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import yaml

from tests.deploy.deployed import CHECKOUT, DEPLOY

VARIANTS: Final = ("", "sentinel", "cluster")
"""The one Redis, and what stands in its place with ``-f deploy/compose/<variant>.yml``."""


def compose(variant: str = "") -> dict[str, Any]:
    """The file, with the variant laid over it as ``docker compose -f … -f …`` does."""
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
    if variant:
        over = yaml.load((DEPLOY / "compose" / f"{variant}.yml").read_text(), _WithOverride)  # noqa: S506  a safe one
        loaded = _merged(loaded, over)
    return loaded


class _Replaced:
    """A value that an override puts in another's place, in place of adding to it."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _WithOverride(yaml.SafeLoader):
    """Knows compose's own tag."""


def _replaced(loader: yaml.SafeLoader, node: yaml.MappingNode) -> _Replaced:
    return _Replaced(loader.construct_mapping(node, deep=True))


_WithOverride.add_constructor("!override", _replaced)


def _merged(base: Any, over: Any, name: str = "") -> Any:
    """Mappings are joined, lists appended, the rest replaced; commands are replaced whole."""
    if isinstance(over, _Replaced):
        return over.value
    if name in {"depends_on", "networks"} and isinstance(over, dict | list):  # short for a mapping
        base, over = _mapping(base), _mapping(over)
    if name in {"command", "entrypoint"}:
        return over
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {
            key: _merged(base[key], value, key) if key in base else value for key, value in over.items()
        }
    if isinstance(base, list) and isinstance(over, list):
        return base + [each for each in over if each not in base]
    return over


def _mapping(names: dict[str, Any] | list[str]) -> dict[str, Any]:
    return names if isinstance(names, dict) else {name: {"condition": "service_started"} for name in names}


def services(variant: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose(variant)["services"]
    return found


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages: instructions and their arguments, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    found: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, joined.splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments))
    return found


def image() -> dict[str, str]:
    """What the last stage says of the image, one value for each instruction."""
    return dict(stages()[-1])


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", image()["ENV"]))


def health_command() -> list[str]:
    """The image's check, as it is executed."""
    words: list[str] = json.loads(image()["HEALTHCHECK"].partition("CMD ")[2])
    return words
