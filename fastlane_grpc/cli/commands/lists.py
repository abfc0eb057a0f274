"""The commands that list or show jobs, executions, tasks and hosts."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import MOMENT, PAIR, STATES, answers, limits, states_option, talks_to_server
from fastlane_grpc.cli.connection import NothingBegins, connected, execution_id, job_id
from fastlane_grpc.cli.display.job_note import attempts_text, note_of
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import Column, ago, as_line, cut, moment, show, show_facts, size, span, time_of
from fastlane_grpc.cli.display.terminal import say, write
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.v1 import fastlane_pb2 as pb

# What a server answers in one page at most.
_LARGEST_PAGE = 1000


# ------------------------------------------------------------------------------------------------------------- commands


@click.command()
@click.option("--task", "task_id", default="", metavar="NAME", help="Only of this task.")
@states_option
@click.option(
    "-l", "--label", "labels", type=PAIR, multiple=True, help="Only with this label; with several, all must match."
)
@click.option("--since", type=MOMENT, help="Enqueued at or after this age or time, as 10m, 2d or 2026-01-31T08:00:00Z.")
@click.option("--until", type=MOMENT, help="Enqueued before this age or time.")
@limits
@answers
@talks_to_server
@click.pass_obj
def jobs(
    environ: Mapping[str, str],
    /,
    *,
    task_id: str,
    states: Sequence[str],
    labels: Sequence[tuple[str, str]],
    since: datetime | None,
    until: datetime | None,
    limit: int,
    everything: bool,
    form: str,
    address: str,
) -> int:
    """List jobs, newest first.

    \b
    Examples:
      fastlane jobs --task send-mail --state failed --state timed-out --since 1d
      fastlane jobs --all -l team=billing -o json | jq -r .id
    """
    with connected(address) as client:
        page_size = _page_size(limit, everything=everything)
        found = client.jobs(
            task_id=task_id,
            states=map(STATES.__getitem__, states),
            labels=dict(labels),
            since=since,
            until=until,
            page_size=page_size,
        )
        columns = _job_columns(datetime.now(UTC))
        show(_limited(found, limit, everything=everything), columns, form=form, nothing="no jobs", environ=environ)
        _tell_of_more(found, "jobs")
    return 0


@click.command()
@click.argument("id", metavar="JOB")
@answers
@talks_to_server
@click.pass_obj
def job(environ: Mapping[str, str], /, *, id: str, form: str, address: str) -> int:  # noqa: A002
    """Show one job: its spec, its state, its outcome.

    \b
    Example:
      fastlane job 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with connected(address) as client:
        found = _job(client, id)
    if form == "json":
        write(1, as_line(found))
    else:
        show_facts(_job_facts(found, datetime.now(UTC)), environ)
    return 0


@click.command()
@click.option("--job", "of_job", default="", metavar="JOB", help="Only of this job.")
@click.option("--task", "task_id", default="", metavar="NAME", help="Only of this task.")
@states_option
@click.option("--host", default="", metavar="NAME", help="Only on this host.")
@limits
@answers
@talks_to_server
@click.pass_obj
def executions(
    environ: Mapping[str, str],
    /,
    *,
    of_job: str,
    task_id: str,
    states: Sequence[str],
    host: str,
    limit: int,
    everything: bool,
    form: str,
    address: str,
) -> int:
    """List executions, newest first. An execution is one container of a job.

    \b
    Examples:
      fastlane executions --state running --host local
      fastlane executions --job 01980f3e -o json
    """
    with connected(address) as client:
        if host:
            _check_host(client, host)
        found = client.executions(
            job_id=client.job(job_id(client, of_job)).id if of_job else "",
            task_id=task_id,
            states=map(STATES.__getitem__, states),
            host=host,
            page_size=_page_size(limit, everything=everything),
        )
        columns = _execution_columns(datetime.now(UTC))
        show(
            _limited(found, limit, everything=everything), columns, form=form, nothing="no executions", environ=environ
        )
        _tell_of_more(found, "executions")
    return 0


@click.command()
@click.argument("id", metavar="EXECUTION")
@answers
@talks_to_server
@click.pass_obj
def execution(environ: Mapping[str, str], /, *, id: str, form: str, address: str) -> int:  # noqa: A002
    """Show one execution: its host, its times, its outcome, the size of its log.

    \b
    Example:
      fastlane execution 01980f3e-8b1c-7d43-9a51-0242ac120003
    """
    with connected(address) as client:
        found = _execution(client, id)
    if form == "json":
        write(1, as_line(found))
    else:
        show_facts(_execution_facts(found, datetime.now(UTC)), environ)
    return 0


