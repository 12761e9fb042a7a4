"""Who the server is once it has bound its listeners."""

from __future__ import annotations

import os
from pathlib import Path

import trio

import trioproxy
from trioproxy.config.difference import needs_raw
from trioproxy.config.model import Config
from trioproxy.process.privileges import CAP_NET_BIND_SERVICE, CAP_NET_RAW, PrivilegeError, drop, give_folder


def become(config: Config) -> None:
    """Become `process.user`, if one is set, with what its folders and later reloads need.

    Raises:
        PrivilegeError: that is not possible.
    """
    user = config.process.user
    if not user:
        return
    give_folder(config.storage, user)
    give_folder(config.control_socket.parent, user)
    drop(user, [CAP_NET_BIND_SERVICE, *([CAP_NET_RAW] if needs_raw(config) else [])])
    _prove_that_it_can_go_on(user)


def _prove_that_it_can_go_on(user: str) -> None:
    """Much is imported when it is first needed, a certificate's renewal perhaps: better to fail now than then."""
    for module in (trioproxy, trio, os):
        path = Path(module.__file__ or "")
        try:
            path.open("rb").close()
        except PermissionError as exc:
            raise PrivilegeError(
                f"process.user: {user} may not read {path}, which is a part of this program: install it where every"
                " user may read it, such as /opt/trioproxy"
            ) from exc
        except OSError:  # it is in an archive, or there is no such file
            continue
