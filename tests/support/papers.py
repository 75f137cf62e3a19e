"""Certificates for servers that speak TLS, and for those who speak to them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trustme


class Papers:
    """Certificates in a folder: of two authorities, and of servers and clients."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ours, another = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(str(folder / "ca.pem"))
        another.cert_pem.write_to_path(str(folder / "another-ca.pem"))
        for name, issued in {
            "here": ours.issue_cert("127.0.0.1"),
            "elsewhere": ours.issue_cert("redis.example"),
            "client": ours.issue_cert("client.example"),
            "stranger": another.issue_cert("client.example"),
        }.items():
            issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))

    def __getitem__(self, name: str) -> str:
        return str(self._folder / name)

    def shown_by(self, name: str) -> dict[str, str]:
        """Settings of a Redis that shows the certificate *name*."""
        return {
            "tls-ca-cert-file": self["ca.pem"],
            "tls-cert-file": self[f"{name}.pem"],
            "tls-key-file": self[f"{name}.key"],
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """redis-py's, for a client that trusts our authority and shows who it is."""
        return {"ssl": True, **self._files}

    @property
    def query(self) -> str:
        """The same in a URL of ours."""
        return urlencode(self._files)

    @property
    def _files(self) -> dict[str, str]:
        return {
            "ssl_ca_certs": self["ca.pem"],
            "ssl_certfile": self["client.pem"],
            "ssl_keyfile": self["client.key"],
        }

    def client_of(self, socket: Any) -> ssl.SSLSocket:
        """*socket*, on which both sides have shown who they are."""
        context = ssl.create_default_context(cafile=self["ca.pem"])
        context.load_cert_chain(self["client.pem"], self["client.key"])
        return context.wrap_socket(socket, server_hostname="127.0.0.1")