@click.command()
@answers
@talks_to_server
@click.pass_obj
def tasks(environ: Mapping[str, str], /, *, form: str, address: str) -> int:
    """List tasks by name, with the number of their jobs and their limits. A task exists as long as one of its jobs is
    kept, or a limit is set. `fastlane task` sets limits.

    \b
    Example:
      fastlane tasks
    """
    now = datetime.now(UTC)
    columns = [
        Column("TASK", lambda task: task.id),
        Column("OPEN", lambda task: str(task.open_jobs)),
        Column("RUNNING", lambda task: str(task.running)),
        Column("JOBS", lambda task: str(task.jobs)),
        Column("LAST ENQUEUED", lambda task: _ago(task, "last_enqueue_time", now)),
        Column("CREATED", lambda task: _ago(task, "create_time", now)),
        Column("LIMITS", lambda task: limits_text(task) or "-"),
    ]
    with connected(address) as client:
        show(client.tasks(page_size=_LARGEST_PAGE), columns, form=form, nothing="no tasks", environ=environ)
    return 0


def show_hosts(environ: Mapping[str, str], *, form: str, address: str) -> int:
    """List the hosts; see the command `fastlane hosts`."""
    with connected(address) as client:
        found = client.hosts()
        pools = (
            [Column("POOLS", lambda host: ", ".join(host.pools) or "-")] if any(host.pools for host in found) else []
        )
        columns = [
            Column("HOST", lambda host: host.name),
            Column("STATE", lambda host: _word(pb.EngineHost.Availability, host.availability).replace("_", " ")),
            Column("RUNNING", lambda host: f"{host.running} of {host.max_running}"),
            *pools,
            *([Column("KIND", _host_kind)] if any(_host_kind(host) != "docker" for host in found) else []),
            *([Column("NODES", _nodes)] if any(host.HasField("nodes") for host in found) else []),
            Column("ENGINE", lambda host: host.engine_version or "-"),
            Column("CAPTURE", lambda host: _word(pb.EngineHost.Capture, host.capture) or "-"),
            Column("ADDRESS", lambda host: host.address),
            Column("NOTE", lambda host: cut(_host_note(host))),
        ]
        show(found, columns, form=form, nothing="no hosts", environ=environ)
    return 0


def _host_kind(host: pb.EngineHost) -> str:
    # An older server does not tell: its hosts are Docker engines.
    return _word(pb.EngineHost.Kind, host.kind) if host.kind else "docker"


def _nodes(host: pb.EngineHost) -> str:
    return f"{host.nodes.ready} of {host.nodes.total} ready" if host.HasField("nodes") else "-"


def limits_text(task: pb.TaskSummary) -> str:
    """Return the limits of a task in words; empty if it has none."""
    limits = ["paused"] if task.paused else []
    if task.max_running:
        limits.append(f"at most {task.max_running} running")
    if task.max_starts:
        starts = f"{task.max_starts} {'start' if task.max_starts == 1 else 'starts'}"
        limits.append(f"{starts} in {span(task.rate_window.ToTimedelta())}")
    if task.notifications:
        limits.append(f"tells {', '.join(map(receivers_text, task.notifications))}")
    return ", ".join(limits)


def receivers_text(notification: pb.Notification) -> str:
    """Return the receivers of a notification, and which ends they are told of."""
    is_webhook = notification.HasField("webhook")
    receivers = notification.webhook.url if is_webhook else ", ".join(notification.mail.to)
    states = "/".join(map(state_name, notification.states))
    return "".join([receivers, f" of {states}" if states else "", _EVENT_TEXTS.get(notification.event, "")])


# Of what a notification tells, if that is not each run.
_EVENT_TEXTS = {pb.Notification.EVENT_JOB_ENDED: " (job)", pb.Notification.EVENT_ATTEMPT_ENDED: " (each attempt)"}


def _job(client: api.Client, text: str) -> pb.Job:
    """Return the job of this id; if there is none, that of the execution of this id."""
    try:
        return client.job(job_id(client, text))
    except (api.NotFound, NothingBegins) as nothing:
        try:
            return client.job(client.execution(execution_id(client, text)).job_id)
        except (api.NotFound, NothingBegins):
            raise nothing from None


