"""Without ngh2 there is no HTTP/2, and everything else as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trioproxy.http.alpn import spoken

WITHOUT = """
import sys
sys.modules["ngh2"] = None  # so that importing it fails
import trioproxy.server, trioproxy.proxy.front_door
from trioproxy.http.alpn import spoken
print(*spoken()[0])
"""


def test_http2_is_preferred() -> None:
    assert spoken() == (("h2", "http/1.1"), "")


def test_without_ngh2_the_server_still_loads_and_offers_http11() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("http/1.1", "")


def test_why_http2_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ngh2", None)
    protocols, reason = spoken()
    assert protocols == ("http/1.1",)
    assert "ngh2" in reason
