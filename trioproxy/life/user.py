"""Who the server is once it has bound its listeners."""

from __future__ import annotations

from trioproxy.config.difference import needs_raw
from trioproxy.config.model import Config
from trioproxy.process.privileges import CAP_NET_BIND_SERVICE, CAP_NET_RAW, drop, give_folder


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
