"""Options of `docker run` that fastlane does not have: what to use instead of each, or why it cannot be had."""

from collections.abc import Mapping, Sequence, Set

# Why something cannot be had.
_HOST = "cannot be had: it would give the job a part of its host"
_ONE_IMAGE = "put the files into the image, or fetch them in the command"
_BY_OPERATOR = "cannot be asked for by a job: it is for the operator of the host's engine to set"
_NOT_YET = "cannot be had yet"
_ONE_JOB = "jobs do not see each other"

_TABLE: Sequence[tuple[str, str]] = (
    # Files.
    (
        "-v --volume --mount --volumes-from --volume-driver",
        f"host directories and volumes cannot be mounted; {_ONE_IMAGE}",
    ),
    ("--tmpfs", f"{_NOT_YET}; write to a directory of the container, as /tmp without --read-only"),
    ("--shm-size", f"{_NOT_YET}: /dev/shm has the engine's default size"),
    ("--storage-opt", _BY_OPERATOR),
    # A terminal and standard input.
    ("-i --interactive", "a job gets no standard input; give it data by arguments, -e or --env-file"),
    (
        "-t --tty",
        "a job gets no terminal; programs that hold back output without one have a switch, as PYTHONUNBUFFERED=1",
    ),
    ("--attach", "not needed: stdout and stderr are always shown; -d shows neither"),
    ("--sig-proxy", "not needed: Ctrl-C and SIGTERM stop the job, with its own --stop-signal"),
    ("--detach-keys", "not needed: a second Ctrl-C leaves the job alone"),
    # Life of the container.
    ("--rm", "not needed: containers are always removed, and output is kept apart from them"),
    (
        "--name",
        "containers are named after their executions; use --task to group jobs, -l to find them, --request-id to run one once",
    ),
    ("--restart", "a job runs once; run it again from where you enqueue it, by the exit status"),
    (
        "--init",
        "not needed with the recorder, which is PID 1 and reaps what is left; else let the image bring its own init",
    ),
    ("--stop-timeout", "use --stop-grace, as 10s"),
    (
        "--cidfile",
        "use `fastlane run -d`, which prints the job's id, and `fastlane execution`, which shows the container's",
    ),
    (
        "--health-cmd --health-interval --health-retries --health-start-period --health-timeout",
        "a job has no health, only an end",
    ),
    ("--health-start-interval --no-healthcheck", "a job has no health, only an end"),
    # Limits.
    ("-m", "use --memory"),
    ("--memory-swap --memory-swappiness", "not needed: with --memory a job gets no swap in addition"),
    ("--memory-reservation --kernel-memory", "use --memory"),
    (
        "-c --cpu-shares --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime --cpu-count --cpu-percent",
        "use --cpus",
    ),
    ("--cpuset-cpus --cpuset-mems --blkio-weight --io-maxbandwidth --io-maxiops", _BY_OPERATOR),
    ("--blkio-weight-device --device-read-bps --device-read-iops --device-write-bps --device-write-iops", _BY_OPERATOR),
    ("--pids-limit", "use --pids"),
    (
        "--ulimit",
        f"{_NOT_YET}: the limits are the engine's; set lower ones in the command, as sh -c 'ulimit -n 100; exec PROGRAM'",
    ),
    ("--oom-kill-disable --oom-score-adj", _HOST),
    ("--gpus", f"{_NOT_YET}: there are no GPUs for jobs"),
    ("--device --device-cgroup-rule", _HOST),
    # Privileges.
    (
        "--privileged --cap-add --security-opt",
        f"{_HOST}; jobs have the engine's default capabilities and no-new-privileges",
    ),
    ("--cap-drop", "cannot be chosen: jobs have the engine's default capabilities; --user nobody drops them all"),
    ("--group-add", "use --user USER:GROUP"),
    ("--userns --pid --ipc --uts --cgroupns --cgroup-parent --sysctl --runtime --isolation", _HOST),
    # Network.
    ("-p --publish -P --publish-all --expose", "ports cannot be published: a job is work with an end, not a service"),
    ("--net", "use --network none, or leave it out for the engine's default network"),
    ("--network-alias --net-alias --link --link-local-ip --ip --ip6 --mac-address", f"cannot be had: {_ONE_JOB}"),
    (
        "--add-host --dns --dns-opt --dns-option --dns-search",
        "cannot be had: names are looked up as the engine is configured",
    ),
    ("--hostname --domainname", "cannot be chosen: it is the container's id"),
    # Image and the rest.
    (
        "--platform",
        "the image is taken for the platform of the host; name one for it by its digest, as IMAGE@sha256:...",
    ),
    ("--disable-content-trust", _BY_OPERATOR),
    ("--label-file", "use -l NAME=VALUE for each label"),
    ("--annotation", "use -l NAME=VALUE"),
    ("--log-driver --log-opt", "not needed: fastlane keeps the output; see it with `fastlane logs`"),
    ("--use-api-socket", _HOST),
)

REFUSED: Mapping[str, str] = {option: why for options, why in _TABLE for option in options.split()}

# Of these, the short ones that take a value.
_VALUED = {"-v", "-p", "-m", "-c"}


def refusal(word: str, valued: Set[str]) -> str:
    """Say why an option cannot be had, for a person; empty if it is none of these.

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
