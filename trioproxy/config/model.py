"""The configuration as values: frozen, complete, every default filled in.

Durations are seconds as float, `math.inf` for "off". Sizes are bytes. Names are normalised
(`trioproxy.names.normalise`), wildcards are kept as `*.suffix`, the catch-all as `*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from trioproxy.access import EVERYONE, Access, Network

CATCH_ALL = "*"
"""The entry for every name that is configured nowhere."""

LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETSENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
ZEROSSL = "https://acme.zerossl.com/v2/DV90"

KeyType = Literal["ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096"]

ChallengeType = Literal["http-01", "tls-alpn-01"]
"""How we can show a CA that a name is ours: by an answer on port 80, or one in TLS on port 443 (RFC 8737)."""

CHALLENGES: tuple[ChallengeType, ...] = ("http-01", "tls-alpn-01")

ClientIP = Literal["none", "proxy-v1", "proxy-v2", "transparent"]
"""How the backend of a passthrough name learns the client's address."""


@attrs.frozen
class HostPort:
    """A host (name, IPv4 or IPv6 literal without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_HTTPS = (HostPort("0.0.0.0", 443), HostPort("::", 443))
DEFAULT_HTTP = (HostPort("0.0.0.0", 80), HostPort("::", 80))


@attrs.frozen
class Listen:
    """`[listen]`. A `*_written` flag tells listeners that the user wrote from the defaults.

    A default whose address family the kernel lacks is skipped, one that was written is an error.

    Attributes:
        proxy_protocol_from: Networks whose connections must begin with a PROXY header.
        trusted_proxies: Networks whose forwarding fields are extended and not replaced.
    """

    https: tuple[HostPort, ...] = DEFAULT_HTTPS
    http: tuple[HostPort, ...] = DEFAULT_HTTP
    https_written: bool = False
    http_written: bool = False
    public_https_port: int = 443
    no_sni: str = ""
    proxy_protocol_from: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


@attrs.frozen
class Eab:
    """What binds an ACME account to a customer that the CA knows already (RFC 8555 section 7.3.4).

    Attributes:
        key_id: The CA's name for the customer.
        hmac_key: The secret shared with it.
    """

    key_id: str
    hmac_key: bytes = attrs.field(repr=False)


@attrs.frozen
class Acme:
    """`[acme]`, or one of its fallbacks: a certificate authority to ask, and on what terms.

    Attributes:
        directory: The URL of its ACME directory.
        ca_file: A trust anchor for its own TLS, beside the system's.
        key_type: Of new certificates' keys, where a site has no other.
        staging: The URL of the directory where rehearsals go, "" for none.
        staging_ca_file: The same as `ca_file` for that.
        profile: Which of the CA's profiles to ask for, "" for its default.
        challenges: How to prove a name, in the order in which to try; at least one.
        preferred_chain: The common name of the root whose chain is wanted, "" for the CA's default.
        eab: What the account is to be bound with, where the CA wants that.
        on_renew: A program and its arguments, to be run when a certificate has been replaced.
        fallback: Further authorities, asked in this order when those before could not issue. They have none themselves.
    """

    email: str = ""
    directory: str = LETSENCRYPT
    ca_file: Path | None = None
    key_type: KeyType = "ecdsa-p256"
    staging: str = ""
    staging_ca_file: Path | None = None
    profile: str = ""
    challenges: tuple[ChallengeType, ...] = CHALLENGES
    preferred_chain: str = ""
    eab: Eab | None = None
    on_renew: tuple[str, ...] = ()
    fallback: tuple[Acme, ...] = ()

    @property
    def account(self) -> AccountId:
        """Which account at which CA these settings mean."""
        return AccountId(self.directory, self.eab.key_id if self.eab else "")

    @property
    def rehearsal(self) -> Acme | None:
        """The same at `staging`, where nothing counts; None where there is no such place.

        The account there is another one, bound to nothing: what staging servers want is rarely what the real ones do.
        """
        if not self.staging:
            return None
        return attrs.evolve(
            self, directory=self.staging, ca_file=self.staging_ca_file, staging="", staging_ca_file=None, eab=None
        )


@attrs.frozen
class AccountId:
    """Which account: that at a CA's directory (URL), or one there for each customer (EAB key id) of the CA."""

    directory: str
    eab_key_id: str = ""


@attrs.frozen
class Passthrough:
    """A name whose TLS goes to its backend untouched.

    Attributes:
        name: A host name, `*.suffix`, or `*`.
        to: Where its TLS goes: the first that can be reached, in this order; at least one.
        http: What port 80 does with it.
        http_to: Where port 80 sends what it forwards.
        client_ip: How `to` learns the client's address.
        access: Who may connect.
    """

    name: str
    to: tuple[HostPort, ...]
    http: Literal["challenges", "all", "off"]
    http_to: HostPort
    client_ip: ClientIP = "none"
    access: Access = EVERYONE


@attrs.frozen
class Target:
    """Where a route leads. `path` is None when the URL has none: then the request's path goes on unchanged.

    With the scheme "unix", `host` is the path of a socket and `port` is 0.
    """

    scheme: Literal["http", "https", "h2c", "unix"]
    host: str
    port: int
    path: str | None = None

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.host}"
        default = {"http": 80, "https": 443, "h2c": 80}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{f':{self.port}' if self.port != default else ''}{self.path or ''}"


