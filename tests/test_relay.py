"""The relay beside a real recorder, and its receiving end: a copy that is exact, whatever is killed."""

import asyncio
import hashlib
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from fastlane_grpc.backend import BackendDown, BackendRefuses
from fastlane_grpc.capture.container_files import OutputsTooLarge
from fastlane_grpc.capture.handoff import CommandStatus, packed_variables
from fastlane_grpc.capture.relay_calls import relay_calls
from fastlane_grpc.capture.relayed import RelayedCapture
from fastlane_grpc.capture.relayed_outputs import expect, kept
from fastlane_grpc.capture.relayed_record import (
    Permission,
    close,
    decide,
    is_complete,
    is_received,
    new_pod,
    permission,
    unbegun,
)
from fastlane_grpc.inputs import ArchiveInvalid
from fastlane_grpc.model import Source
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.recorder import HARD_STOP
from fastlane_grpc.rpc.relay import SERVICE, to_its_end
from fastlane_grpc.secrets import Unreadable
from tests.cluster.kit import RELAY, recorder_program
from tests.cluster.processes import children, wait_until
from tests.engine import read_output
from tests.recorder_program import EXECUTION_ID, python, walk
from tests.relay_pair import FLOOD, SECONDS, TOKENS, Pair, counted, ends_well, has_every_byte, numbered

# In the stage of the cluster, which builds the relay.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def test_a_copy_is_the_record_to_the_byte(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record(*python(FLOOD, 20))
    ends_well(relay)
    assert running.end() == (0, "")
    assert pair.is_copied()
    assert pair.output().trailer
    assert pair.output().stderr == b"over"
    assert not pair.box.exists()
    assert permission(pair.copy) is Permission.GRANTED


def test_output_arrives_while_the_command_runs(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    running.stop_hard()
    ends_well(relay)
    assert pair.is_copied()


def kit(directory: Path) -> Path:
    """Return a relay with its recorder beside it, as in the image of the kit."""
    directory.mkdir()
    shutil.copy(RELAY, directory / "relay")
    shutil.copy(recorder_program(), directory / "recorder")
    return directory / "relay"


def test_a_job_that_was_started_before_its_relay_has_a_server_waits_for_it(pair: Pair, tmp_path: Path) -> None:
    program = kit(tmp_path / "kit")
    shutil.rmtree(pair.box)
    shared = ["--shared", pair.pod, "--files"]
    # No server is there. A relay that is killed before the grant prepares everything again.
    first = pair.relay(wants=shared, program=program)
    subprocess.run([program, "prepared", pair.pod], check=True, timeout=SECONDS)
    first.kill()
    first.wait()
    relay = pair.relay(wants=shared, program=program)
    assert [(pair.pod / "bin" / name).read_bytes() for name in ("recorder", "relay")] == [
        (program.parent / name).read_bytes() for name in ("recorder", "relay")
    ]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in pair.pod.iterdir()}
    assert modes == {"bin": 0o755, "box": 0o777, "in": 0o755, "own": 0o700}
    words = ("--execution", EXECUTION_ID, str(pair.box), "--", "echo", "hello")
    running = pair.recorder.start(options=words, hand_off=False)
    opened = Path(f"/proc/{running.pid}/fd")
    wait_until(lambda: any("signalfd" in str(each.readlink()) for each in opened.iterdir()), "the recorder waits")
    assert not pair.log.exists()
    pair.serve()
    ends_well(relay)
    assert running.end() == (0, "")
    assert pair.output().stdout == b"hello\n"


def test_a_relay_that_was_killed_after_the_grant_lets_the_recorder_begin(pair: Pair, tmp_path: Path) -> None:
    program = kit(tmp_path / "kit")
    pair.serve()
    granted = pair.relay(wants=["--shared", pair.pod], program=program)
    wait_until((pair.box / "log").exists, "the start is granted")
    granted.kill()
    granted.wait()
    # As if it had been killed a moment earlier.
    (pair.box / "wait").touch()
    relay = pair.relay(wants=["--shared", pair.pod], program=program)
    running = pair.record("echo", "hello")
    ends_well(relay)
    assert running.end() == (0, "")
    assert pair.output().stdout == b"hello\n"


