"""trioproxy: TLS passthrough, TLS-terminated sites and their certificates, in one process on Trio."""

__version__ = "0.1.0"
