"""Which versions of HTTP are spoken here, by the names of ALPN (RFC 7301)."""

from __future__ import annotations

HTTP11 = ("http/1.1",)


def spoken() -> tuple[tuple[str, ...], str]:
    """The protocols to offer, the preferred one first; and why HTTP/2 is not among them, "" if it is.

    ngh2 is a compiled module: a platform for which there is none, or one that does not load, must not cost more than
    HTTP/2.
    """
    try:
        import ngh2  # noqa: F401
    except ImportError as exc:
        return HTTP11, str(exc)
    return ("h2", *HTTP11), ""
