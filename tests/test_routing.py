"""Names to entries, paths to routes, and Location back."""

from __future__ import annotations

from pathlib import Path

import pytest

from trioproxy.config.load import parse
from trioproxy.config.model import Config, Passthrough, Route, Site, Target
from trioproxy.errors import RequestError
from trioproxy.names import normalise
from trioproxy.routing import Choice, Redirect, RouteTable, choose, map_location, route_for


def configuration(text: str) -> Config:
    return parse(text, Path("config.toml"), {}, 0)


def site(**routes: str) -> Site:
    """A site with these routes: prefix to target."""
    lines = "\n".join(f'"{prefix}" = "{to}"' for prefix, to in routes.items())
    return configuration(f'[sites."x.myname.com"]\n{lines}').sites["x.myname.com"]


def long_site(text: str) -> Site:
    """A site with this text for its table."""
    return configuration(f'[sites."x.myname.com"]\n{text}').sites["x.myname.com"]


def chosen(where: Site, target: str) -> tuple[str, bytes, bytes | None]:
    choice = choose(where, target.encode("latin-1"))
    assert isinstance(choice, Choice)
    return choice.route.prefix, choice.target, choice.prefix


def status(where: Site, target: str) -> int:
    with pytest.raises(RequestError) as caught:
        choose(where, target.encode("latin-1"))
    return caught.value.status


# ---- names --------------------------------------------------------------------------------------------


def mixed(text: str, number: int) -> str:
    """`text` with every other letter in upper case, from an offset that `number` gives."""
    return "".join(c.upper() if (i + number) % 2 else c for i, c in enumerate(text))


@pytest.mark.parametrize("hosts", [1, 100, 101, 10_000])
def test_case_never_matters_however_many_hosts_there_are(hosts: int) -> None:
    names = [f"host{number}.myname.com" for number in range(hosts)]
    table = RouteTable.of(
        configuration(
            "[passthrough]\n"
            + "".join(f'"{mixed(name, i)}" = "10.1.2.3"\n' for i, name in enumerate(names) if i % 2)
            + "[sites]\n"
            + "".join(f'"{mixed(name, i)}" = "http://10.1.2.3"\n' for i, name in enumerate(names) if i % 2 == 0)
        )
    )
    assert len(table.entries) == hosts
    for number, name in enumerate(names):
        entry = table.for_name(normalise(mixed(name, number + 1) + "."))
        assert entry is not None
        assert entry.name == name
        assert isinstance(entry, Passthrough if number % 2 else Site)
    assert table.for_name(normalise(f"host{hosts}.myname.com")) is None


def test_a_wildcard_covers_exactly_one_label() -> None:
    table = RouteTable.of(configuration('[passthrough]\n"*.apps.myname.com" = "10.1.2.3"'))
    wildcard = table.entries["*.apps.myname.com"]
    assert table.for_name("one.apps.myname.com") is wildcard
    assert table.for_name("apps.myname.com") is None
    assert table.for_name("two.one.apps.myname.com") is None
    assert table.for_name("myname.com") is None


def test_an_exact_name_wins_over_a_wildcard_and_a_wildcard_over_the_catch_all() -> None:
    table = RouteTable.of(
        configuration(
            '[passthrough]\n"*.apps.myname.com" = "10.1.2.3"\n"*" = "127.0.0.1:1443"\n'
            '[sites]\n"one.apps.myname.com" = "http://10.2.3.4"'
        )
    )
    assert table.for_name("one.apps.myname.com") is table.entries["one.apps.myname.com"]
    assert table.for_name("two.apps.myname.com") is table.entries["*.apps.myname.com"]
    assert table.for_name("apps.myname.com") is table.entries["*"]
    assert table.configured("apps.myname.com") is None
    assert table.catch_all() is table.entries["*"]


def test_the_catch_all_is_no_entry_for_clients_without_a_name() -> None:
    both = '[passthrough]\n"*" = "127.0.0.1:1443"\n"pbx.myname.com" = "10.1.2.3"\n'
    assert RouteTable.of(configuration(both)).for_name(None) is None
    table = RouteTable.of(configuration(both + '[listen]\nno_sni = "PBX.myname.com"'))
    assert table.for_name(None) is table.entries["pbx.myname.com"]
    table = RouteTable.of(configuration(both + '[listen]\nno_sni = "*"'))
    assert table.for_name(None) is table.entries["*"]


