"""What is no mistake and still worth saying about a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from trioproxy.access import parse
from trioproxy.config.loops import leads_back
from trioproxy.config.model import CATCH_ALL, LETSENCRYPT, ZEROSSL, Config, HostPort, Listen, Site

# RFC 6761, 6762, 7686, 8375, 9476 and the root zone's reservation of .internal: no public CA issues for these.
PRIVATE = ("localhost", "local", "test", "invalid", "example", "internal", "home.arpa", "alt", "onion", "lan", "home")

DAY = 86_400.0

NAMED = 3
"""Names that one warning calls by name; the rest it counts."""


def warnings(config: Config) -> list[str]:
    """Sentences for a person, each about one thing and what to do; empty when there is nothing to say."""
    return [
        *_passthrough(config),
        *_certificates(config),
        *_ports(config),
        *_believed(config.listen),
        *_timeouts(config),
        *_https_alone(config),
        *_unverified(config),
        *_metrics(config),
    ]


def _passthrough(config: Config) -> Iterator[str]:
    entries = config.passthrough.values()
    untold = [entry.name for entry in entries if entry.client_ip == "none"]
    if untold:
        yield (
            f'{_names(untold)}: with client_ip = "none" the backend sees this machine\'s address as that of every '
            "client. If it runs fail2ban or the like, that would ban this machine and with it everybody: set client_ip "
            "to a form that the backend understands, or tell it to ignore this machine's address"
        )
    off = [entry.name for entry in entries if entry.http == "off"]
    if off:
        yield (
            f'{_names(off)}: http = "off" answers 404 on port 80, so the backend cannot renew its certificate by '
            "HTTP-01: leave it out, unless the backend renews in another way"
        )
    for entry in entries:
        if entry.http != "off" and leads_back(config.listen, entry.http_to.host, entry.http_to.port):
            yield (
                f"{_names([entry.name])}: {entry.http_to}, where port 80 would go, is trioproxy itself: write the "
                'backend\'s own as http_to, or http = "off"'
            )


def _certificates(config: Config) -> Iterator[str]:
    sites = [site for site in config.sites.values() if site.tls == "acme"]
    if not sites:
        return
    if not config.acme.email:
        yield "[acme] has no email: the CA could not tell you about trouble with your certificates. Write one"
    for authority in (config.acme, *config.acme.fallback):
        if authority.directory == ZEROSSL and authority.eab is None:
            yield (
                "ZeroSSL opens accounts only for its customers, so it will issue nothing: write the key id and the "
                "HMAC key that it shows on its page for developers as eab = { key_id = …, hmac_key = … }"
            )
    private = [site.name for site in sites if _is_private(site.name)]
    if private and config.acme.directory in (LETSENCRYPT, ZEROSSL):
        yield f'{_names(private)}: no public CA issues certificates for such names: set tls = "internal"'
    if not config.listen.http:
        yield (
            f"{_names(site.name for site in sites)}: there is no listener for http, where the CA would ask, so no "
            "certificate can be had: write [listen] http"
        )


def _is_private(name: str) -> bool:
    return "." not in name or any(name.endswith("." + suffix) for suffix in PRIVATE)


def _ports(config: Config) -> Iterator[str]:
    listen = config.listen
    public = config.acme.directory in (LETSENCRYPT, ZEROSSL)
    http, https = _ports_of(listen.http), _ports_of(listen.https)
    if public and http and "80" not in http and any(site.tls == "acme" for site in config.sites.values()):
        yield f"CAs ask on port 80, and no listener has it: let the router send it to port {' or '.join(http)} here"
    port = str(listen.public_https_port)
    if port not in https and any(site.http == "redirect" for site in config.sites.values()):
        yield (
            f"redirects lead to port {port}, and no listener has it: let the router send it to port "
            f"{' or '.join(https)} here, or set [listen] public_https_port"
        )


def _believed(listen: Listen) -> Iterator[str]:
    for key in ("proxy_protocol_from", "trusted_proxies"):
        if any(network.prefixlen == 0 for network in getattr(listen, key)):
            yield f"listen.{key} names every address there is, so any client may claim any address: name your proxies"


def _ports_of(addresses: Iterable[HostPort]) -> list[str]:
    return sorted({str(address.port) for address in addresses})


def _timeouts(config: Config) -> Iterator[str]:
    for key in ("hello", "header"):
        if getattr(config.timeouts, key) == math.inf:
            yield f"timeouts.{key} is off: clients that connect and say nothing are kept until they go. Set a limit"

    sites = [site.name for site in _sites(config) if site.timeouts.header == math.inf != config.timeouts.header]
    if sites:
        yield (
            f"{_names(sites)}: timeouts.header is off: clients that connect and say nothing are kept until they go. "
            "Set a limit"
        )


def _https_alone(config: Config) -> Iterator[str]:
    served = [site.name for site in _sites(config) if site.hsts and site.http == "serve"]
    if served:
        yield (
            f'{_names(served)}: http = "serve", and yet hsts: browsers that have been there over https will not come '
            "to port 80 any more. Leave out one of them"
        )
    short = [site.name for site in _sites(config) if 0 < site.hsts < DAY]
    if short:
        yield (
            f"{_names(short)}: hsts is less than a day, so browsers forget it before most people come back. That is "
            'good for trying it out or for taking it back; when all works, write "180d"'
        )


def _unverified(config: Config) -> Iterator[str]:
    routes = [f"{site.name}{route.prefix}" for site in _sites(config) for route in site.routes if not route.tls.verify]
    if routes:
        yield (
            f"{_names(routes)}: with verify = false nobody knows who answers there: whoever gets in the backend's "
            "place reads every request, passwords and cookies too. Name the one certificate that is good, verify = "
            '"sha256:…", or its authority as ca_file'
        )


def _metrics(config: Config) -> Iterator[str]:
    if config.metrics is not None and not parse(config.metrics.host).is_loopback:
        yield (
            f"admin.metrics: whoever can reach {config.metrics} reads all names and how much each is used, for nobody "
            "is asked for a password there. Write 127.0.0.1, or let a firewall keep out all but the one who collects "
            "them"
        )


def _sites(config: Config) -> list[Site]:
    """Without aliases, of which all has been said with their sites."""
    return [site for site in config.sites.values() if not site.alias_of]


def _names(names: Iterable[str]) -> str:
    """`a, b, c and 9,997 more`."""
    all_names = ["every other name" if name == CATCH_ALL else name for name in names]
    more = len(all_names) - NAMED
    if more <= 1:
        return ", ".join(all_names)
    return f"{', '.join(all_names[:NAMED])} and {more:,} more"
