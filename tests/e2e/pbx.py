"""The pbx of the scene: nginx, which owns its TLS, and certbot, which gets the certificate for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.e2e.authority import Authority
from tests.e2e.network import Host
from tests.e2e.software import Software, listening, run, running

PLAIN = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {http};
        root {webroot};
        location / {{ return 200 "the pbx, in plain: $request_uri\\n"; }}
        location /.well-known/acme-challenge/ {{ }}
        location /.freepbx-known/ {{
            add_header X-Seen-Host $http_host;
            add_header X-Seen-Uri $request_uri;
            add_header X-Seen-Client $http_x_forwarded_for;
        }}
    }}
    {tls}
}}
"""

TLS = """
    server {{
        listen {https} ssl;
        ssl_certificate {live}/fullchain.pem;
        ssl_certificate_key {live}/privkey.pem;
        location / {{ return 200 "the pbx itself: $request_uri\\n"; }}
    }}
"""


class Pbx:
    """A telephone exchange as far as a proxy sees it. As in life, it has TLS only after certbot was through."""

    def __init__(self, host: Host, folder: Path, name: str) -> None:
        self.host = host
        self.name = name
        self.webroot = folder / "webroot"
        self.live = folder / "certbot" / "live" / name
        self._folder = folder
        self._software = contextlib.ExitStack()
        self.webroot.mkdir(parents=True)

    def publish(self, path: str, text: str) -> None:
        """Put a file into the web root."""
        file = self.webroot / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def start(self) -> Software:
        """Start nginx, with TLS if there is a certificate."""
        listen = {number: f"{self.host.listen}:{self.host.port(number)}" for number in (80, 443)}
        tls = TLS.format(https=listen[443], live=self.live) if self.live.exists() else ""
        config = self._folder / "nginx.conf"
        config.write_text(PLAIN.format(folder=self._folder, webroot=self.webroot, http=listen[80], tls=tls))
        command = ["nginx", "-e", "stderr", "-p", str(self._folder), "-c", str(config)]
        software = self._software.enter_context(running(self.host, *command))
        listening(self.host, 80, *([443] if tls else []))
        return software

    def stop(self) -> None:
        """End nginx."""
        self._software.close()

    def certify(self, authority: Authority) -> None:
        """Let certbot get a certificate, by a file in the web root, and start nginx anew with it."""
        folder = self._folder / "certbot"
        command = [
            *("certbot", "certonly", "--webroot", "--webroot-path", str(self.webroot), "--domain", self.name),
            *("--server", authority.directory, "--key-type", "ecdsa"),
            *("--non-interactive", "--agree-tos", "--register-unsafely-without-email"),
            *("--config-dir", str(folder), "--work-dir", str(folder / "work"), "--logs-dir", str(folder / "logs")),
        ]
        run(self.host, *command, env={"REQUESTS_CA_BUNDLE": str(authority.tls_ca)}, patience=60, check=True)
        self.stop()
        self.start()