# ---- routes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "to", "request_target", "sent", "prefix"),
    [
        ("/", "http://b", "/x?y", b"/x?y", None),
        ("/api/", "http://b", "/api/x", b"/api/x", None),
        ("/api/", "http://b/", "/api/x", b"/x", b"/api"),
        ("/api/", "http://b/v1", "/api/x", b"/v1/x", b"/api"),
        ("/api/", "http://b/v1/", "/api/x", b"/v1/x", b"/api"),
        ("/api/", "http://b/v1", "/api/", b"/v1/", b"/api"),
        ("/api/", "http://b/", "/api/?", b"/?", b"/api"),
        ("/api/", "http://b/v1", "/api/x?y=/api/z?", b"/v1/x?y=/api/z?", b"/api"),
        ("/api", "http://b/v1", "/api", b"/v1", b"/api"),
        ("/api", "http://b/v1/", "/api", b"/v1/", b"/api"),
        ("/api", "http://b/v1/", "/api/x", b"/v1/x", b"/api"),
        ("/api", "http://b/", "/api?y", b"/?y", b"/api"),
        ("/", "http://b/app", "/x", b"/app/x", None),
        ("/", "http://b/", "/x", b"/x", None),
        ("/api/", "http://b/api/", "/api/x", b"/api/x", None),  # nothing is missing from what the backend sees
        ("/a/b/", "http://b/", "/a/b/c", b"/c", b"/a/b"),
    ],
)
def test_what_the_backend_gets(route: str, to: str, request_target: str, sent: bytes, prefix: bytes | None) -> None:
    assert chosen(site(**{route: to}), request_target) == (route, sent, prefix)


@pytest.mark.parametrize("to", ["http://b/", "http://b/v1", "http://b/v1/"])
def test_a_missing_slash_is_redirected_with_its_query_where_the_prefix_is_replaced(to: str) -> None:
    assert choose(site(**{"/api/": to}), b"/api?x=1") == Redirect(b"/api/?x=1")
    assert choose(site(**{"/api/": to, "/": "http://c"}), b"/api") == Redirect(b"/api/")


def test_a_missing_slash_is_left_alone_where_the_path_goes_on_unchanged() -> None:
    assert chosen(site(**{"/api/": "http://b", "/": "http://c"}), "/api") == ("/", b"/api", None)
    assert status(site(**{"/api/": "http://b"}), "/api") == 404


def test_a_route_of_its_own_wins_over_the_redirect() -> None:
    both = site(**{"/api/": "http://b/", "/api": "http://c", "/": "http://d"})
    assert chosen(both, "/api") == ("/api", b"/api", None)
    assert chosen(both, "/api/x") == ("/api/", b"/x", b"/api")


def test_the_longest_prefix_wins_on_segment_boundaries() -> None:
    routes = site(**{"/": "http://a", "/api": "http://b", "/api/v2/": "http://c"})
    assert chosen(routes, "/api")[0] == "/api"
    assert chosen(routes, "/api/v1/x")[0] == "/api"
    assert chosen(routes, "/api/v2")[0] == "/api"
    assert chosen(routes, "/api/v2/x")[0] == "/api/v2/"
    assert chosen(routes, "/apis")[0] == "/"
    assert route_for(routes, "/apis") == Route("/", Target("http", "a", 80))


def test_a_path_without_a_route_is_not_found() -> None:
    assert status(site(**{"/api/": "http://b"}), "/") == 404
    assert status(site(**{"/api/": "http://b"}), "/x?/api/") == 404


def test_options_of_the_whole_server_goes_where_the_root_goes() -> None:
    assert chosen(site(**{"/": "http://b/app", "/api/": "http://c"}), "*") == ("/", b"*", None)
    assert status(site(**{"/api/": "http://c"}), "*") == 404


