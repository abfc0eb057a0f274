"""The names of the command line in place of the fields of the contract, for errors of the server."""

import re

import click

# The longest first: `spec.limits.memory_bytes`, `spec.envs["A"]`, `filter.labels`, `task_id`.
_FIELD = re.compile(
    r"""(?<![.\w])(?:spec|cron|filter)\.(?:[a-z_]+(?:\[[0-9]+\])?\.)*([a-z_]+)(?:\[("?)(.*?)\2\](?=:|\s|$))?"""
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
    "webhook": "notify_urls",
    "url": "notify_urls",
    "secret_name": "notify_secret",
    "mail": "notify_mails",
    "to": "notify_mails",
    "path": "tmpfs",
    "size_bytes": "tmpfs",
    "mode": "tmpfs",
    "name": "ulimits",
    "soft": "ulimits",
    "hard": "ulimits",
    "extra_hosts": "add_hosts",
    "servers": "dns_servers",
    "search_domains": "dns_search",
    "options": "dns_options",
}


def with_option_names(message: str) -> str:
    """Return the message with `--in` in place of `spec.start_in`, as far as the running command has such
    options."""
    context = click.get_current_context(silent=True)
    if context is None:
        return message
    names = {parameter.name: _name(parameter) for parameter in context.command.params}

    def option(found: re.Match[str]) -> str:
        name = names.get(_PARAMETERS.get(found[1], found[1])) or names.get(found[1])
        if name is None:
            return found[0]
        return f"{name} {found[3]}" if found.re is _FIELD and found[2] else name

    message = _CONNECTION_NAME.sub(lambda found: f"--{found[1]}-{found[2]}", message)
    return _OUTER_FIELD.sub(option, _FIELD.sub(option, message))


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    return "the command" if parameter.nargs == -1 else (parameter.metavar or parameter.name or "").upper()
