# How the scripts beside this one, which source it, come by what is in a Debian package.
# shellcheck shell=bash

. .ci/say.sh

# Asks nothing, takes turns with other runs of ours and with everybody's apt-get, and keeps its many words for a failure. The lock is closed
# in what it starts: a service that came up with its package would hold it for ever.
apt_get() {
    local words code=0
    words=$(DEBIAN_FRONTEND=noninteractive flock --close /var/lib/apt apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" 2>&1 </dev/null) || code=$?
    [ "$code" = 0 ] || printf '%s\n' "$words" | tail -n 20 >&2
    return "$code"
}

# install_packages PURPOSE NAME…: installs Debian packages, or says what to install.
install_packages() {
    local purpose=$1
    shift
    command -v apt-get >/dev/null || give_up "missing $purpose: $*; install it and run this again"
    [ "$(id -u)" = 0 ] || give_up "missing $purpose: $*; only root may install it: sudo apt-get install $*"
    say "installing from Debian, $purpose: $*"
    apt_get install --no-install-recommends "$@" 2>/dev/null && return
    # The lists are missing or old, or somebody's installation was cut short.
    dpkg --configure -a --force-confold >/dev/null 2>&1 </dev/null || true
    if ! apt_get update || ! apt_get install --no-install-recommends "$@"; then
        give_up "apt-get could not install $*; its words are above"
    fi
}

# unpack_packages DIRECTORY NAME…: puts the files of Debian packages into DIRECTORY. Nothing is installed and no service starts.
unpack_packages() (
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || exit 1
    into=$(realpath -m "$1")
    shift
    there=$(mktemp -d)
    trap 'rm -rf "$there"' EXIT
    cd "$there" || exit
    fetch() { apt-get -q -o APT::Sandbox::User=root download "$@" >/dev/null 2>&1; }
    fetch "$@" || { [ "$(id -u)" = 0 ] && apt_get update && fetch "$@"; } || exit
    mkdir -p "$into"
    for each in ./*.deb; do dpkg-deb -x "$each" "$into" || exit; done
)

# unpack_system DIRECTORY NAME…: the same with all that these need, found as if nothing were installed here.
unpack_system() {
    local packages into=$1
    shift
    needed() { apt-get -q -o Dir::State::status=/dev/null --simulate install --no-install-recommends "$@" 2>/dev/null; }
    packages=$(needed "$@") || { [ "$(id -u)" = 0 ] && apt_get update && packages=$(needed "$@"); } || return
    mapfile -t packages < <(sed -n 's/^Inst \([^ ]*\).*/\1/p' <<<"$packages")
    unpack_packages "$into" "${packages[@]}"
}