def _execution(client: api.Client, text: str) -> pb.Execution:
    """Return the execution of this id; if there is none, the current one of the job of this id."""
    try:
        return client.execution(execution_id(client, text))
    except (api.NotFound, NothingBegins) as nothing:
        try:
            return client.execution(client.job(job_id(client, text)).execution.id)
        except (api.NotFound, NothingBegins):
            raise nothing from None


def _check_host(client: api.Client, name: str) -> None:
    """Raise Failure for the name of no host. A host that was removed from the settings may still have executions."""
    if all(host.name != name for host in client.hosts()) and not any(client.executions(host=name, page_size=1)):
        raise Failure(f"there is no host {name!r}; `fastlane hosts` lists those that there are")


def _limited(found: Iterator[Any], limit: int, *, everything: bool) -> Iterable[Any]:
    return found if everything else islice(found, limit)


def _tell_of_more(rest: Iterator[Any], nouns: str) -> None:
    """A word on stderr where a list is longer than what was shown of it."""
    if next(rest, None) is not None:
        say(f"more {nouns} exist: use --limit or --all")


def _page_size(limit: int, *, everything: bool) -> int:
    """One more than is shown, which tells whether there are more."""
    return _LARGEST_PAGE if everything else min(limit + 1, _LARGEST_PAGE)


# ----------------------------------------------------------------------------------------------------------- for people


def _job_columns(now: datetime) -> Sequence[Column]:
    return [
        Column("JOB", lambda job: job.id),
        Column("TASK", lambda job: job.task_id),
        Column("STATE", lambda job: state_name(job.state)),
        Column("ENQUEUED", lambda job: _ago(job, "create_time", now)),
        Column("RAN", lambda job: _ran(job.execution, now)),
        Column("NOTE", lambda job: cut(note_of(job, job.execution))),
    ]


def _execution_columns(now: datetime) -> Sequence[Column]:
    return [
        Column("EXECUTION", lambda execution: execution.id),
        Column("TASK", lambda execution: execution.task_id),
        Column("STATE", lambda execution: state_name(execution.state)),
        Column("HOST", lambda execution: execution.host or "-"),
        Column("CREATED", lambda execution: _ago(execution.times, "create_time", now)),
        Column("RAN", lambda execution: _ran(execution, now)),
        Column("NOTE", lambda execution: cut(note_of(execution, execution))),
    ]


def _job_facts(job: pb.Job, now: datetime) -> Iterator[tuple[str, str]]:
    spec = job.spec
    yield "job", job.id
    yield "task", job.task_id
    yield "state", ", ".join(filter(None, [state_name(job.state), note_of(job, job.execution)]))
    yield "image", spec.image
    yield "entrypoint", shlex.join(spec.entrypoint)
    yield "command", " ".join(filter(None, [spec.command, shlex.join(spec.args)]))
    yield "envs", " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(spec.envs.items()))
    yield "secrets", " ".join(f"{name}={secret}" for name, secret in sorted(spec.secret_envs.items()))
    yield "labels", " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(spec.labels.items()))
    yield "timeout", span(spec.timeout.ToTimedelta()) if spec.HasField("timeout") else ""
    yield "limits", ", ".join(_limits(spec.limits))
    yield "volumes", ", ".join(_volumes(spec))
    yield "devices", ", ".join(_devices(spec))
    yield "gpus", _gpus(spec.gpus) if spec.HasField("gpus") else ""
    yield "inputs", ", ".join(f"{each.path} ({size(each.size_bytes)})" for each in spec.inputs)
    yield "stdin", size(spec.stdin.size_bytes) if spec.HasField("stdin") else ""
    yield "outputs", " ".join(spec.outputs)
    yield "ulimits", " ".join(_ulimits(spec))
    yield "dropped", " ".join(spec.cap_drop)
    yield "tmpfs", ", ".join(_tmpfs(spec))
    yield "user", spec.user
    yield "directory", spec.working_dir
    yield "network", spec.network
    yield "hosts", " ".join(f"{name}:{address}" for name, address in sorted(spec.extra_hosts.items()))
    yield "dns", " ".join([*spec.dns.servers, *spec.dns.search_domains, *spec.dns.options])
    yield "root", "read-only" if spec.read_only_root else ""
    yield "pull", _word(pb.JobSpec.PullPolicy, spec.pull_policy).removeprefix("policy_")
    yield "credential", spec.registry_credential
    yield "stop", ", ".join(_stopping(spec))
    yield "priority", str(spec.priority or "")
    yield "retries", _retries(spec.retry) if spec.HasField("retry") else ""
    yield "schedule", _schedule(job)
    ticks = job.schedule.next_times if not job.schedule.paused else []
    yield "next tick", _moment_of(ticks[0], now) if ticks else ""
    yield "ticks", _ticks(job.schedule) if job.HasField("schedule") else ""
    yield "unique key", spec.unique.key
    yield "notifies", "; ".join(map(receivers_text, spec.notifications))
    yield "start in", span(spec.start_in.ToTimedelta()) if spec.HasField("start_in") else ""
    yield "start at", _moment(spec, "start_at", now)
    yield "expires", _moment(spec, "expire_time", now)
    yield "request id", job.request_id
    yield "caller", ", ".join(filter(None, [job.caller, job.caller_address]))
    yield "stopped by", job.stop_caller
    yield "enqueued", _moment(job, "create_time", now)
    yield "ended", _moment(job, "end_time", now)
    yield "ran", _ran(job.execution, now).strip("-")
    yield "used", ", ".join(_used(job.execution))
    yield "executions", str(job.executions or "")
    yield "run", str(job.execution.run) if job.executions > 1 else ""
    yield "attempt", attempts_text(job, job.execution) if job.executions > 1 else ""
    yield "execution", job.execution.id
    yield "host", job.execution.host


