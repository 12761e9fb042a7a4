"""`[acme]`: every key of it, what fallbacks take over, and that a secret stays one."""

from __future__ import annotations

from pathlib import Path

import pytest

from trioproxy.config.load import parse
from trioproxy.config.model import (
    LETSENCRYPT,
    LETSENCRYPT_STAGING,
    ZEROSSL,
    AccountId,
    Acme,
    Config,
    Eab,
)
from trioproxy.errors import ConfigError

SITE = '\n[sites]\n"a.myname.com" = "http://b"\n'
FOLDER = Path("/etc/trioproxy")


def configuration(text: str) -> Config:
    return parse(text + SITE, FOLDER / "config.toml", {}, 0)


def test_every_key() -> None:
    acme = configuration(
        """
        [acme]
        email = "me@myname.com"
        directory = "https://ca.lan/dir"
        ca_file = "ca.pem"
        staging = "https://ca.lan/rehearse"
        staging_ca_file = "rehearse.pem"
        profile = "shortlived"
        challenges = ["tls-alpn-01", "http-01"]
        key_type = "rsa-2048"
        preferred_chain = "Root X1"
        eab = { key_id = "kid-1", hmac_key = "_-8" }
        on_renew = ["systemctl", "reload", "postfix"]
        fallback = [{ directory = "letsencrypt" }]
        """
    ).acme
    assert acme == Acme(
        email="me@myname.com",
        directory="https://ca.lan/dir",
        ca_file=FOLDER / "ca.pem",
        staging="https://ca.lan/rehearse",
        staging_ca_file=FOLDER / "rehearse.pem",
        profile="shortlived",
        challenges=("tls-alpn-01", "http-01"),
        key_type="rsa-2048",
        preferred_chain="Root X1",
        eab=Eab("kid-1", b"\xff\xef"),
        on_renew=("systemctl", "reload", "postfix"),
        fallback=(
            Acme(
                email="me@myname.com",
                directory=LETSENCRYPT,
                staging=LETSENCRYPT_STAGING,
                key_type="rsa-2048",
                challenges=("tls-alpn-01", "http-01"),
            ),
        ),
    )


def test_an_empty_value_is_as_good_as_none() -> None:
    text = '[acme]\nstaging = ""\nprofile = ""\npreferred_chain = ""\neab = { key_id = "", hmac_key = "" }\n'
    assert configuration(text + "on_renew = []\nfallback = []").acme == Acme(staging=LETSENCRYPT_STAGING)


def test_lets_encrypt_alone_has_a_staging_that_nobody_wrote() -> None:
    assert configuration(f'[acme]\ndirectory = "{LETSENCRYPT}"').acme.staging == LETSENCRYPT_STAGING
    for directory in ("zerossl", "https://ca.lan/"):
        assert configuration(f'[acme]\ndirectory = "{directory}"').acme.staging == ""
    written = configuration('[acme]\ndirectory = "https://ca.lan/"\nstaging = "letsencrypt"').acme
    assert written.staging == LETSENCRYPT_STAGING


def test_a_rehearsal_is_the_same_with_an_account_of_its_own() -> None:
    acme = Acme(
        "me@b.c",
        "https://ca/",
        Path("ca.pem"),
        staging="https://rehearse/",
        staging_ca_file=Path("r.pem"),
        profile="p",
        eab=Eab("k", b"s"),
    )
    rehearsal = acme.rehearsal
    assert rehearsal == Acme("me@b.c", "https://rehearse/", Path("r.pem"), profile="p")
    assert rehearsal.rehearsal is None


def test_a_fallback_has_its_own_terms_and_our_habits() -> None:
    text = """
        [acme]
        email = "me@myname.com"
        profile = "shortlived"
        preferred_chain = "Root X1"
        [[acme.fallback]]
        directory = "zerossl"
        eab = { key_id = "k", hmac_key = "AAAA" }
        [[acme.fallback]]
        directory = "zerossl"
        email = "you@myname.com"
        eab = { key_id = "l", hmac_key = "AAAA" }
        """
    first, second = configuration(text).acme.fallback
    assert first == Acme("me@myname.com", ZEROSSL, eab=Eab("k", b"\0\0\0"))
    assert (second.email, second.account) == ("you@myname.com", AccountId(ZEROSSL, "l"))
    assert first.account != second.account, "one CA may be asked as two of its customers"


@pytest.mark.parametrize("written", ["+/8=", "-_8", "-_8="])
def test_a_key_is_read_in_both_alphabets_of_base64(written: str) -> None:
    text = f'[acme]\neab = {{ key_id = "kid", hmac_key = "{written}" }}'
    assert configuration(text).acme.eab == Eab("kid", b"\xfb\xff")


@pytest.mark.parametrize(
    "text",
    [
        'eab = { key_id = "kid", hmac_key = "Top Secret" }',
        'eab = { key_id = "kid", hmac_key = "TopSecret\\n" }',
        'eab = { key_id = "kid", hmac_key = ["TopSecret"] }',
        'eab = { key_id = "kid", hmac_key = { TopSecret = 1 }, x = "TopSecret" }',
        'eab = { key_id = "Top Secret", hmac_key = "TopSecret" }',
        'eab = { hmac_key = "TopSecret" }',
        'eab = "TopSecret"',
        'eab = ["TopSecret"]',
        'hmac_key = "TopSecret"',
        'eab = { key_id = "kid", hmac_key = "TopSecret }',
        "eab = { key_id = kid, hmac_key = TopSecret }",
        'eab = { key_id = "kid", hmac_key = "TopSecret", hmac_key = "TopSecret" }',
    ],
)
def test_no_message_shows_the_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(f"[acme]\n{text}")
    shown = "".join(caught.value.lines()) + repr(caught.value)
    assert "Secret" not in shown.replace("acme.eab.hmac_key.TopSecret", "")


def test_nothing_shows_the_secret() -> None:
    config = configuration('[acme]\neab = { key_id = "kid", hmac_key = "VG9wU2VjcmV0" }')
    assert config.acme.eab is not None
    assert config.acme.eab.hmac_key == b"TopSecret"
    assert "Secret" not in f"{config!r} {config}"


def test_a_command_may_be_one_text_and_is_split_as_a_shell_would() -> None:
    assert configuration("[acme]\non_renew = \"'/opt/my hook' --name x\"").acme.on_renew == (
        "/opt/my hook",
        "--name",
        "x",
    )
    assert configuration('[acme]\non_renew = ""').acme.on_renew == ()
