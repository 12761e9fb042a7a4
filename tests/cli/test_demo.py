"""What `trioproxy demo` prints for configurations other than the repository's own; tests/e2e starts it with that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.pebble import free_ports, own_address


def test_without_port_80_and_for_wildcards_it_shows_only_what_can_be_tried(tmp_path: Path) -> None:
    address = own_address()
    https, of_site, of_star, of_star_http = free_ports(address, 4)
    (tmp_path / "config.toml").write_text(f"""
[listen]
https = ["{address}:{https}"]
http = []
[sites]
"cloud.localhost" = {{ "/" = "http://{address}:{of_site}", "/old/" = {{ redirect = "/" }}, tls = "internal" }}
"home.localhost" = {{ "/" = {{ to = ["http://{address}:{of_site}", "unix:/run/gone.sock"] }}, tls = "internal" }}
[passthrough."*"]
to = "{address}:{of_star}"
http_to = "{address}:{of_star_http}"
""")
    command = [sys.executable, "-c", "from trioproxy.cli.main import main; main()", "demo"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            said = []
            for line in demo.stdout:
                said.append(line.strip())
                if "Ctrl-C" in line:
                    break
            demo.terminate()
            assert demo.wait(20) == 0
        finally:
            demo.kill()
    assert [line for line in said if line.startswith(("curl", "https://"))] == [
        f"curl -k https://cloud.localhost:{https}/",
        f"curl -k https://home.localhost:{https}/",
        f"https://cloud.localhost:{https}/",
        f"https://home.localhost:{https}/",
    ]
    assert "home.localhost/: there is no stand-in for unix:/run/gone.sock, so that one itself is called." in said