def test_readers_are_told_of_a_record_before_it_has_output(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    assert pair.told == [(EXECUTION_ID, True)]
    running.stop_hard()
    ends_well(relay)


def test_no_byte_is_missing_after_a_server_went_away_eight_times(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record(*python(FLOOD, 40))
    for number in range(8):
        wait_until(lambda number=number: len(pair.received()) >= number * 4 << 20, "the flood is on its way")
        pair.leave()
        pair.serve()
    ends_well(relay)
    assert pair.is_copied()


def test_a_server_that_is_away_at_the_end_gets_everything_later(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    pair.leave()
    assert not (pair.copy / "relay-end").exists(), "it was broken off"
    running.stop_hard()
    running.end()
    assert relay.poll() is None
    pair.serve()
    ends_well(relay)
    assert pair.is_copied()
    assert pair.output().trailer


def test_a_side_that_is_closed_is_no_end_of_the_record(pair: Pair) -> None:
    async def broken_off() -> grpc.StatusCode:
        metadata = (("fastlane-execution", EXECUTION_ID), ("fastlane-token", pair.token))
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            assert await call.read() == b"G" + bytes(8)
            await call.write(bytes(8) + b"a piece")
            await call.done_writing()
            return await call.code()

    pair.serve()
    assert pair.wait(broken_off()) is grpc.StatusCode.UNAVAILABLE
    assert pair.received() == b"a piece"
    assert not (pair.copy / "relay-end").exists()


def test_a_relay_that_is_killed_goes_on_where_it_was(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record(*python(FLOOD, 20))
    for number in range(4):
        wait_until(lambda number=number: len(pair.received()) >= number * 3 << 20, "the flood is on its way")
        relay.kill()
        relay.wait()
        relay = pair.relay()
    ends_well(relay)
    assert pair.is_copied()


def test_a_recorder_waits_for_a_relay_that_is_killed_at_the_end(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    options = ("--execution", EXECUTION_ID, "--await-relay", str(SECONDS), str(pair.box), "--", "sh", "-c", "echo a")
    relay.kill()
    relay.wait()
    running = pair.recorder.start(options=options)
    wait_until(lambda: read_output(pair.log).trailer is not None, "the command has ended")
    assert running.process.poll() is None, "its node would not start the relay again"
    relay = pair.relay(wants=["--stay"])
    assert running.end() == (0, "")
    assert pair.is_copied()
    assert relay.poll() is None, "its node would start it again"
    relay.terminate()
    ends_well(relay)


def test_a_record_that_no_server_wants_is_not_waited_for(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    options = ("--execution", EXECUTION_ID, "--await-relay", str(SECONDS), str(pair.box), "--", "sleep", "1000")
    running = pair.recorder.start(options=options)
    wait_until(lambda: bool(pair.received()), "the record is copied")
    close(pair.copy)
    running.stop_hard()
    assert relay.wait(SECONDS) == 3
    running.end()


# -- a recorder that is killed


def test_a_recorder_killed_in_a_flood_costs_no_byte(make_pair: Callable[..., Pair]) -> None:
    for number, lines in enumerate((1, 7, 100, 1000, 4000) * 2):
        pair = make_pair(str(number))
        pair.serve()
        relay = pair.relay()
        running = counted(pair, lines)
        size = random.randrange(1, 1 << 21 if lines > 1 else 1 << 16)
        wait_until(lambda pair=pair, size=size: len(pair.received()) > size, "the flood is on its way")
        running.send(signal.SIGKILL)
        ends_well(relay)
        has_every_byte(pair)
        assert is_complete(pair.copy)
        assert pair.is_copied()
        assert walk(pair.log).trailer_payload == b""


def test_a_relay_killed_before_its_recorder_costs_no_byte(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = counted(pair, 100)
    for _ in range(3):
        relay.kill()
        relay.wait()
        size = len(pair.received())
        relay = pair.relay()
        # By this relay, which holds the pipes then.
        wait_until(lambda size=size: len(pair.received()) > size + (1 << 20), "the flood is on its way")
    running.send(signal.SIGKILL)
    ends_well(relay)
    has_every_byte(pair)
    assert is_complete(pair.copy)


def test_what_a_killed_recorder_left_arrives_though_no_server_was_there(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = counted(pair, 100)
    wait_until(lambda: len(pair.received()) > 1 << 20, "the flood is on its way")
    pair.leave()
    running.send(signal.SIGKILL)
    running.end()
    pair.serve()
    ends_well(relay)
    has_every_byte(pair)


def test_a_recorder_and_a_relay_that_are_both_killed_leave_what_was_stored(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = counted(pair, 100)
    wait_until(lambda: len(pair.received()) > 1 << 20, "the flood is on its way")
    relay.kill()
    relay.wait()
    running.send(signal.SIGKILL)
    running.end()
    ends_well(pair.relay())
    assert is_received(pair.copy)
    assert not is_complete(pair.copy), "what was in the pipes is gone"
    output = pair.output()
    assert output.stdout == numbered(len(output.stdout))


def salvages(relay: Any) -> Sequence[int]:
    """Return the processes of a relay that store what a recorder left. Each of its threads may have started them."""
    tasks = Path(f"/proc/{relay.pid}/task").glob("*/children")
    return [int(word) for children in tasks for word in children.read_text().split()]


def test_a_salvage_that_is_killed_goes_on_where_it_was(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = counted(pair, 100)
    # Of no process of the container: it keeps the pipe from its end.
    with (pair.pod / "log.stdout").open("wb", buffering=0) as pipe:
        wait_until(lambda: len(pair.received()) > 1 << 20, "the flood is on its way")
        running.send(signal.SIGKILL)
        running.end()
        for number in range(3):
            wait_until(lambda: bool(salvages(relay)), "a process stores the rest")
            (salvage,) = salvages(relay)
            pipe.write(b"late %d\n" % number)
            os.kill(salvage, signal.SIGKILL)
            wait_until(lambda salvage=salvage: salvage not in salvages(relay), "it is gone")
    ends_well(relay)
    output = pair.output()
    flood = output.stdout.removesuffix(b"late 0\nlate 1\nlate 2\n")
    assert len(flood) < len(output.stdout)
    assert (flood, output.gaps) == (numbered(len(flood)), [])
    assert is_complete(pair.copy)


def test_a_limited_record_of_a_killed_recorder_keeps_its_newest_output(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_log_bytes=16 * BLOCK_BYTES)
    pair.serve()
    relay = pair.relay(punches=False)
    running = counted(pair, 1000)
    wait_until(lambda: len(pair.received()) > 8 << 20 or relay.poll() is not None, "the flood is on its way")
    running.send(signal.SIGKILL)
    ends_well(relay)
    mine, its = walk(pair.copy / "log"), walk(pair.log)
    assert (mine.content, mine.punched, mine.gaps) == (its.content, its.punched, [])
    accepted = struct.unpack("2q", (pair.pod / "counts").read_bytes())
    assert mine.state.sources[0].offset >= accepted[0]
    assert mine.state.sources[1].offset >= accepted[1]
    assert pair.log.stat().st_blocks * 512 <= 18 * BLOCK_BYTES


def test_masked_output_of_a_killed_recorder_is_never_said_to_be_complete(pair: Pair) -> None:
    pair.serve()
    options = offer(pair)
    relay = pair.relay(wants=pair.wants)
    running = counted(pair, 100, options)
    wait_until(lambda: len(pair.received()) > 1 << 20, "the flood is on its way")
    running.send(signal.SIGKILL)
    ends_well(relay)
    assert not is_complete(pair.copy)


def test_a_command_finds_no_name_of_its_pipes(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    relay.kill()
    # Nobody removes the box.
    running = pair.record("ls", str(pair.box))
    assert running.end() == (0, "")
    assert walk(pair.log).stdout == b"orders\n"


def test_a_copy_of_a_limited_record_has_the_same_output_and_size(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_log_bytes=16 * BLOCK_BYTES)
    pair.serve()
    relay = pair.relay(punches=False)
    wait_until((pair.box / "log").exists, "the start is granted")
    # Away for a while: what is punched out meanwhile, it never sees.
    relay.kill()
    relay.wait()
    running = pair.recorder.start(*python(FLOOD, 8), limit=pair.max_log_bytes)
    running.end()
    ends_well(pair.relay(punches=False))
    mine, its = walk(pair.copy / "log"), walk(pair.log)
    assert (mine.content, mine.punched, mine.trailer) == (its.content, its.punched, its.trailer)
    assert its.punched[Source.STDOUT]
    assert (pair.copy / "log").stat().st_blocks <= pair.log.stat().st_blocks + 8


def test_no_command_runs_whose_start_was_revoked(pair: Pair) -> None:
    decide(pair.copy, Permission.REVOKED)
    pair.serve()
    relay = pair.relay()
    _, words = relay.communicate(timeout=SECONDS)
    assert relay.returncode == 3
    assert b"the start of this execution was revoked" in words
    running = pair.recorder.start("sh", "-c", f"touch {pair.pod}/ran", hand_off=False)
    code, _ = running.end()
    assert code == 119
    assert not (pair.pod / "ran").exists()


@pytest.mark.parametrize("of", ["another execution", "for another execution", "an earlier pod"])
def test_a_token_opens_the_record_of_its_pod_alone(pair: Pair, of: str) -> None:
    pair.serve()
    if of == "an earlier pod":
        new_pod(pair.copy)
    token = TOKENS.token("another", "1") if of == "another execution" else pair.token
    relay = pair.relay(token, "another" if of == "for another execution" else EXECUTION_ID)
    _, said = relay.communicate(timeout=SECONDS)
    assert relay.returncode == 3
    assert b"not the token of a pod that is expected" in said
    assert permission(pair.copy) is None
    assert not (pair.box / "log").exists()


# -- orders


def test_an_order_is_a_signal_for_the_command(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record("sh", "-c", "trap 'echo got it; exit 7' USR1; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: b"ready" in pair.received(), "the command runs")
    assert relay_calls.order(pair.copy, signal.SIGUSR1)
    ends_well(relay)
    output = pair.output()
    assert output.stdout == b"ready\ngot it\n"
    assert output.trailer
    assert (output.trailer.exit_code, output.trailer.facts["told"]) == (7, signal.SIGUSR1)
    assert not relay_calls.order(pair.copy, signal.SIGUSR1)


def test_a_hard_stop_by_order_keeps_everything_of_a_deaf_command(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record("sh", "-c", "trap '' TERM; echo first; while :; do sleep 0.1; done")
    wait_until(lambda: b"first" in pair.received(), "the command runs")
    assert relay_calls.order(pair.copy, HARD_STOP)
    ends_well(relay)
    output = pair.output()
    assert (output.stdout, output.gaps) == (b"first\n", [])
    assert output.trailer
    assert (output.trailer.exit_code, output.trailer.facts["hard_stop"]) == (137, True)


def test_an_order_by_the_next_server_and_relay_arrives(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record("sh", "-c", "trap 'exit 7' TERM; echo first; while :; do sleep 0.1; done")
    wait_until(lambda: b"first" in pair.received(), "the command runs")
    pair.leave()
    assert not relay_calls.order(pair.copy, signal.SIGTERM)
    relay.kill()
    relay.wait()
    pair.serve()
    relay = pair.relay()
    wait_until(lambda: relay_calls.order(pair.copy, signal.SIGTERM), "an order arrives")
    ends_well(relay)
    assert pair.output().trailer


def test_an_order_that_no_recorder_takes_is_not_sent(pair: Pair) -> None:
    pair.serve()
    pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    assert not relay_calls.order(pair.copy, signal.SIGTERM)
    # And it stays without effect.
    running = pair.record("sh", "-c", "exit 3")
    assert running.end() == (3, "")


# -- what a job gets

SECRET = b"a secret of the job"
CONTENT = os.urandom(1 << 20)


def offer(pair: Pair, secrets: Sequence[bytes] = (SECRET,)) -> list[str | Path]:
    """Offer secrets and a standard input. Return the options of the recorder."""
    variables = {f"S{number}": value for number, value in enumerate(secrets)}
    relay_calls.offer_secrets(pair.copy, lambda: packed_variables(variables))
    (pair.copy / "content").write_bytes(CONTENT)
    relay_calls.offer_stdin(pair.copy, pair.copy / "content")
    return ["--secrets", str(len(secrets)), "--stdin", pair.stdin]


def test_secrets_and_standard_input_are_there_before_the_start(pair: Pair) -> None:
    pair.serve()
    options = offer(pair)
    relay = pair.relay(wants=pair.wants)
    wait_until((pair.box / "log").exists, "the start is granted")
    assert (pair.box / "secrets").read_bytes() == b"S0=" + SECRET + b"\0"
    assert stat.S_IMODE(pair.stdin.stat().st_mode) == 0o444
    pair.record("sh", "-c", 'sha256sum; test "$S0" = "a secret of the job" && echo it is "<$S0>"', options=options)
    ends_well(relay)
    digest = hashlib.sha256(CONTENT).hexdigest().encode()
    assert pair.output().stdout == digest + b"  -\nit is <***>\n"
    assert not pair.box.exists()
    content = (pair.copy / "content", pair.stdin)
    assert not [path for path in pair.pod.parent.rglob("*") if path not in content and holds(path, SECRET)]


def test_nothing_starts_before_a_server_can_hand_over_what_a_job_gets(pair: Pair) -> None:
    pair.serve()
    asked = threading.Event()

    def unreadable() -> bytes:
        asked.set()
        raise Unreadable("the vault is away")

    relay_calls.offer_secrets(pair.copy, unreadable)
    relay = pair.relay(wants=["--secrets"])
    assert asked.wait(SECONDS)
    assert permission(pair.copy) is None, "a start that cannot be carried out is not granted"
    pair.leave()
    relay_calls.withdraw(pair.copy)
    # The next server, which has not taken the execution up yet.
    pair.serve()
    assert not (pair.box / "log").exists()
    offer(pair)
    pair.record("sh", "-c", 'echo "${#S0}"', options=["--secrets", "1"])
    ends_well(relay)
    assert pair.output().stdout == b"%d\n" % len(SECRET)


def test_a_relay_that_is_killed_while_it_receives_begins_anew(pair: Pair) -> None:
    pair.serve()
    options = offer(pair)
    wait = threading.Event()

    def slow() -> bytes:
        wait.set()
        return packed_variables({"S0": SECRET})

    relay_calls.offer_secrets(pair.copy, slow)
    relay = pair.relay(wants=pair.wants)
    assert wait.wait(SECONDS)
    relay.kill()
    relay.wait()
    pair.stdin.write_bytes(b"a part")
    if not pair.log.exists():
        (pair.box / "secrets").write_bytes(b"a part")
    else:
        pair.stdin.write_bytes(CONTENT)
    relay = pair.relay(wants=pair.wants)
    pair.record("sh", "-c", 'sha256sum; echo "${#S0}"', options=options)
    ends_well(relay)
    digest = hashlib.sha256(CONTENT).hexdigest().encode()
    assert pair.output().stdout == digest + b"  -\n%d\n" % len(SECRET)


def test_what_a_job_gets_is_given_to_its_pod_alone_and_before_its_start(pair: Pair) -> None:
    async def asked(token: str) -> tuple[grpc.StatusCode, bytes]:
        metadata = [("fastlane-execution", EXECUTION_ID), ("fastlane-token", token), ("fastlane-wants", "secrets")]
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            try:
                first = await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code(), b""
            call.cancel()
            return grpc.StatusCode.OK, bytes(first) if first else b""

    pair.serve()
    offer(pair)
    assert pair.wait(asked(TOKENS.token(EXECUTION_ID, "another")))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert pair.wait(asked(pair.token)) == (grpc.StatusCode.OK, b"SS0=" + SECRET + b"\0")
    relay_calls.withdraw(pair.copy)
    assert pair.wait(asked(pair.token))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_relay_shows_the_account_of_its_pod_for_secrets(pair: Pair) -> None:
    pair.serve()
    (pair.pod / "account").write_text("of the pod\n")
    shown: list[str] = []

    def is_of_pod(account: str) -> bool:
        shown.append(account)
        if len(shown) == 1:
            raise BackendDown("the API server is away")
        return account == "of the pod"

    relay_calls.offer_secrets(pair.copy, lambda: packed_variables({"S0": SECRET}), is_of_pod)
    relay = pair.relay(wants=["--secrets", "--account", pair.pod / "account"])
    pair.record("sh", "-c", 'echo "${#S0}"', options=["--secrets", "1"])
    ends_well(relay)
    assert pair.output().stdout == b"%d\n" % len(SECRET)
    assert shown == ["of the pod", "of the pod"]


# -- files


def test_the_inputs_of_a_job_are_there_before_the_start(pair: Pair) -> None:
    blocks = [os.urandom(1000) for _ in range(3000)]
    relay_calls.offer_inputs(pair.copy, lambda: iter(blocks))
    pair.serve()
    relay = pair.relay(wants=["--inputs"])
    wait_until((pair.box / "log").exists, "the start is granted")
    assert (pair.box / "inputs").read_bytes() == b"".join(blocks)
    pair.record("true")
    ends_well(relay)
    assert not pair.box.exists()


def test_inputs_that_cannot_be_read_just_now_are_waited_for(pair: Pair) -> None:
    asked = threading.Event()

    def broken() -> Iterator[bytes]:
        yield bytes(1 << 20)
        asked.set()
        raise ArchiveInvalid("the content of /x cannot be read: the disk fails")

    relay_calls.offer_inputs(pair.copy, broken)
    pair.serve()
    relay = pair.relay(wants=["--inputs"])
    assert asked.wait(SECONDS)
    assert permission(pair.copy) is None, "a start that cannot be carried out is not granted"
    relay_calls.offer_inputs(pair.copy, lambda: iter([b"all"]))
    wait_until((pair.box / "log").exists, "the start is granted")
    assert (pair.box / "inputs").read_bytes() == b"all"
    pair.record("true")
    ends_well(relay)


def keeping(pair: Pair, *paths: object, most: int = 1 << 30) -> list[str | Path]:
    """Let the pair keep paths. Return the options of the recorder."""
    expect(pair.copy, most)
    words = [RELAY, "pack", most, *paths]
    return [option for word in words for option in ("--keep", str(word))]


def tree(pair: Pair) -> Path:
    """Return a directory with all that one may have, and a large file of bytes that do not repeat."""
    top = pair.pod / "dist"
    (top / "deep").mkdir(parents=True)
    (top / "deep" / "one").write_bytes(b"one")
    (top / "deep" / "one").chmod(0o4751)
    (top / "hard").hardlink_to(top / "deep" / "one")
    (top / "link").symlink_to("/etc/passwd")
    (top / "below").symlink_to("deep")
    os.mkfifo(top / "pipe")
    (top / "big").write_bytes(os.urandom(20 << 20))
    (top / ("n" * 200)).write_bytes(b"a long name")
    (top / os.fsdecode(b"\xff\xfe")).write_bytes(b"a name that is no text")
    os.utime(top / "big", (1e9, 1e9 + 0.5))
    return top


def kept_of(pair: Pair, *paths: object) -> list[dict[str, tarfile.TarInfo] | None]:
    """Return the entries of what has come, by name."""
    found: list[dict[str, tarfile.TarInfo] | None] = []
    for path in paths:
        content = kept(pair.copy, [str(each) for each in paths], str(path))
        if content is None:
            found.append(None)
            continue
        with content, tarfile.open(fileobj=content, mode="r|") as archive:
            found.append({each.name: each for each in archive})
    return found


def test_what_a_job_keeps_arrives_exactly_however_it_ended(pair: Pair) -> None:
    pair.serve()
    top = tree(pair)
    (pair.pod / "to dist").symlink_to(top)
    paths = [top, pair.pod / "none", top / "big" / "none", pair.pod / "to dist", pair.pod / "to dist" / "big"]
    options = keeping(pair, *paths)
    relay = pair.relay(wants=["--outputs"])
    pair.record("sh", "-c", "exit 3", options=options)
    ends_well(relay)
    whole, none, below_file, link, through = kept_of(pair, *paths)
    assert whole
    assert whole.keys() == {
        "dist",
        *(f"dist/{path.relative_to(top)}" for path in top.rglob("*") if path.name != "pipe"),
    }
    assert (whole["dist/deep/one"].mode, whole["dist/big"].mtime) == (0o4751, 1e9)
    assert {whole["dist/hard"].type, whole["dist/deep/one"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert whole["dist/link"].linkname == "/etc/passwd"
    assert (none, below_file) == (None, None)
    assert link
    assert [(each.name, each.issym()) for each in link.values()] == [("to dist", True)]
    assert through
    assert [(each.name, each.size) for each in through.values()] == [("big", 20 << 20)]
    content = kept(pair.copy, [str(each) for each in paths], str(pair.pod / "to dist" / "big"))
    assert content
    with content, tarfile.open(fileobj=content, mode="r|") as archive:
        entry = archive.next()
        assert entry
        read = archive.extractfile(entry)
        assert read
        assert read.read() == (top / "big").read_bytes()


def test_what_a_job_keeps_arrives_whatever_is_killed_meanwhile(pair: Pair) -> None:
    pair.serve()
    top = tree(pair)
    for number in range(8):
        (top / f"big{number}").write_bytes(os.urandom(20 << 20))
    options = keeping(pair, top)
    relay = pair.relay(wants=["--outputs"])
    running = pair.record("true", options=options)
    part, whole_file = (pair.copy / f"relay-outputs.{name}" for name in ("part", "whole"))
    for number in range(1, 4):
        wait_until(
            lambda number=number: whole_file.exists() or (part.exists() and part.stat().st_size >= number * 20 << 20),
            "it is on its way",
        )
        pair.leave()
        relay.kill()
        relay.wait()
        relay = pair.relay(wants=["--outputs"])
        pair.serve()
    ends_well(relay)
    assert running.end() == (0, "")
    (whole,) = kept_of(pair, top)
    assert whole
    assert sum(each.size for each in whole.values()) == sum(each.stat().st_size for each in (top.glob("big*"))) + 36


@pytest.mark.parametrize("is_sparse", [False, True])
def test_more_than_a_job_may_keep_is_not_read_to_its_end(pair: Pair, is_sparse: bool) -> None:
    pair.serve()
    top = tree(pair)
    if is_sparse:
        os.truncate(top / "big", 1 << 40)
    options = keeping(pair, top, most=1 << 20)
    relay = pair.relay(wants=["--outputs"])
    pair.record("true", options=options)
    ends_well(relay)
    with pytest.raises(OutputsTooLarge):
        kept(pair.copy, [str(top)], str(top))
    assert (pair.pod / "log.outputs").stat().st_size < 1000


def test_what_cannot_be_read_is_told_by_its_path(pair: Pair) -> None:
    pair.serve()
    top = pair.pod / "dist"
    top.mkdir()
    # Longer than any path that the kernel takes.
    name = "n" * 200
    subprocess.run(["bash", "-c", f"cd {top}; for i in {{1..30}}; do mkdir {name}; cd -P {name}; done"], check=True)
    options = keeping(pair, top)
    relay = pair.relay(wants=["--outputs"])
    pair.record("true", options=options)
    ends_well(relay)
    with pytest.raises(BackendRefuses, match="file name too long"):
        kept(pair.copy, [str(top)], str(top))
    assert pair.output().trailer


def test_a_keeper_that_is_killed_costs_the_files_alone(pair: Pair) -> None:
    pair.serve()
    top = tree(pair)
    keeping(pair, top)
    relay = pair.relay(wants=["--outputs"])
    # It never ends by itself: nobody writes to this pipe.
    running = pair.record("sh", "-c", "echo printed", options=["--keep", "/bin/cat", "--keep", str(top / "pipe")])
    wait_until(lambda: pair.output().trailer is not None, "the output has come")
    (keeper,) = children(running.pid)
    os.kill(keeper, signal.SIGKILL)
    ends_well(relay)
    assert running.end() == (0, "")
    assert pair.output().stdout == b"printed\n"
    with pytest.raises(BackendRefuses, match="did not come from its node"):
        kept(pair.copy, [str(top)], str(top))


def test_a_hard_stop_does_not_cut_off_what_a_job_keeps(pair: Pair) -> None:
    pair.serve()
    top = tree(pair)
    keeping(pair, top)
    relay = pair.relay(wants=["--outputs"])
    words = ["/bin/sh", "-c", f"cat {top}/pipe; {RELAY} pack 1000000000 {top}"]
    running = pair.record("true", options=[option for word in words for option in ("--keep", word)])
    wait_until(lambda: pair.output().trailer is not None, "the output has come")
    assert relay_calls.order(pair.copy, HARD_STOP)
    running.send(signal.SIGTERM)
    (top / "pipe").write_bytes(b"")
    ends_well(relay)
    assert kept_of(pair, top)[0]


def test_a_recorder_that_never_began_is_told_by_its_relay(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    (pair.box / "failure").write_text("/etc/x cannot be written: read-only file system\n")
    # As a node does when the container of the job has ended.
    relay.terminate()
    ends_well(relay)
    assert unbegun(pair.copy) == "/etc/x cannot be written: read-only file system "
    assert (pair.copy / "relay-end").exists()
    code, _ = pair.recorder.start("true", hand_off=False).end()
    assert code == 119, "no recorder begins after that"


def test_a_start_that_was_granted_is_revoked_if_no_recorder_has_begun(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    assert RelayedCapture(pair.copy, EXECUTION_ID, None).revoke() is CommandStatus.NEVER_RAN
    ends_well(relay)
    code, _ = pair.recorder.start("true", hand_off=False).end()
    assert code == 119, "no recorder begins after that"


def test_a_start_is_not_revoked_whose_recorder_has_begun(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", f"echo begun; while [ ! -e {pair.pod}/go ]; do sleep 0.02; done; exit 3")
    wait_until(lambda: b"begun" in pair.received(), "the recorder has begun")
    assert RelayedCapture(pair.copy, EXECUTION_ID, None).revoke() is None
    assert unbegun(pair.copy) is None
    (pair.pod / "go").touch()
    assert running.end() == (3, "")
    ends_well(relay)


def test_a_pod_that_was_replaced_while_it_got_its_inputs_does_not_begin(pair: Pair) -> None:
    replaced = threading.Event()

    def archive() -> Iterator[bytes]:
        # The execution gets another pod, as when the first one was removed by force and still runs on its node.
        decide(pair.copy, Permission.REVOKED)
        new_pod(pair.copy)
        replaced.set()
        yield b"all"

    relay_calls.offer_inputs(pair.copy, archive)
    pair.serve()
    relay = pair.relay(wants=["--inputs"])
    _, words = relay.communicate(timeout=SECONDS)
    assert replaced.is_set()
    assert (relay.returncode, b"has got another pod" in words) == (3, True)
    assert permission(pair.copy) is None
    assert not (pair.box / "log").exists()


def test_an_order_is_given_up_when_its_call_has_ended(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlane_grpc.rpc.relay.ORDER_SECONDS", 10.0 * SECONDS)

    async def copied() -> tuple[bytes, bytes]:
        metadata = (("fastlane-execution", EXECUTION_ID), ("fastlane-token", pair.token))
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            await call.read()
            await call.write(bytes(8) + b"a piece")
            order = bytes(await call.read())
            # What the relay said last crosses the order, which it does not answer.
            await call.write((7).to_bytes(8, "little"))
            return order, bytes(await call.read())

    pair.serve()
    with ThreadPoolExecutor(2) as pool:
        copy = pool.submit(pair.wait, copied())
        wait_until(lambda: pair.received() != b"", "the relay is connected")
        order = pool.submit(relay_calls.order, pair.copy, signal.SIGTERM)
        assert copy.result(SECONDS) == (b"O" + bytes([signal.SIGTERM]), b"E" + (7).to_bytes(8, "little"))
        assert not order.result(SECONDS)


def test_no_relay_is_asked_to_revoke_a_start_with_output(pair: Pair) -> None:
    async def copied() -> bytes:
        metadata = (("fastlane-execution", EXECUTION_ID), ("fastlane-token", pair.token))
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            await call.read()
            await call.write(bytes(8) + b"a piece")
            await asyncio.to_thread(wait_until, lambda: pair.received() != b"", "the piece is stored")
            assert await asyncio.to_thread(RelayedCapture(pair.copy, EXECUTION_ID, None).revoke) is None
            await call.write((7).to_bytes(8, "little"))
            return bytes(await call.read())

    pair.serve()
    assert pair.wait(copied()) == b"E" + (7).to_bytes(8, "little")


@pytest.mark.parametrize("begun", [True, False])
def test_a_record_is_sealed_whose_relay_is_connected_and_sends_nothing(pair: Pair, begun: bool) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    if begun:
        pair.record("sh", "-c", "echo first; exec sleep 1000")
        wait_until(lambda: b"first" in pair.received(), "the output is there")
    capture = RelayedCapture(pair.copy, EXECUTION_ID, None)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(capture.seal, None, {}).result(SECONDS)
    _, words = relay.communicate(timeout=SECONDS)
    assert (relay.returncode, b"was closed" in words) == (3, True)
    assert pair.output().stdout == (b"first\n" if begun else b"")


def test_a_relay_that_is_told_to_end_sends_what_a_recorder_that_began_prints(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; read x </dev/zero; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    relay.terminate()
    running.stop_hard()
    ends_well(relay)
    assert pair.is_copied()
    assert unbegun(pair.copy) is None


def test_a_relay_without_a_grant_ends_when_it_is_told_to(pair: Pair) -> None:
    # No server is there.
    relay = pair.relay()
    assert relay.stderr.readline()
    relay.terminate()
    assert relay.wait(SECONDS) == 0


@pytest.mark.parametrize("deaf", [True, False])
def test_a_node_that_ends_a_container_waits_for_the_grace_of_the_job(pair: Pair, deaf: bool) -> None:
    pair.serve()
    relay = pair.relay()
    trap = "trap 'echo deaf' TERM" if deaf else "trap 'echo polite; exit 7' TERM"
    script = f"{trap}; echo first; while :; do sleep 0.1; done"
    running = pair.record("sh", "-c", script, options=["--node-grace", "2"])
    wait_until(lambda: b"first" in pair.received(), "the command runs")
    running.send(signal.SIGTERM)
    ends_well(relay)
    output = pair.output()
    assert output.trailer
    assert output.trailer.facts["told"] == signal.SIGTERM
    assert (output.trailer.exit_code, output.trailer.facts["hard_stop"]) == ((137, True) if deaf else (7, False))
    assert output.stdout == (b"first\ndeaf\n" if deaf else b"first\npolite\n")


def holds(path: Path, content: bytes) -> bool:
    return path.is_file() and content in path.read_bytes()


def test_work_on_a_thread_is_waited_for_however_often_it_is_broken_off(pair: Pair) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(SECONDS)
        ended.set()

    async def broken_off() -> bool:
        # A call that is broken off by the end of its connection, and by the next call of its relay.
        working = asyncio.ensure_future(to_its_end(work))
        await asyncio.to_thread(begun.wait, SECONDS)
        for _ in range(3):
            working.cancel()
            await asyncio.sleep(0)
        is_over = working.done()
        go_on.set()
        await asyncio.wait([working])
        return not is_over and working.cancelled() and ended.is_set()

    assert pair.wait(broken_off())
