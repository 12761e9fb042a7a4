"""Certificates and keys that other programs left in a folder: certbot's `live`, or any PEM files.

The layout says nothing. Every file is read for what is in it; a key belongs to the certificate that has its public key,
wherever either lies, and a chain is built from the issuers that are there, those of the same file first. So certbot's
folders, pairs beside each other and combined files are all one. Nothing is ever written there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from trioproxy.acme.problems import plain
from trioproxy.certs.bundle import Bundle, pem_blocks
from trioproxy.errors import CertificateError

Lack = Literal["key missing", "key does not match", "encrypted key", "unreadable"]
"""Why a certificate cannot be used."""

MAX_FILE = 1024 * 1024
"""Bytes of a file that can be a certificate or key; a chain has some 5,000."""

MAX_FILES = 20_000
MAX_DEPTH = 4
"""Folders below the one that was named: what is larger or deeper is not the folder that was meant."""

MAX_CHAIN = 10


@attrs.frozen
class _Certificate:
    path: Path
    position: int  # in its file
    pem: bytes = attrs.field(repr=False)
    parsed: x509.Certificate

    @property
    def is_authority(self) -> bool:
        try:
            return self.parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            return False


@attrs.frozen
class _Key:
    path: Path
    pem: bytes = attrs.field(repr=False)
    public: bytes | None  # None where it is encrypted


@attrs.frozen
class Candidate:
    """A certificate with what belongs to it.

    Attributes:
        path: Where it was found.
        names: Its names.
        bundle: Key and chain; None where there is no key for it.
        problem: The result for want of a key, "" where there is one.
        self_signed: Whether no CA has signed it, so that browsers warn of it.
    """

    path: Path
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    bundle: Bundle | None
    problem: Lack | Literal[""] = ""
    detail: str = ""
    self_signed: bool = False

    def matches(self, name: str) -> bool:
        """Whether it is good for `name`."""
        suffix = name.partition(".")[2]
        return name in self.names or bool(suffix and f"*.{suffix}" in self.names)


@attrs.frozen
class Found:
    """What a folder holds.

    Attributes:
        candidates: Its certificates, without those of authorities.
        unreadable: Files that look like PEM and cannot be read, and why.
        warnings: Sentences about keys that others can read.
    """

    candidates: tuple[Candidate, ...]
    unreadable: tuple[tuple[Path, str], ...]
    warnings: tuple[str, ...]


# ---- reading ------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Found:
    """Read everything in `folder` and below it. Of certbot's own folder only `live` is read, where the newest are.

    Raises:
        CertificateError: the folder cannot be listed, or is far too large.
    """
    if (folder / "live").is_dir() and (folder / "archive").is_dir():
        folder /= "live"
    certificates: list[_Certificate] = []
    keys: list[_Key] = []
    unreadable: list[tuple[Path, str]] = []
    warnings: list[str] = []
    for path in _files(folder):
        try:
            data, mode = _read(path)
            if b"-----BEGIN " not in data:
                continue
            in_file = [*_certificates(path, data)]
            keys_in_file = [*_keys(path, data)]
        except CertificateError as exc:
            unreadable.append((path, str(exc)))
            continue
        certificates += in_file
        keys += keys_in_file
        if keys_in_file and mode & stat.S_IROTH:
            warnings.append(f"every user of this machine can read the private key {path}: `chmod o= {path}`")
    return Found(tuple(_candidates(certificates, keys)), tuple(unreadable), tuple(warnings))


def _files(folder: Path) -> Iterator[Path]:
    count = 0

    def fail(exc: OSError) -> None:
        raise CertificateError(f"{exc.filename} cannot be read: {exc.strerror}") from exc

    for where, folders, names in os.walk(folder, onerror=fail):
        depth = len(Path(where).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < MAX_DEPTH else []
        for name in sorted(names):
            path = Path(where, name)
            count += 1
            if count > MAX_FILES:
                raise CertificateError(f"there are more than {MAX_FILES} files below {folder}: name the folder itself")
            if path.is_file() or not path.exists():  # no FIFOs, which would be waited for; but links that lead nowhere
                yield path


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return (file.read() if status.st_size <= MAX_FILE else b""), stat.S_IMODE(status.st_mode)
    except OSError as exc:
        raise CertificateError(f"it cannot be read: {exc.strerror}") from exc


def _certificates(path: Path, data: bytes) -> Iterator[_Certificate]:
    for position, pem in enumerate(pem_blocks(data, b"CERTIFICATE")):
        try:
            yield _Certificate(path, position, pem, x509.load_pem_x509_certificate(pem))
        except ValueError as exc:
            raise CertificateError("a certificate in it is damaged") from exc


def _keys(path: Path, data: bytes) -> Iterator[_Key]:
    for pem in pem_blocks(data, b"PRIVATE KEY"):
        try:
            public = load_pem_private_key(pem, None).public_key()
        except TypeError:  # cryptography's way to say that it wants a passphrase
            yield _Key(path, pem, None)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise CertificateError("a private key in it is damaged, or of a kind that is not known here") from exc
        else:
            yield _Key(path, pem, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# ---- putting together ---------------------------------------------------------------------------------


def _candidates(certificates: list[_Certificate], keys: list[_Key]) -> Iterator[Candidate]:
    by_subject: dict[x509.Name, list[_Certificate]] = {}
    sizes: dict[Path, int] = {}
    for certificate in certificates:
        by_subject.setdefault(certificate.parsed.subject, []).append(certificate)
        sizes[certificate.path] = sizes.get(certificate.path, 0) + 1
    usable = {key.public: key for key in keys if key.public is not None}
    belonging = {public for certificate in certificates if (public := _public(certificate)) is not None}
    stray = [key for key in keys if key.public is None or key.public not in belonging]
    seen: set[bytes] = set()
    # The file that holds most of the chain speaks for a certificate that lies in several.
    for certificate in sorted(certificates, key=lambda c: -sizes[c.path]):
        der = certificate.parsed.public_bytes(Encoding.DER)
        if certificate.is_authority or der in seen:
            continue
        seen.add(der)
        yield _candidate(certificate, by_subject, usable, stray)


def _candidate(
    leaf: _Certificate,
    by_subject: Mapping[x509.Name, list[_Certificate]],
    usable: Mapping[bytes, _Key],
    stray: list[_Key],
) -> Candidate:
    public = _public(leaf)
    key = usable.get(public) if public is not None else None
    bundle: Bundle | None = None
    problem: Lack | Literal[""] = ""
    detail = ""
    if key is None:
        problem, detail = _without_key(leaf, stray)
    else:
        try:
            bundle = Bundle.of(key.pem, b"\n".join([leaf.pem, *_above(leaf, by_subject)]))
        except CertificateError as exc:
            problem, detail = "unreadable", str(exc)
    return Candidate(
        leaf.path,
        bundle.leaf.names if bundle else _names(leaf.parsed),
        leaf.parsed.not_valid_before_utc,
        leaf.parsed.not_valid_after_utc,
        bundle,
        problem,
        detail,
        _issued(leaf, leaf),
    )


def _without_key(leaf: _Certificate, stray: list[_Key]) -> tuple[Lack, str]:
    """What is the matter where no key that can be used belongs to a certificate; judged by the keys beside it."""
    beside = [key for key in stray if key.path.parent == leaf.path.parent]
    for key in beside:
        if key.public is None:
            return "encrypted key", f"{key.path} wants a passphrase: store it without one, and import again"
    if beside:
        return "key does not match", f"{beside[0].path} is the key of another certificate"
    return "key missing", "no private key in this folder belongs to it"


def _above(leaf: _Certificate, by_subject: Mapping[x509.Name, list[_Certificate]]) -> list[bytes]:
    """The certificates above `leaf`, as far as they are there, without the root, which clients have."""
    chain: list[bytes] = []
    current = leaf
    while len(chain) < MAX_CHAIN and current.parsed.issuer != current.parsed.subject:
        # An authority may have several certificates with one name and key; those of the same file were meant.
        near = sorted(
            by_subject.get(current.parsed.issuer, ()),
            key=lambda c: (c.path != leaf.path, c.path.parent != leaf.path.parent, c.position),
        )
        issuer = next((candidate for candidate in near if _issued(current, candidate)), None)
        if issuer is None or issuer.parsed.issuer == issuer.parsed.subject or issuer.pem in chain:
            break
        chain.append(issuer.pem)
        current = issuer
    return chain


def _issued(certificate: _Certificate, issuer: _Certificate) -> bool:
    try:
        certificate.parsed.verify_directly_issued_by(issuer.parsed)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _public(certificate: _Certificate) -> bytes | None:
    try:
        return certificate.parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(plain(name.lower()) for name in names.value.get_values_for_type(x509.DNSName))
