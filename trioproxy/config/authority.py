"""`[acme]` and its fallbacks: the certificate authorities to ask, and on what terms."""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from collections.abc import Mapping
from typing import Any

import attrs

from trioproxy.config.keys import KEY_TYPES
from trioproxy.config.lines import Place
from trioproxy.config.model import CHALLENGES, LETSENCRYPT, LETSENCRYPT_STAGING, Acme, Eab
from trioproxy.config.reading import Key, Keys, Reading
from trioproxy.config.values import Wrong, directory, directory_url, email, file_path, one_of, quoted, text

# What ACME's profiles and CAs' issuers are called: short words, and names with spaces.
_PROFILE = re.compile(r"[A-Za-z0-9._-]{1,100}")

_KEY_ID = re.compile(r"[!-~]{1,500}")
_BASE64 = re.compile(r"[A-Za-z0-9_+/-]{1,2000}={0,2}")


def profile(value: object) -> str:
    """The name of one of a CA's profiles."""
    word = text(value)
    if not _PROFILE.fullmatch(word):
        raise Wrong(f'{quoted(word)} is no name of a profile: write one of the CA\'s own, such as "shortlived"')
    return word


def staging(value: object) -> str:
    """The directory at which is rehearsed; `letsencrypt` means its staging."""
    word = text(value)
    if word == "letsencrypt":
        return LETSENCRYPT_STAGING
    return directory_url(word, 'write "letsencrypt" for the staging of Let\'s Encrypt, or the URL of a directory')


SHELL_OPERATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1"})


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments: a list of words, or one text that is split as a shell would split it."""
    if isinstance(value, str):
        try:
            words: list[object] = [*shlex.split(value)]
        except ValueError as exc:
            raise Wrong(f"{quoted(value)} cannot be split into words: {exc}") from exc
        if operators := SHELL_OPERATORS.intersection(map(str, words)):
            raise Wrong(f'{quoted(min(operators))} is for a shell, and none is involved: write ["sh", "-c", "…"]')
    elif isinstance(value, list):
        words = value
    else:
        raise Wrong('write a command, "systemctl reload postfix", or a list of its words')
    if not all(map(text, words)):
        raise Wrong("an empty word: leave it out")
    return tuple(map(text, words))


# What an account is bound with is a secret, or stands beside one and may have been exchanged for it: none of these
# messages shows what was written.


def key_id(value: object) -> str:
    """The CA's name for the customer, as it stands on the customer's page there."""
    if not isinstance(value, str) or not _KEY_ID.fullmatch(value):
        raise Wrong("write the key id as the CA shows it: one word in quotes, without spaces")
    return value


def hmac_key(value: object) -> bytes:
    """The key that the CA gave to the customer, base64url (RFC 8555 section 7.3.4), decoded."""
    if isinstance(value, str) and _BASE64.fullmatch(value):
        plain = value.rstrip("=").translate(str.maketrans("+/", "-_"))
        try:
            return base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4))
        except binascii.Error:
            pass
    raise Wrong("write the HMAC key as the CA shows it: base64url in quotes, letters, digits, - and _")


EAB: Keys = {"key_id": Key(key_id, empty=True), "hmac_key": Key(hmac_key, empty=True)}

_CA: Keys = {
    "email": Key(email, empty=True),
    "directory": Key(directory),
    "ca_file": Key(file_path, empty=True),
    "staging": Key(staging, empty=True),
    "staging_ca_file": Key(file_path, empty=True),
    "profile": Key(profile, empty=True),
    "challenges": Key(one_of(*CHALLENGES), many=True),
    "key_type": Key(one_of(*KEY_TYPES)),
    "preferred_chain": Key(text, empty=True),
    "eab": Key(text, inner=EAB),
}

ACME: Keys = {
    **_CA,
    "on_renew": Key(command),
    "fallback": Key(text, many=True, inner=_CA),
}

INHERITED = ("email", "key_type", "challenges")
"""What a fallback takes over from `[acme]` where it says nothing: what is ours and not a CA's."""


def read(reading: Reading, found: Mapping[str, Any], written: object) -> Acme:
    """`[acme]` as a value.

    Args:
        reading: Takes what is wrong between its keys.
        found: Its good values.
        written: The section as TOML has it.
    """
    raw = written if isinstance(written, dict) else {}
    fallbacks = found.get("fallback", ())
    first = _one(reading, {key: item for key, item in found.items() if key != "fallback"}, ("acme",), raw)
    inherited = {key: getattr(first, key) for key in INHERITED}
    raws: list[Any] = raw.get("fallback") or []
    authorities = [first]
    for index, (values, own) in enumerate(zip(fallbacks, raws, strict=False)):
        place = ("acme", "fallback", index)
        authority = _one(reading, {**inherited, **values}, place, own)
        if "directory" not in own:
            reading.wrong(place, 'write which CA it is: directory = "zerossl", or the URL of one')
        elif any(authority.account == known.account for known in authorities) and "directory" in values:
            reading.wrong((*place, "directory"), f"{quoted(authority.directory)} is asked before already")
        authorities.append(authority)
    return attrs.evolve(first, fallback=tuple(authorities[1:]))


def _one(reading: Reading, found: Mapping[str, Any], place: Place, raw: Mapping[str, Any]) -> Acme:
    values = dict(found)
    bound = values.pop("eab", {})
    written = raw.get("eab")
    if isinstance(written, dict) and any(written.get(key) for key in EAB):
        for key in EAB:
            if not written.get(key):
                reading.wrong((*place, "eab"), f"{key} is missing: the CA shows both, the key id and the HMAC key")
    eab = Eab(**bound) if set(bound) == set(EAB) else None
    if found.get("challenges") == ():
        reading.wrong((*place, "challenges"), f"write at least one of {', '.join(map(quoted, CHALLENGES))}")
    elif len(set(found.get("challenges", ()))) < len(found.get("challenges", ())):
        reading.wrong((*place, "challenges"), "one of them is there twice: keep one")
    authority = Acme(**values, eab=eab)
    if authority.staging == authority.directory:
        reading.wrong((*place, "staging"), "this is the directory itself, whose limits a rehearsal is to spare")
    if not authority.staging and authority.directory == LETSENCRYPT:
        authority = attrs.evolve(authority, staging=LETSENCRYPT_STAGING)
    if "staging_ca_file" in values and not authority.staging:
        reading.wrong((*place, "staging_ca_file"), "there is no staging that it could be for: write staging, too")
    return authority
