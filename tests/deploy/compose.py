"""docker-compose.yml and deploy/Dockerfile, read."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.deploy.deployed import CHECKOUT, DEPLOY


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
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
