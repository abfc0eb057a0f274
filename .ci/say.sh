# How the scripts beside this one, which source it, speak to whoever started them.
# shellcheck shell=bash

say() { printf 'fastlane: %s\n' "$*" >&2; }

give_up() {
    say "$*"
    exit 1
}