@pytest.mark.parametrize("target", ["", "?x", "x", "**", "*?x", "http://b/", "\\x"])
def test_what_is_no_path_is_refused(target: str) -> None:
    assert status(site(**{"/": "http://b"}), target) == 400


TWO = {"/": "http://a", "/admin/": "http://b"}


@pytest.mark.parametrize(
    "target",
    [
        "/x/../admin/y",
        "/x/%2e%2e/admin/y",
        "/x/%2E./admin/y",
        "/x%2f..%2fadmin/y",
        "/%61dmin/y",
        "/admin%2fy",
        "//admin/y",
        "/./admin/y",
        "/%2e/admin/y",
        "/x/..;/admin/y",
        "/x\\..\\admin\\y",
        "/x%5c..%5cadmin%5cy",
        "/admin/../y",
        "/admin/..",
        "/admin/%2e%2e",
        "/admin/%2e%2e?x",
        "/admin/..%2fy",
        "/admin/..;x=1/y",
        "/admin/..\\y",
        "/admin//../../y",
    ],
)
def test_a_path_whose_route_depends_on_how_it_is_read_is_refused(target: str) -> None:
    assert status(site(**TWO), target) == 400


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/@scope%2fpackage", "/"),
        ("/a//b", "/"),
        ("/a/./b/../c", "/"),
        ("/%C3%BC?q=%zz", "/"),
        ("/.well-known/x", "/"),
        ("/admin/%2e/x", "/admin/"),
        ("/admin//x", "/admin/"),
        ("/admin/x/..", "/admin/"),
        ("/x?/../admin/", "/"),
        ("/x%3f/y", "/"),
        ("/\xfc", "/"),
    ],
)
def test_other_unusual_paths_go_on_byte_for_byte(target: str, route: str) -> None:
    assert chosen(site(**TWO), target) == (route, target.encode("latin-1"), None)


@pytest.mark.parametrize("target", ["/..", "/../x", "/x/../../y", "/%2e%2e/x", "/%zz", "/x%", "/x%2"])
def test_a_path_that_cannot_be_resolved_is_refused(target: str) -> None:
    assert status(site(**{"/": "http://b"}), target) == 400


@pytest.mark.parametrize(
    "target",
    ["/api/../api/x", "/api/x/../../api/x", "/api/%2e%2e/api/x", "/api/..%2fapi/x", "/api/..;/api/x", "/api//../x"],
)
def test_below_a_replaced_prefix_no_path_climbs_out_even_to_come_back(target: str) -> None:
    assert status(site(**{"/api/": "http://b/v1"}), target) == 400
    assert status(site(**{"/api/": "http://b/v1", "/": "http://b"}), target) == 400


def test_below_a_replaced_prefix_raw_bytes_go_on() -> None:
    where = site(**{"/api/": "http://b/v1"})
    assert chosen(where, "/api/a%2fb/../c//d?%2e") == ("/api/", b"/v1/a%2fb/../c//d?%2e", b"/api")
    assert chosen(where, "/api//x") == ("/api/", b"/v1//x", b"/api")


def test_the_path_of_several_targets_is_one() -> None:
    where = long_site('"/api/" = { to = ["http://b/v1", "h2c://c/v1", "https://d/v1"] }')
    assert chosen(where, "/api/x") == ("/api/", b"/v1/x", b"/api")
    assert choose(where, b"/api") == Redirect(b"/api/")
    assert chosen(site(**{"/api/": "unix:/run/x"}), "/api/x") == ("/api/", b"/api/x", None)


# ---- redirects ----------------------------------------------------------------------------------------


def moved(prefix: str, redirect: str, target: bytes, others: str = "") -> bytes:
    choice = choose(long_site(f'"{prefix}" = {{ redirect = "{redirect}" }}\n{others}'), target)
    assert isinstance(choice, Redirect)
    return choice.location


