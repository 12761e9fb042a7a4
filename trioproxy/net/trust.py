"""Whom we trust when it is us who connect with TLS."""

from __future__ import annotations

import ssl


def client_context() -> ssl.SSLContext:
    """A context that trusts what the system trusts, and takes no cut-off stream for a whole one.

    It takes some 40 ms, for the system's certificates are read: make it once, in a thread.
    """
    context = ssl.create_default_context()
    # Python before 3.11.4 lets OpenSSL take a missing close_notify for the end of the stream. A response body that ends
    # with the connection would look whole wherever it broke off.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context