def _retries(retry: pb.Retry) -> str:
    first = retry.initial_backoff.ToTimedelta() if retry.HasField("initial_backoff") else timedelta(seconds=1)
    parts = [f"{retry.max_retries}, the first after at most {span(first)}, then {retry.factor or 2:g} times as long"]
    causes = [pb.Retry.RetryCause.Name(cause) for cause in retry.causes if cause in pb.Retry.RetryCause.values()]
    if causes:
        names = (cause.removeprefix("RETRY_CAUSE_").replace("_", " ").lower() for cause in causes)
        parts.append(f"only after {', '.join(names)}")
    if retry.exit_codes:
        parts.append(f"of exit codes only {', '.join(map(str, retry.exit_codes))}")
    if retry.except_exit_codes:
        parts.append(f"not after exit code {', '.join(map(str, retry.except_exit_codes))}")
    if retry.HasField("memory_growth"):
        parts.append(f"with up to {retry.memory_growth.max_bytes / (1 << 20):g} MiB of memory")
    return "; ".join(parts)


def _schedule(job: pb.Job) -> str:
    if not job.HasField("schedule"):
        return ""
    cron, words = job.spec.cron, job.schedule.description
    paused = ", paused" if job.schedule.paused else ""
    return f"{' '.join(filter(None, [cron.expression, cron.time_zone]))} ({words}){paused}"


def _ticks(status: pb.ScheduleStatus) -> str:
    """Return the numbers of ticks that ran and were skipped, and the reason for the last skip."""
    text = f"{status.runs} ran, {status.skipped_ticks} skipped"
    skipped = time_of(status, "last_skipped_time")
    if skipped is None:
        return text
    return f"{text}, the last at {skipped.astimezone():%Y-%m-%d %H:%M %z}: {status.last_skipped_detail}"


def _moment_of(time: Any, now: datetime) -> str:
    return moment(time.ToDatetime(UTC), now)


def _limits(limits: pb.Limits) -> Iterator[str]:
    if limits.memory_bytes:
        yield f"{limits.memory_bytes / (1 << 20):g} MiB of memory"
    if limits.cpus:
        yield f"{limits.cpus:g} CPUs"
    if limits.pids:
        yield f"{limits.pids} processes"
    if limits.shm_bytes:
        yield f"{limits.shm_bytes / (1 << 20):g} MiB of /dev/shm"
    if limits.memory_reservation_bytes:
        yield f"{limits.memory_reservation_bytes / (1 << 20):g} MiB reserved"
    if limits.cpuset:
        yield f"on CPUs {limits.cpuset}"


def _tmpfs(spec: pb.JobSpec) -> Iterator[str]:
    for tmpfs in spec.tmpfs:
        bytes_text = f" of {tmpfs.size_bytes / (1 << 20):g} MiB" if tmpfs.size_bytes else ""
        yield f"{tmpfs.path}{bytes_text}"


def _devices(spec: pb.JobSpec) -> Iterator[str]:
    for each in spec.devices:
        where = f" at {each.container_path}" if each.container_path else ""
        yield f"{each.path}{where}" + (f", {each.permissions}" if each.permissions else "")


def _gpus(gpus: pb.Gpus) -> str:
    return " ".join(gpus.ids) or ("all" if gpus.count < 0 else str(gpus.count))


