"""Options of `docker run` that fastlane does not have: what to use instead, or why not."""

from collections.abc import Mapping, Sequence, Set

# Why an option does not exist.
_HOST = "not available: it would give the job access to its host"
_ONE_IMAGE = "copy files by --input, or put them into the image"
_BY_OPERATOR = "not available to jobs: the operator of the engine sets it"
_ONE_JOB = "jobs cannot reach each other by name"

_TABLE: Sequence[tuple[str, str]] = (
    # Files.
    (
        "-v --mount --volumes-from --volume-driver",
        f"host directories cannot be mounted; use --volume for a volume that is allowed, or {_ONE_IMAGE}",
    ),
    ("--storage-opt", _BY_OPERATOR),
    # A terminal and standard input.
    (
        "-t --tty",
        "a job has no terminal; to unbuffer output, use the program's own switch, as PYTHONUNBUFFERED=1",
    ),
    ("--attach", "not needed: stdout and stderr are always shown, and -i gives stdin to the job; -d shows neither"),
    ("--sig-proxy", "not needed: Ctrl-C and SIGTERM stop the job, with its own --stop-signal"),
    ("--detach-keys", "not needed: press Ctrl-C twice to detach"),
    # Life of the container.
    ("--rm", "not needed: containers are always removed, and their output is stored separately"),
    (
        "--name",
        "named after the execution; use --task to group jobs, -l to label them, --request-id to run one once",
    ),
    ("--restart", "use --retries, which runs a failed job again; a job that succeeded is over"),
    (
        "--init",
        "not needed with the recorder, which is PID 1 and reaps processes; otherwise use an init in the image",
    ),
    ("--stop-timeout", "use --stop-grace, as 10s"),
    (
        "--cidfile",
        "use --id-file, which gets the id of the job; `fastlane execution` shows the id of its container",
    ),
    (
        "--health-cmd --health-interval --health-retries --health-start-period --health-timeout",
        "a job has no health check, only an exit status",
    ),
    ("--health-start-interval --no-healthcheck", "a job has no health check, only an exit status"),
    # Limits.
    ("-m", "use --memory"),
    ("--memory-swap --memory-swappiness", "not needed: with --memory a job has no additional swap"),
    ("--kernel-memory", "use --memory"),
    (
        "-c --cpu-shares --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime --cpu-count --cpu-percent",
        "use --cpus",
    ),
    ("--cpuset-mems --blkio-weight --io-maxbandwidth --io-maxiops", _BY_OPERATOR),
    ("--blkio-weight-device --device-read-bps --device-read-iops --device-write-bps --device-write-iops", _BY_OPERATOR),
    ("--pids-limit", "use --pids"),
    ("--oom-kill-disable --oom-score-adj", _HOST),
    ("--device-cgroup-rule", "use --device for a device that is allowed"),
    # Privileges.
    (
        "--privileged --cap-add --security-opt",
        f"{_HOST}; jobs have the engine's default capabilities and no-new-privileges",
    ),
    ("--group-add", "use --user USER:GROUP"),
    ("--userns --pid --ipc --uts --cgroupns --cgroup-parent --sysctl --runtime --isolation", _HOST),
    # Network.
    ("-p --publish -P --publish-all --expose", "ports cannot be published: a job is not a service"),
    ("--net", "use --network"),
    ("--network-alias --net-alias --link --link-local-ip --ip --ip6 --mac-address", f"not available: {_ONE_JOB}"),
    ("--dns-opt", "use --dns-option"),
    ("--hostname --domainname", "fixed: the host name is the container's id"),
    # Image and the rest.
    (
        "--platform",
        "the platform is that of the host; for another one, use the digest of its image, as IMAGE@sha256:...",
    ),
    ("--disable-content-trust", _BY_OPERATOR),
    ("--label-file", "use -l NAME=VALUE for each label"),
    ("--annotation", "use -l NAME=VALUE"),
    ("--log-driver --log-opt", "not needed: fastlane stores the output; show it with `fastlane logs`"),
    ("--use-api-socket", _HOST),
)

REFUSED: Mapping[str, str] = {option: why for options, why in _TABLE for option in options.split()}

# Of these, the short ones that take a value.
_VALUED = {"-v", "-p", "-m", "-c"}


def refusal(word: str, valued: Set[str]) -> str:
    """Return why fastlane does not have an option; empty if it is not in the table.

    `valued` are the short options of ours that take a value: what follows their letter is no option.
    """
    if word.startswith("--"):
        name = word.partition("=")[0]
        return _said(name) if name in REFUSED else ""
    found: list[str] = []
    for letter in word[1:]:
        option = f"-{letter}"
        if option in REFUSED:
            found.append(_said(option))
        # What follows -v or -p is what it mounts or publishes.
        if option in valued or option in _VALUED:
            break
    return "; ".join(found)


def _said(option: str) -> str:
    more = "; for fastlane's own lines there is --verbose" if option == "-v" else ""
    return f"{option}: {REFUSED[option]}{more}"