@pytest.mark.parametrize(
    ("prefix", "redirect", "target", "location"),
    [
        ("/old/", "/new/", b"/old/x?y", b"/new/x?y"),
        ("/old/", "/new", b"/old/x", b"/new/x"),
        ("/old/", "/new", b"/old/", b"/new/"),
        ("/old/", "/new/", b"/old/?", b"/new/?"),
        ("/old/", "/", b"/old/x/", b"/x/"),
        ("/old", "/new/", b"/old", b"/new/"),
        ("/old", "/new/", b"/old?y", b"/new/?y"),
        ("/old", "/new", b"/old/x", b"/new/x"),
        ("/old/", "/new/", b"/old", b"/old/"),  # the slash first, as with a target
        ("/old/", "/new/", b"/old?y", b"/old/?y"),
        ("/old/", "https://other.example", b"/old/x?y", b"https://other.example/old/x?y"),
        ("/old/", "https://other.example/", b"/old/x?y", b"https://other.example/x?y"),
        ("/old/", "https://other.example/old/", b"/old/x", b"https://other.example/old/x"),
        ("/old/", "https://other.example:8443/new", b"/old/x", b"https://other.example:8443/new/x"),
        ("/", "https://www.myname.com", b"/", b"https://www.myname.com/"),
        ("/", "https://www.myname.com", b"/a//b?c=/d", b"https://www.myname.com/a//b?c=/d"),
        ("/", "https://www.myname.com/app", b"/", b"https://www.myname.com/app/"),
    ],
)
def test_where_a_redirect_leads(prefix: str, redirect: str, target: bytes, location: bytes) -> None:
    assert moved(prefix, redirect, target) == location


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/old//evil.example", b"/.//evil.example"),
        (b"/old//evil.example/%2e%2e", b"/.//evil.example/%2e%2e"),
        (b"/old/\\evil.example", b"/./\\evil.example"),
        (b"/old/\t/evil.example", b"/%09/evil.example"),
        (b"/old/x\r\nSet-Cookie: a=b", b"/x%0D%0ASet-Cookie:%20a=b"),
        (b"/old/\xfc?\xfc", b"/%FC?%FC"),
        (b"/old/%0d%0ax", b"/%0d%0ax"),
    ],
)
def test_no_path_makes_a_redirect_lead_to_another_host_or_write_a_field(target: bytes, location: bytes) -> None:
    assert moved("/old/", "/", target) == location


def test_no_path_joins_the_host_of_a_redirect() -> None:
    for target in (b"/.evil.example", b"/@evil.example", b"//evil.example", b"/:80/"):
        assert moved("/", "https://www.myname.com", target) == b"https://www.myname.com" + target


@pytest.mark.parametrize("target", ["/old/../x", "/old/%2e%2e/x", "/x/../old/y", "/old/x/../../old/y"])
def test_a_redirect_depends_on_no_reading_of_the_path_either(target: str) -> None:
    assert status(long_site('"/old/" = { redirect = "/new/" }\n"/" = "http://b"'), target) == 400


def test_a_redirect_among_other_routes() -> None:
    where = long_site('"/" = "http://b"\n"/old/" = { redirect = "/new/" }\n"/old/kept" = "http://c/k"')
    assert chosen(where, "/older") == ("/", b"/older", None)
    assert chosen(where, "/old/kept/x") == ("/old/kept", b"/k/x", b"/old/kept")
    assert choose(where, b"/old/x") == Redirect(b"/new/x")
    assert choose(where, b"/old") == Redirect(b"/old/")
    away = long_site('"/" = "http://b"\n"/old/" = { redirect = "https://other.example" }')
    assert chosen(away, "/old") == ("/", b"/old", None)  # paths go on unchanged, so this one lies elsewhere


def test_options_of_the_whole_server_is_no_path_to_redirect() -> None:
    assert status(long_site('"/" = { redirect = "https://www.myname.com" }'), "*") == 404


