"""How the certificate of one site is, wherever that comes from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from trioproxy.certs.bundle import Leaf
from trioproxy.certs.contexts import Served, read_files
from trioproxy.certs.known import Known, renews
from trioproxy.certs.status import CertificateStatus, status_of
from trioproxy.config.model import CertificateFiles, Site
from trioproxy.errors import CertificateError


@attrs.frozen
class Leaves:
    """The certificates that sites have of their own, wherever they come from; what is handed in changes with them.

    Attributes:
        known: Of certificates of a CA.
        in_files: What was last good in files of the user's.
        served: What handshakes get.
    """

    known: Mapping[str, Known]
    in_files: Mapping[str, Leaf]
    served: Mapping[str, Served]

    def of(self, site: Site) -> Leaf | None:
        """The one of `site`; None where there is none, or nobody has asked for what is made when somebody asks."""
        name = site.name
        if site.tls == "acme":
            return known.leaf if (known := self.known.get(name)) else None
        served, by = self.served.get(name), "internal" if site.tls == "internal" else "files"
        if served is not None and served.by == by:  # else a reload has changed that, and nobody has asked since
            return served.leaf
        return self.in_files.get(name)


def overview(site: Site, now: datetime, known: Known, served: Served | None, *, busy: bool) -> CertificateStatus:
    """Put together how the certificate of `site` is.

    Args:
        site: The site.
        now: The wall clock, UTC.
        known: What is known of the certificate that it has of a CA.
        served: What handshakes get, None while nobody has asked for the site.
        busy: Whether it is being renewed at this moment.
    """
    name = site.name
    if site.tls == "acme":
        return status_of(
            name,
            "acme",
            now,
            known.leaf,
            renewal=known.renewal if known.leaf else None,
            trouble=known.trouble,
            problem=known.problem,
            busy=busy,
            where=known.where,
            paced=known.waits(now),
        )
    if not isinstance(site.tls, CertificateFiles):
        leaf = served.leaf if served and served.by == "internal" else None
        return status_of(name, "internal", now, leaf, renewal=(renews(leaf), "lifetime") if leaf else None)
    if served is not None:
        own = served.leaf if served.by == "files" else None
        return status_of(name, "files", now, own, problem=served.problem)
    try:
        return status_of(name, "files", now, read_files(site.tls).leaf)
    except CertificateError as exc:
        return status_of(name, "files", now, None, problem=str(exc))
