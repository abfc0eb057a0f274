"""Contexts: servers by name, as people who have several of them use them."""

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlane_grpc.cli.arguments import contexts
from fastlane_grpc.cli.arguments.contexts import Context
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.client import Client
from fastlane_grpc.trust import Role, TokenFile
from tests import forked
from tests.certificates import Authority
from tests.commands import PROGRAM, environment
from tests.serving import Server, serving


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server, Path, Path]]:
    """Two servers with a job each: one that requires a token and speaks TLS; the file of the token, and of the
    authority."""
    directory = tmp_path_factory.mktemp("contexts")
    authority = Authority(directory)
    pair = authority.sign("server")
    (directory / "safe").mkdir()
    token = directory / "token"
    token.write_text(TokenFile(directory / "safe").create("ada", Role.SUBMIT))
    tls = {"tls_cert": str(pair.cert), "tls_key": str(pair.key)}
    with (
        serving(directory / "safe", engine="unix:///nobody", auth="tokens", **tls) as safe,
        serving(directory / "open", engine="unix:///nobody") as open_,
    ):
        with Client(safe.address, tls_ca=authority.cert, token=token.read_text()) as client:
            client.enqueue("of-safe", "busybox")
        with Client(open_.address) as client:
            client.enqueue("of-open", "busybox")
        yield safe, open_, token, authority.cert


class User:
    """A person with a directory for settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "fastlane" / "contexts.json"

    def __call__(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        ran = forked.run(PROGRAM, *arguments, environment=environment(None, XDG_CONFIG_HOME=str(self.home), **more))
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    def task(self, *arguments: str, **more: str) -> str:
        """Return the task of the server that is talked to, or why there is none."""
        status, out, err = self("tasks", "-o", "json", *arguments, **more)
        return err if status else str(json.loads(out)["id"])


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_a_command_talks_to_the_server_of_the_current_context(
    user: User, servers: tuple[Server, Server, Path, Path]
) -> None:
    safe, open_, token, ca = servers
    how = ("--tls-ca", str(ca), "--token-file", str(token))
    assert user("context", "add", "safe", "--address", safe.address, *how)[0] == 0
    assert user("context", "add", "open", "--address", open_.address)[0] == 0
    assert user("context", "use", "safe")[:2] == (0, "the current context is safe\n")
    assert user.task() == "of-safe"
    # What says more of this command goes before what says less.
    assert user.task("--context", "open") == "of-open"
    assert user.task(FASTLANE_CONTEXT="open") == "of-open"
    assert user.task(FASTLANE_ADDRESS=open_.address) == "of-open"
    assert user.task("--address", open_.address) == "of-open"
    assert user.task("--context", "safe", FASTLANE_ADDRESS=open_.address, FASTLANE_CONTEXT="open") == "of-safe"
    assert user.task(FASTLANE_ADDRESS=open_.address, FASTLANE_CONTEXT="safe") == "of-open"
    # Variables for another server have no effect on a context, and options have.
    assert user.task(FASTLANE_TOKEN="flt_wrong", FASTLANE_TLS_CA="/nope") == "of-safe"
    assert "cannot read --token-file /nope" in user.task("--token-file", "/nope")
    both = user("tasks", "--context", "open", "--address", open_.address)
    assert (both[0], "--address and --context both name a server" in both[2]) == (2, True)
    unknown = user("tasks", "--context", "nope")
    assert unknown == (2, "", "fastlane: there is no context 'nope'; see `fastlane context ls`\n")


def test_the_token_of_the_environment_is_not_sent_to_a_context(
    user: User, servers: tuple[Server, Server, Path, Path]
) -> None:
    safe, _, token, ca = servers
    user("context", "add", "safe", "--address", safe.address, "--tls-ca", str(ca))
    assert "it requires a token" in user.task("--context", "safe", FASTLANE_TOKEN=token.read_text())
    assert user.task("--context", "safe", "--token-file", str(token)) == "of-safe"


def test_the_list_marks_the_current_context(user: User, tmp_path: Path) -> None:
    token = tmp_path / "t"
    token.touch()
    assert user("context", "ls")[1].splitlines()[1].split()[:2] == ["*", "default"]
    user("context", "add", "prod", "--address", "prod:7020", "--tls-ca", "system", "--token-file", str(token))
    user("context", "use", "prod")
    lines = [line.split() for line in user("context", "ls")[1].splitlines()]
    assert lines == [
        ["NAME", "ADDRESS", "TLS", "TOKEN", "FILE"],
        ["default", "127.0.0.1:7020", "-", "-"],
        ["*", "prod", "prod:7020", "system", str(token)],
    ]
    _, out, err = user("context", "ls", "-o", "json", FASTLANE_CONTEXT="default", FASTLANE_ADDRESS="x:1")
    assert [(each["name"], each["current"]) for each in map(json.loads, out.splitlines())] == [
        ("default", True),
        ("prod", False),
    ]
    assert err == "fastlane: FASTLANE_ADDRESS is set: commands talk to x:1, unless they have --context\n"
    assert user("context", "rm", "prod")[1] == "context prod is removed; commands talk to this machine's server\n"
    assert user("context", "use", "prod")[0] == 2
    assert user("context", "use", "default")[0] == 0


@pytest.mark.parametrize("name", ["default", "", "-x", "a b", "a/b", "ä", "a" * 64])
def test_names_that_could_confuse_are_refused(user: User, name: str) -> None:
    status, _, err = user("context", "add", "--address", "a:1", "--", name)
    assert (status, "cannot be the name of a context" in err) == (2, True)
    assert not user.file.exists()


def test_what_cannot_be_added_changes_nothing(user: User) -> None:
    assert user("context", "add", "a", "--address", "a:1")[0] == 0
    before = user.file.read_bytes()
    assert "there is a context 'a'" in user("context", "add", "a", "--address", "b:1")[2]
    assert (
        "--token-file: there is no file /nope" in user("context", "add", "b", "-a", "b:1", "--token-file", "/nope")[2]
    )
    assert user("context", "add", "b", "--address", "nonsense")[0] == 2
    assert user("context", "rm", "b")[0] == 2
    assert user.file.read_bytes() == before
    assert stat.S_IMODE(user.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(user.file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"current": 1, "contexts": {}}', '{"current": "", "contexts": {"a": {}}}', "\x00"]
)
def test_a_damaged_file_is_named_and_left_alone(user: User, text: str) -> None:
    user.file.parent.mkdir()
    user.file.write_text(text)
    for arguments in (("tasks",), ("context", "ls"), ("context", "add", "a", "--address", "a:1")):
        status, _, err = user(*arguments)
        assert (status, f"the file of contexts {user.file} is damaged" in err) == (2, True)
    assert user.file.read_text() == text


def test_contexts_that_are_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}

    def add(name: str) -> None:
        contexts.change(environ, lambda found: found.added(name, Context("a:1")))

    threads = [threading.Thread(target=add, args=(f"c{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(contexts.read(environ).by_name) == sorted(f"c{number}" for number in range(20))
    # A crash in the middle left a file behind.
    contexts.file_of(environ).with_suffix(".new").write_text("half")
    add("last")
    assert "last" in contexts.read(environ).by_name
    with pytest.raises(Failure, match="there is no context 'nobody'"):
        contexts.read(environ).find("nobody")
