"""Keys and certificates for TLS from memory: `ssl` itself reads them from named files only."""

from __future__ import annotations

import os
import ssl

from trioproxy.errors import CertificateError


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Let `context` show a certificate.

    Args:
        context: A server's.
        pem: The key and the chain. They are in a file that has no name outside this process and is on no disk.

    Raises:
        CertificateError: TLS does not take them (too short a key, a signature it distrusts), or the process is out of
            descriptors.
    """
    try:
        with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    except ssl.SSLError as exc:
        raise CertificateError(f"TLS does not take the certificate: {exc.reason or exc}") from exc
    except OSError as exc:  # no descriptor left, or no /proc
        raise CertificateError(f"the certificate cannot be handed to TLS: {exc.strerror or exc}") from exc
