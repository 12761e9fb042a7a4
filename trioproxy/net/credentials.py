"""Keys and certificates for TLS from memory: `ssl` itself reads them from named files only."""

from __future__ import annotations

import os
import ssl


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Let `context` show a certificate.

    Args:
        context: A server's.
        pem: The key and the chain. They are in a file that has no name outside this process and is on no disk.

    Raises:
        ssl.SSLError: TLS does not take them.
        OSError: there is no descriptor left, or no /proc.
    """
    with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
