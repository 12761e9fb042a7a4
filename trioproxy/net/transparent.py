"""Speaking to a backend from the client's own address: `client_ip = "transparent"`.

Linux lets a socket be bound to an address that is not this machine's (IP_TRANSPARENT, ip(7)), if the process may. The
backend then sees the client, whatever protocol it speaks, and answers to the client. That those answers come back to
this machine and are taken in by it is a matter of routing, which `trioproxy transparent-setup` explains.
"""

from __future__ import annotations

import socket

from trioproxy.errors import CannotBeClient
from trioproxy.net.raw import Socket

# linux/in.h and linux/in6.h; Python's socket module does not name them before 3.14, or at all
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24

MAY_NOT = (
    "this process may not speak from the addresses of its clients: run it as root, or give it CAP_NET_RAW "
    "(AmbientCapabilities= in a systemd unit)"
)


def family_of(client: str) -> socket.AddressFamily:
    """The family of an address literal."""
    return socket.AF_INET6 if ":" in client else socket.AF_INET


def speak_as(sock: Socket, client: str) -> None:
    """Bind `sock`, a TCP socket that is not connected yet, to the address of a client and any of its ports.

    Args:
        sock: Of the client's address family.
        client: An IPv4 or IPv6 literal.

    Raises:
        CannotBeClient: this process may not, or the kernel cannot.
    """
    try:
        _make_transparent(sock)
        # The port is chosen when the socket is connected, when the backend is known: a client has 28,000 for each
        # backend then, and not 28,000 in all (ip(7)).
        sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((client, 0))
    except PermissionError as exc:
        raise CannotBeClient(MAY_NOT) from exc
    except OSError as exc:
        raise CannotBeClient(f"this machine cannot speak from {client}: {exc.strerror or exc}") from exc


def allowed(family: socket.AddressFamily) -> bool:
    """Whether this process may speak from addresses of others."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            _make_transparent(sock)
    except OSError:
        return False
    return True


def _make_transparent(sock: Socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
