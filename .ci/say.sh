# How the scripts beside this one, which source it, speak to whoever started them.
# shellcheck shell=bash

say() { printf 'fastlane: %s\n' "$*" >&2; }

give_up() {
    say "$*"
    exit 1
}

# push TAG: pushes an image that was built, if PUSH=yes asks for that.
push() {
    if [ "${PUSH:-}" = yes ]; then docker push --quiet "$1" >&2; else say "push it to where nodes pull images, or give PUSH=yes"; fi
}
