"""The server's TLS certificate, which is read again when its files change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from anybatch import InvalidValue

from .reload import Stamp, stamp_of


class Certificate:
    """A certificate (with its chain) and its key, PEM files; `key` None: both are in one.

    `context` is what a server listens with. It hands each connection to the certificate that was read last, so that a
    new one holds for connections that begin after it was read, and one with mistakes for none.

    Raises:
        InvalidValue: it cannot be used.
    """

    def __init__(self, certificate: str | os.PathLike[str], key: str | os.PathLike[str] | None = None) -> None:
        self._files = [Path(certificate)] if key is None else [Path(certificate), Path(key)]
        self._stamps: list[Stamp] = []
        self._current = self._read()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.sni_callback = self._choose  # it is called for clients that name no server, too

    @property
    def source(self) -> str:
        """Where it is from, in words."""
        return ", ".join(map(str, self._files))

    def is_stale(self) -> bool:
        """Whether the files are others than were read. One that is gone for the moment is not."""
        try:
            return [stamp_of(file) for file in self._files] != self._stamps
        except OSError:
            return False

    def reload(self) -> None:
        """Read the files again.

        Raises:
            InvalidValue: they cannot be used; what was read before stays.
        """
        self._current = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            stamps = [stamp_of(file) for file in self._files]
            for file in self._files:
                file.open("rb").close()  # its error names the file, and OpenSSL's does not
            context.load_cert_chain(self._files[0], self._files[-1], password=_no_password)
        except (OSError, ssl.SSLError) as e:
            raise InvalidValue("tls_certificate", self.source, f"it cannot be used: {e}") from e
        self._stamps = stamps
        return context

    def _choose(self, connection: Any, server_name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._current


def _no_password() -> str:
    """A key that is encrypted is refused: a server asks nobody for a password."""
    raise ssl.SSLError("the key is encrypted")
