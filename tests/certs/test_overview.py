"""Which certificates there are, for who asks when they expire."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.certs.making import NOW, acme_site, bundle, files_site, internal_site
from tests.certs.test_contexts import write_files
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.contexts import Served
from trioproxy.certs.known import Known
from trioproxy.certs.overview import Leaves, overview

NAME = "cloud.example.com"


@pytest.fixture(scope="module")
def leaf() -> Leaf:
    return bundle(NAME).leaf


@pytest.fixture(scope="module")
def other() -> Leaf:
    return bundle(NAME).leaf


def test_a_stand_in_is_not_the_certificate_of_a_site_that_waits_for_its_own(leaf: Leaf, other: Leaf) -> None:
    site, stand_in = acme_site(NAME), {NAME: Served(other, "internal")}
    assert Leaves({}, {}, stand_in).of(site) is None
    assert Leaves({NAME: Known()}, {}, stand_in).of(site) is None
    assert Leaves({NAME: Known(leaf)}, {}, stand_in).of(site) is leaf


def test_files_count_whether_or_not_somebody_has_asked_for_the_site(leaf: Leaf, other: Leaf, tmp_path: Path) -> None:
    site = files_site(NAME, write_files(tmp_path, bundle(NAME)))
    assert Leaves({}, {}, {}).of(site) is None
    assert Leaves({}, {NAME: leaf}, {}).of(site) is leaf
    assert Leaves({}, {NAME: leaf}, {NAME: Served(other, "internal", "why")}).of(site) is leaf
    assert Leaves({}, {NAME: leaf}, {NAME: Served(other, "files")}).of(site) is other, "what is served counts"


def test_what_the_internal_authority_makes_is_there_once_somebody_has_asked(leaf: Leaf) -> None:
    site = internal_site(NAME)
    assert Leaves({}, {}, {}).of(site) is None
    assert Leaves({}, {}, {NAME: Served(leaf, "internal")}).of(site) is leaf
    assert leaf.not_after > NOW


@pytest.mark.parametrize("by", ["acme", "files"])
def test_what_was_served_before_a_reload_is_not_of_the_internal_authority(by: Literal["acme", "files"]) -> None:
    site, stale = internal_site(NAME), Served(bundle(NAME).leaf, by)
    assert Leaves({}, {}, {NAME: stale}).of(site) is None
    status = overview(site, NOW, Known(), stale, busy=False)
    assert (status.state, status.issuer, status.days_left) == ("good", "", None)
