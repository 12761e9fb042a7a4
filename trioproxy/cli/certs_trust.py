"""`trioproxy certs trust`: how the machines of a home come to trust trioproxy's own CA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from trioproxy.certs.bundle import Bundle
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.issuing import Signer
from trioproxy.certs.preflight import unusable_storage
from trioproxy.certs.store import Store
from trioproxy.cli.common import json_option, load_config
from trioproxy.cli.tables import print_table
from trioproxy.logs import configure

ANCHORS = Path("/usr/local/share/ca-certificates")
"""Where Debian looks for authorities that the machine's owner trusts: update-ca-certificates(8)."""

ANCHOR = "trioproxy-internal-ca.crt"
UPDATE = "update-ca-certificates"

_WITHOUT_INTERMEDIATE = """\
An early version made it. It signs for sites itself, for it permits no intermediate, and may go on like that. For a new
one, which every machine would have to trust anew: remove {}, and restart trioproxy.
"""


@click.command("trust")
@click.option("--install", is_flag=True, help="Have this machine trust it (Debian and its kin), as root.")
@json_option
@click.pass_context
def command(context: click.Context, install: bool, as_json: bool) -> None:
    """Tell how to trust the internal CA, which signs for sites with `tls = "internal"` and is the stand-in for others.

    What is to be trusted is its root, made if there is none yet. What signs below that is renewed by itself.
    """
    config = load_config(context)
    configure("error")
    store = Store(config.storage)
    root = _root(store)
    intermediate = None if Signer(root).signs_leaves else store.internal_intermediate()
    path = store.internal_ca_certificate.absolute()
    fingerprint = x509.load_pem_x509_certificate(root.chain_pem).fingerprint(hashes.SHA256()).hex(":").upper()
    if install:
        _install(path)
    if as_json:
        told = {
            "path": str(path),
            "sha256": fingerprint,
            "issuer": root.leaf.issuer,
            "not_after": root.leaf.not_after.isoformat(),
            "certificate": root.chain_pem.decode("ascii"),
            "intermediate_not_after": intermediate.leaf.not_after.isoformat() if intermediate else None,
            "installed": install,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{root.leaf.issuer}, valid to {root.leaf.not_after:%Y-%m-%d}")
    click.echo(f"file     {path}\nSHA-256  {fingerprint}\n")
    if intermediate is None:
        click.echo(_WITHOUT_INTERMEDIATE.format(path.with_suffix(".pem")))
    if install:
        click.echo("This machine trusts it now. Browsers with a store of their own (Firefox) do not yet.")
        return
    click.echo("Copy the file to the machine that is to trust it, and compare the fingerprint there:\n")
    print_table(("ON", "DO"), _ways(path))


def _root(store: Store) -> Bundle:
    """The root that is kept in `store`; made if need be."""
    InternalCA(store).prepare()
    root = store.internal_ca()
    if root is None:
        raise click.ClickException(
            f"the CA cannot be kept in {store.path}: {unusable_storage(store.path) or 'see above'}"
        )
    return root


def _ways(path: Path) -> list[tuple[str, str]]:
    return [
        ("Debian, Ubuntu", f"sudo cp {path} {ANCHORS / ANCHOR}; sudo {UPDATE}    (here: certs trust --install)"),
        ("Fedora, Arch", f"sudo trust anchor {path}"),
        (
            "macOS",
            "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.crt",
        ),
        ("Windows", "certutil -addstore -f Root ca.crt    (as administrator)"),
        ("Firefox", "Settings, Privacy & Security, View Certificates, Authorities, Import: trust it for websites"),
        ("Android", "Settings, Security, More, Encryption & credentials, Install a certificate, CA certificate"),
    ]


def _install(path: Path) -> None:
    program = shutil.which(UPDATE)
    if program is None:
        raise click.ClickException(f"{UPDATE} is not here: without --install you are told what to do on other systems")
    if os.geteuid() != 0:
        raise click.ClickException("only root can have a machine trust a CA: run this with sudo")
    try:
        aside, anchor = ANCHORS / f".{ANCHOR}.new", ANCHORS / ANCHOR
        ANCHORS.mkdir(parents=True, exist_ok=True)
        new = path.read_bytes()
        # OpenSSL finds an authority by a link that has its subject's hash; it is made for files with new names alone.
        options = ["--fresh"] if anchor.exists() and anchor.read_bytes() != new else []
        aside.write_bytes(new)
        aside.chmod(0o644)
        aside.replace(anchor)
    except OSError as exc:
        raise click.ClickException(f"{ANCHORS / ANCHOR} cannot be written: {exc.strerror}") from exc
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)  # noqa: S603 - no words of a user's
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it says nothing"]
        raise click.ClickException(f"{UPDATE} failed with exit code {done.returncode}: {last[0]}")