@attrs.frozen
class UpstreamTLS:
    """How a route's https backends prove who they are.

    Attributes:
        verify: Whether their certificate must be good; or the SHA-256 of the one certificate that is, 64 lower-case
            hexadecimal digits.
        ca_file: Whom to trust in place of the system's authorities.
        server_name: The name that is asked for and must be in the certificate; "" for the host of the URL.
    """

    verify: bool | str = True
    ca_file: Path | None = None
    server_name: str = ""


DEFAULT_TLS = UpstreamTLS()


@attrs.frozen
class Timeouts:
    """`[timeouts]`: idle limits in seconds, never limits on how long a healthy transfer may take."""

    hello: float = 5.0
    header: float = 10.0
    connect: float = 5.0
    response: float = 300.0
    idle: float = 75.0
    tunnel: float = 3600.0
    drain: float = 30.0


DEFAULT_TIMEOUTS = Timeouts()


def _list(to: Target | tuple[Target, ...]) -> tuple[Target, ...]:
    return to if isinstance(to, tuple) else (to,)


@attrs.frozen
class Route:
    """A path prefix of a site (it begins with "/") and where requests below it go.

    Attributes:
        prefix: On segment boundaries.
        to: The backends, in the order in which to try them; all have the same path. Empty with a redirect.
        redirect: A path or URL that takes the prefix's place in the Location of a 308; "" where `to` says where to go.
        timeouts: The route's own over the site's over the general ones.
        tls: What its https backends must prove.
        proxy_protocol: The PROXY header with which its backends' connections begin; "" for none.
    """

    prefix: str
    to: tuple[Target, ...] = attrs.field(converter=_list)
    redirect: str = ""
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    tls: UpstreamTLS = DEFAULT_TLS
    proxy_protocol: Literal["", "v1", "v2"] = ""

    def covers(self, path: str) -> bool:
        """Whether `path` lies at or below the prefix."""
        prefix = self.prefix
        return path.startswith(prefix) and (
            prefix.endswith("/") or len(path) == len(prefix) or path[len(prefix)] == "/"
        )

    @property
    def redirect_parts(self) -> tuple[str, str | None]:
        """Of `redirect`: its origin, "" for the request's own, and its path as that of a target."""
        if self.redirect.startswith("/"):
            return "", self.redirect
        scheme, _, rest = self.redirect.partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority}", slash + path or None

    @property
    def path(self) -> str | None:
        """What takes the prefix's place, for all targets or in the Location; None if paths go on unchanged."""
        return self.redirect_parts[1] if self.redirect else self.to[0].path


@attrs.frozen
class CertificateFiles:
    """A certificate and key that the user keeps."""

    certificate: Path
    key: Path


@attrs.frozen
class Site:
    """A name whose TLS ends here. An alias is a Site of its own, with `alias_of` naming the one it repeats.

    Attributes:
        name: A host name; `*.suffix` or `*` only where `tls` is not "acme".
        routes: Longest prefix first.
        tls: Where its certificate comes from.
        http: What port 80 does with it.
        access: Who may connect.
        timeouts: The site's own over the general ones.
        hsts: Seconds for Strict-Transport-Security; 0 to send none.
    """

    name: str
    routes: tuple[Route, ...]
    tls: Literal["acme", "internal"] | CertificateFiles = "acme"
    key_type: KeyType = "ecdsa-p256"
    http: Literal["redirect", "serve", "off"] = "redirect"
    alias_of: str = ""
    access: Access = EVERYONE
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    hsts: float = 0.0


@attrs.frozen
class Limits:
    """`[limits]`.

    Attributes:
        header_size: Bytes of a request's whole head.
        header_fields: Fields in it.
        connections: Clients' connections at once.
        connections_per_ip: Those of one address.
        memory: Bytes that the process may take before it sheds idle connections; None for as many as there are.
    """

    header_size: int = 32 * 1024
    header_fields: int = 100
    connections: int = 10_000
    connections_per_ip: int = 1000
    memory: int | None = None


@attrs.frozen
class Process:
    """`[process]`.

    Attributes:
        user: Whom to become once everything is bound; "" to stay who we are.
        workers: Processes that serve connections.
    """

    user: str = ""
    workers: int = 1


@attrs.frozen
class Log:
    """`[log]`.

    Attributes:
        level: A level of the `logging` module, lower case.
        format: How events are written.
        access: Where there is a line for each request and tunnel: a file, "-" for standard output, "" for nowhere.
        access_format: How such a line is written.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    access: Path | Literal["-", ""] = "-"
    access_format: Literal["console", "json", "combined"] = "console"


@attrs.frozen
class Config:
    """One configuration file.

    Attributes:
        path: The file, for messages.
        passthrough: By name.
        sites: By name, aliases included.
        storage: Where keys, certificates and accounts are kept.
        control_socket: Where commands reach the running server.
        metrics: Where to serve metrics; None for nowhere.
        text: What the file held, for whoever is to read the very same. It may hold secrets.
    """

    path: Path
    listen: Listen
    acme: Acme
    passthrough: Mapping[str, Passthrough]
    sites: Mapping[str, Site]
    timeouts: Timeouts
    limits: Limits
    storage: Path
    control_socket: Path
    log: Log = Log()
    process: Process = Process()
    metrics: HostPort | None = None
    text: str = attrs.field(default="", eq=False, repr=False)