def _volumes(spec: pb.JobSpec) -> Iterator[str]:
    for volume in spec.volumes:
        yield f"{volume.name} at {volume.path}{', read-only' if volume.read_only else ''}"


def _ulimits(spec: pb.JobSpec) -> Iterator[str]:
    for ulimit in spec.ulimits:
        yield f"{ulimit.name}={ulimit.soft}{f':{ulimit.hard}' if ulimit.HasField('hard') else ''}"


def _stopping(spec: pb.JobSpec) -> Iterator[str]:
    if spec.stop_signal:
        yield spec.stop_signal
    if spec.HasField("stop_grace"):
        grace = spec.stop_grace.ToTimedelta()
        yield f"SIGKILL after {span(grace)}" if grace else "SIGKILL at once"


def _execution_facts(execution: pb.Execution, now: datetime) -> Iterator[tuple[str, str]]:
    yield "execution", execution.id
    yield "job", execution.job_id
    yield "task", execution.task_id
    yield "run", str(execution.run or "")
    yield "attempt", str(execution.attempt or "")
    yield "state", ", ".join(filter(None, [state_name(execution.state), note_of(execution, execution)]))
    yield "host", execution.host
    yield "container", execution.container_id
    yield "image", execution.image_digest
    yield "memory", f"{execution.memory_bytes / (1 << 20):g} MiB" if execution.memory_bytes else ""
    yield "tick", _moment(execution, "tick_time", now)
    for field, name in _TIMES.items():
        if field != "due_time" or execution.times.due_time != execution.times.create_time:
            yield name, _moment(execution.times, field, now)
    yield "ran", _ran(execution, now).strip("-")
    yield "used", ", ".join(_used(execution))
    for totals in execution.logs:
        missing = f", {size(totals.missing_bytes)} of them missing" if totals.missing_bytes else ""
        yield pb.Source.Name(totals.source).removeprefix("SOURCE_").lower(), f"{size(totals.bytes)}{missing}"


_TIMES = {
    "create_time": "created",
    "due_time": "due",
    "claim_time": "slot assigned",
    "pull_time": "image present",
    "container_time": "container created",
    "start_time": "started",
    "first_byte_time": "first byte",
    "exit_time": "exited",
    "seal_time": "log sealed",
    "end_time": "ended",
    "prune_time": "log pruned",
}


def _ran(execution: pb.Execution, now: datetime) -> str:
    """Return for how long the container ran, or has been running."""
    start = time_of(execution.times, "start_time")
    if start is None:
        return "-"
    end = time_of(execution.times, "exit_time") or time_of(execution.times, "end_time") or now
    return span(max(end - start, timedelta(0)))


_FAILING = {pb.EngineHost.AVAILABILITY_DOWN, pb.EngineHost.AVAILABILITY_CIRCUIT_OPEN}


def _used(execution: pb.Execution) -> Iterator[str]:
    usage = execution.usage
    if usage.HasField("cpu_time"):
        yield f"{usage.cpu_time.ToMicroseconds() / 1_000_000:.2f} s of CPU time"
    if usage.HasField("peak_memory_bytes"):
        yield f"at most {usage.peak_memory_bytes / (1 << 20):.1f} MiB of memory"
    if usage.HasField("read_bytes"):
        yield f"{size(usage.read_bytes)} read"
    if usage.HasField("written_bytes"):
        yield f"{size(usage.written_bytes)} written"


def _host_note(host: pb.EngineHost) -> str:
    failed = time_of(host, "last_error_time")
    if drained := time_of(host, "drain_time"):
        return ": ".join(filter(None, [f"drained {ago(drained, datetime.now(UTC))}", host.drain_note]))
    if host.availability in _FAILING and host.last_error:
        return host.last_error
    error = f"{ago(failed, datetime.now(UTC))}: {host.last_error}" if failed and host.last_error else ""
    return host.capture_reason or error


def _ago(message: Any, field: str, now: datetime) -> str:
    time = time_of(message, field)
    return ago(time, now) if time else "-"


def _moment(message: Any, field: str, now: datetime) -> str:
    time = time_of(message, field)
    return moment(time, now) if time else ""


def _word(enum: Any, number: int) -> str:
    """The name of an enum's value without what all of them begin with: "up" of AVAILABILITY_UP; empty if it is the
    zero."""
    name: str = enum.Name(number) if number in enum.values() else f"VALUE_{number}"
    return name.partition("_")[2].lower() if number else ""
