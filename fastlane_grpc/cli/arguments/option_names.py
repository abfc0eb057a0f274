"""The names of the command line in place of the fields of the contract, for errors of the server."""

import re
from collections.abc import Iterator

import click

# The longest first: `spec.limits.memory_bytes`, `spec.envs["A"]`, `filter.labels`, `task_id`.
_FIELD = re.compile(
    r"""(?<![.\w])(?:spec|cron|filter)\.((?:[a-z_]+(?:\[[0-9]+\])?\.)*[a-z_0-9]+)(?:\[("?)(.*?)\2\](?=:|\s|$))?"""
)
# Fields that are not inside of a spec begin a message, or the next violation in it.
_OUTER_FIELD = re.compile(r"(?:(?<=; )|^)([a-z_]+)(?=: )")
# Arguments of the client, which every command that connects has as options.
_CONNECTION_NAME = re.compile(r"\b(tls|token)_(ca|cert|key|file)\b")
# Parameters whose names differ from those of their fields.
_PARAMETERS = {
    "args": "words",
    "task_id": "task",
    "id_prefix": "id",
    "job_id": "id",
    "command": "words",
    "cron": "expression",
    "key": "unique_key",
    "max_retries": "retries",
    "initial_backoff": "backoff",
    "notifications": "notify_urls",
    "webhook": "notify_urls",
    "secret_name": "notify_secret",
    "mail": "notify_mails",
    "extra_hosts": "add_hosts",
    "servers": "dns_servers",
    "search_domains": "dns_search",
    "options": "dns_options",
    "dns": "dns_servers",
    "spec.retry": "retries",
    "factor": "backoff_factor",
    "exit_codes": "causes",
    "except_exit_codes": "except_codes",
    "memory_growth.factor": "memory_growth",
    "max_bytes": "max_memory_bytes",
    "states": "notify_on",
    "event": "notify_event",
    "secret": "notify_secret",
    "unique": "unique_key",
    "conflict": "on_conflict",
}


def with_option_names(message: str) -> str:
    """Return the message with `--in` in place of `spec.start_in`, as far as the running command has such
    options."""
    context = click.get_current_context(silent=True)
    if context is None:
        return message
    names = {parameter.name: _name(parameter) for parameter in context.command.params}

    def option(found: re.Match[str]) -> str:
        parameters = (_PARAMETERS.get(field, field) for field in _fields(found[1], inside=found.re is _FIELD))
        name = next((names[parameter] for parameter in parameters if parameter in names), None)
        if name is None:
            return found[0]
        return f"{name} {found[3]}" if found.re is _FIELD and found[2] else name

    message = _CONNECTION_NAME.sub(lambda found: f"--{found[1]}-{found[2]}", message)
    return _OUTER_FIELD.sub(option, _FIELD.sub(option, message))


def _fields(path: str, *, inside: bool) -> Iterator[str]:
    """Return what a field may be known by: its name below that of its message, its name, then the message's."""
    names = re.sub(r"\[[0-9]+\]", "", f"spec.{path}" if inside else path).split(".")
    for last in reversed(range(len(names))):
        yield ".".join(names[max(last - 1, 0) : last + 1])
        yield names[last]


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    return "the command" if parameter.nargs == -1 else (parameter.metavar or parameter.name or "").upper()
