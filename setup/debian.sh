#!/usr/bin/env bash
# Installs Debian packages for `make`, where that is allowed; where it is not, says what to install by hand.
#
#   setup/debian.sh venv PYTHON   what PYTHON lacks to make a virtual environment; fails when it cannot be had
#   setup/debian.sh test          the servers and clients that the end-to-end tests run; never fails, because
#                                 without them those tests skip and say why
#   setup/debian.sh browser       Chromium, for the tests that use one; 300 MB, so nobody gets it who has not asked
#   setup/debian.sh bench         the proxies that the benchmark compares with, h2load, and a C compiler with OpenSSL for
#                                 its own load; never fails, because the benchmark says what it lacks
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
        -o Acquire::Retries=2 "$@" >&2
}

# A package that starts a daemon when it is installed would take ports 80 and 443 of a machine that only wants to run
# tests. Debian's policy-rc.d is the switch for that; a machine that has one of its own keeps it.
policy=/usr/sbin/policy-rc.d
no_daemons() {
    [ -e "$policy" ] && return
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

install_for_venv() {
    local python=$1 package version
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package=python$version-venv
    if may_install; then
        say "$python cannot make virtual environments; installing $package"
        apt update || say "the package lists could not be refreshed; going on with the old ones"
        if apt install -y --no-install-recommends "$package" && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            return
        fi
    fi
    say "$python cannot make virtual environments. Install the package for that, then run make again:"
    say "    sudo apt-get install $package"
    exit 1
}

has() {
    case $1 in
        stream) [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || nginx -V 2>&1 | grep -qE -e '--with-stream( |$)' ;;
        libc) [ -e /usr/include/stdio.h ] ;;
        libssl) [ -e /usr/include/openssl/ssl.h ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# install_what USE WITHOUT COMMAND:PACKAGE ...: the packages of those commands that are not here. USE says what they are
# for, WITHOUT what will happen where they cannot be installed.
install_what() {
    local use=$1 without=$2
    shift 2
    local missing=() entry package daemon fresh=()
    for entry in "$@"; do
        package=${entry#*:}
        if ! has "${entry%%:*}" && [[ " ${missing[*]-} " != *" $package "* ]]; then missing+=("$package"); fi
    done
    [ ${#missing[@]} = 0 ] && return
    if ! may_install; then
        say "$use need Debian packages that are not here, and I may not install them. $without"
        say "To install them:  sudo apt-get install ${missing[*]}"
        return
    fi
    say "installing what $use need: ${missing[*]}"
    for daemon in nginx haproxy; do has "$daemon" || fresh+=("$daemon"); done
    no_daemons
    apt update || say "the package lists could not be refreshed; going on with the old ones"
    for package in "${missing[@]}"; do # one by one: a release that lacks one still gets the others
        apt install -y --no-install-recommends "$package" || say "could not install $package. $without"
    done
    if command -v systemctl >/dev/null; then
        for daemon in "${fresh[@]}"; do
            as_root systemctl disable "$daemon.service" >/dev/null 2>&1 || true # nor after the next boot
        done
    fi
}

proxies=(nginx:nginx-light stream:libnginx-mod-stream haproxy:haproxy)

install_for_tests() {
    install_what "some tests" "Those tests will skip." "${proxies[@]}" pebble:pebble pebble-challtestsrv:pebble \
        certbot:certbot curl:curl nghttp:nghttp2-client ip:iproute2 nft:nftables \
        faketime:faketime strace:strace slowhttptest:slowhttptest varnishtest:varnish h2load:nghttp2-client
}

install_browser() {
    install_what "tests with a browser" "Those tests will skip." chromium:chromium
}

install_for_bench() {
    install_what "the benchmark's comparisons" "It will say what it lacks." "${proxies[@]}" gcc:gcc libc:libc6-dev \
        libssl:libssl-dev h2load:nghttp2-client
}

PATH=$PATH:/usr/sbin:/sbin # where Debian keeps nginx and ip, and ordinary users do not look
case ${1-} in
    venv) install_for_venv "$2" ;;
    test) install_for_tests ;;
    browser) install_browser ;;
    bench) install_for_bench ;;
    *) say "usage: $0 venv PYTHON | test | browser | bench"; exit 2 ;;
esac
