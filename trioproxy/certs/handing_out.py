"""Certificates for other programs of this machine: key and chain of each name as PEM files whose paths stay.

    pem/NAME -> .generations/NAME/SERIAL-TOKEN
    pem/NAME/fullchain.pem, privkey.pem, cert.pem, chain.pem      as certbot calls them

The link is the point: the files of one certificate lie in a folder of their own that is never written again, and
replacing the link shows all of a new one at once. Two files that are renamed one after the other would show, for a
moment, a key and a certificate that are no pair. The generation before is kept, for whoever opened that folder a moment
ago; those before it go.

The bundle in `certificates` is what counts. These are copies: where they are lost or damaged they are made anew.
Folders are 0700 and files 0600, so only the store's own user and root can read them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shutil
from pathlib import Path

import attrs

from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.store import LOCKS, Store, stem_of

log = logging.getLogger("trioproxy.certs")

PEM, GENERATIONS = "pem", ".generations"

_GENERATION = re.compile(r"([0-9a-f]+)-[0-9a-f]{8}")


@attrs.frozen
class Handed:
    """Where the files of a name are, whatever generation they are of.

    Attributes:
        folder: The link, an absolute path.
    """

    folder: Path

    @property
    def fullchain(self) -> Path:
        """The certificate and what is above it: what most servers want."""
        return self.folder / "fullchain.pem"

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "privkey.pem"

    @property
    def certificate(self) -> Path:
        """The certificate alone."""
        return self.folder / "cert.pem"

    @property
    def chain(self) -> Path:
        """What is above it."""
        return self.folder / "chain.pem"


class HandingOut:
    """Keeps the PEM files of one store. All of it waits for a disk, so call it in a thread.

    Args:
        store: Where the bundles are, and the folder for the files.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, name: str) -> Handed:
        """Where the files of `name` are, or will be."""
        return Handed(self._store.path.absolute() / PEM / stem_of(name))

    def serial(self, name: str) -> int | None:
        """Of which certificate the files are; None if there are none, or not all of them."""
        handed = self.of(name)
        try:
            found = _GENERATION.fullmatch(handed.folder.readlink().name)
            paths = (handed.fullchain, handed.key, handed.certificate, handed.chain)
            return int(found[1], 16) if found and all(path.is_file() for path in paths) else None
        except OSError:
            return None

    def bring_up_to_date(self, name: str) -> None:
        """Have the files say what the store has for `name`; where that is nothing, they stay.

        Raises:
            StoreError: they cannot be written; those that were there before still are.
        """
        folder = self._store.folder(PEM)
        with files.locked_briefly(self._store.folder(LOCKS) / f"{stem_of(name)}.pem.lock", self._store.owner()):
            bundle = self._store.load(name)
            if bundle is None or self.serial(name) == bundle.leaf.serial:
                return
            self._replace(folder, stem_of(name), bundle)

    def _replace(self, folder: Path, stem: str, bundle: Bundle) -> None:
        owner, link = self._store.owner(), folder / stem
        files.make_folder(folder / GENERATIONS, owner)
        generations = folder / GENERATIONS / stem
        files.make_folder(generations, owner)
        generation = generations / f"{bundle.leaf.serial:x}-{secrets.token_hex(4)}"
        files.make_folder(generation, owner)
        with contextlib.suppress(OSError):
            before = link.readlink().name
            _remove_all_but(generations, {before, generation.name})
        for name, data in _pieces(bundle).items():
            files.replace(generation / name, data, owner)
        aside = folder / f".{secrets.token_hex(8)}.new"
        with files.explained(link, "be replaced"):
            files.sync_folder(generations)
            try:
                aside.symlink_to(Path(GENERATIONS, stem, generation.name))
                aside.replace(link)
            finally:
                aside.unlink(missing_ok=True)
            files.sync_folder(folder)


def _pieces(bundle: Bundle) -> dict[str, bytes]:
    certificate, chain = bundle.split_chain()
    return {
        "privkey.pem": bundle.key_pem,
        "cert.pem": certificate,
        "chain.pem": chain,
        "fullchain.pem": bundle.chain_pem,
    }


def _remove_all_but(folder: Path, kept: set[str]) -> None:
    """Remove generations that nobody looks at any more, and those that a crash left behind half made."""
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