# ---- Location -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "to", "location", "mapped"),
    [
        ("/", "http://b", "http://b/x?y#z", "/x?y#z"),
        ("/", "http://b", "http://b", "/"),
        ("/", "http://b", "http://b?x", "/?x"),
        ("/", "http://b", "HTTP://B:80/x", "/x"),
        ("/", "http://b", "http://b:/x", "/x"),
        ("/", "http://b:8080", "http://b:8080/x", "/x"),
        ("/", "http://b:8080", "http://b/x", None),
        ("/", "https://b", "https://b:443/x", "/x"),
        ("/", "https://b", "http://b/x", None),
        ("/", "h2c://b", "http://b/x", "/x"),
        ("/", "h2c://b:50051", "http://b:50051/x", "/x"),
        ("/", "h2c://b", "https://b/x", None),
        ("/", "unix:/run/x", "http://localhost/x", None),
        ("/", "unix:/run/x", "http:///run/x", None),
        ("/", "http://b", "https://b/x", None),
        ("/", "http://10.2.3.4", "http://10.2.3.45/x", None),
        ("/", "http://10.2.3.4", "http://10.2.3.4.evil.example/x", None),
        ("/", "http://10.2.3.4", "http://10.2.3.4@evil.example/x", None),
        ("/", "http://10.2.3.4", "http://me@10.2.3.4/x", None),
        ("/", "http://10.2.3.4", "http://10.2.3.4:80000000000/x", None),
        ("/", "http://[2001:db8::1]:81", "http://[2001:db8::1]:81/x", "/x"),
        ("/", "http://my_app", "http://my_app/x", "/x"),
        ("/api/", "http://b", "http://b/x", "/x"),
        ("/api/", "http://b/", "http://b/x", "/api/x"),
        ("/api/", "http://b/", "http://b", "/api/"),
        ("/api/", "http://b/v1", "http://b/v1/x", "/api/x"),
        ("/api/", "http://b/v1/", "http://b/v1/x", "/api/x"),
        ("/api/", "http://b/v1", "http://b/v1", "/api/"),
        ("/api/", "http://b/v1", "http://b/v1?x", "/api/?x"),
        ("/api", "http://b/v1", "http://b/v1?x", "/api?x"),
        ("/api", "http://b/v1", "http://b/v1/x", "/api/x"),
        ("/api/", "http://b/v1", "http://b/v1x", None),
        ("/api/", "http://b/v1", "http://b/", None),
        ("/", "http://b/app", "http://b/app/x", "/x"),
        ("/", "http://b", "/x", None),
        ("/", "http://b", "x", None),
        ("/", "http://b", "", None),
        ("/", "http://b", "//b/x", None),
        ("/", "http://b", "ftp://b/x", None),
        ("/", "http://b", "http://c/?http://b/", None),
        # What would be read as `//host` must stay a path.
        ("/", "http://b", "http://b//evil.example/x", "/.//evil.example/x"),
        ("/", "http://b", "http://b/\\evil.example/x", "/./\\evil.example/x"),
        ("/", "http://b", "http://b/\t/evil.example/x", None),
    ],
)
def test_location_is_mapped_back(route: str, to: str, location: str, mapped: str | None) -> None:
    where = site(**{route: to}).routes[0]
    assert map_location(where, location.encode()) == (location if mapped is None else mapped).encode()


def test_location_of_any_of_several_targets_is_mapped_back() -> None:
    lists = ('["http://b/v1", "h2c://b:81/v1", "https://c/v1"]', '["unix:/run/x", "http://d"]')
    api, root = long_site('"/api/" = {{ to = {} }}\n"/" = {{ to = {} }}'.format(*lists)).routes
    for base in (b"http://b", b"http://b:81", b"https://c"):
        assert map_location(api, base + b"/v1/x") == b"/api/x"
    for other in (b"https://b/v1/x", b"http://c/v1/x", b"http://d/v1/x", b"http://b:81/v2/x"):
        assert map_location(api, other) == other
    assert map_location(root, b"http://d/x") == b"/x"


def test_whoever_follows_a_mapped_location_gets_what_the_backend_meant() -> None:
    for route, to in [("/", "http://b"), ("/api/", "http://b/"), ("/api/", "http://b/v1"), ("/api", "http://b/v1/")]:
        where = site(**{route: to})
        base = where.routes[0].to[0].path or ""
        meant = f"{base.rstrip('/')}/x?y".encode()
        assert chosen(where, map_location(where.routes[0], b"http://b" + meant).decode())[1] == meant
