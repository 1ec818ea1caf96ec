"""Certificates as an operator makes them with openssl: a CA, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.tools import tool


class CertificateAuthority:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        _openssl("req", "-x509", *_request("a test CA"), "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str, *subjects: str) -> tuple[Path, Path]:
        """Certificate and key; `subjects` are its alternative names, such as IP:127.0.0.1."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        signed = ("-CA", self.certificate, "-CAkey", self._key)
        names = ("-addext", f"subjectAltName={','.join(subjects)}")
        _openssl("req", "-x509", *_request(name), *signed, *names, "-keyout", key, "-out", certificate)
        return certificate, key


def _request(name: str) -> tuple[str, ...]:
    return ("-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "1")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True, timeout=60)
