"""What every client promises. A test file of each language derives a class from `Suite`; the page of the results is
made of the names of its tests."""

import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import docker
import grpc
import pytest

from fastlane_grpc.client import Client, Retry
from fastlane_grpc.trust import Role, TokenFile
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.certificates import Authority
from tests.conformance.driving import Driver
from tests.conformance.languages import Language
from tests.cutting_relay import CuttingRelay
from tests.hostile_http2 import DATA, END_HEADERS, END_STREAM, HEADERS
from tests.http2_relay import (
    CANCEL,
    CONTINUATION,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    Break,
    Frame,
    Http2Relay,
    fields_of,
    text,
)
from tests.scripted_server import CUTS, Cut, Log, Piece, ScriptedServer
from tests.serving import Server, instance, serving_on
from tests.tailing import HELLO, forget, unused_address
from tests.tools import ROOT

SECONDS = 60
EVERY_BYTE = bytes(range(256))
STDOUT_OF_MANY = b"".join(b"%d\n" % number for number in range(1, 300_001))
STDERR_OF_MANY = b"".join(b"%d\n" % number for number in range(1, 4_001))
LONG_LINE_BYTES = 16 << 20
BROKEN_TEXT = b"caf\xc3\xa9 \xff\n"
HELLO_PIECE = Piece(pb.SOURCE_STDOUT, b"hello\n")
HELLO_AGAIN = Piece(
    message=pb.StreamExecutionLogsResponse(
        chunks=[pb.LogChunk(source=pb.SOURCE_STDOUT, offset=0, data=b"hello\n")]
    ).SerializeToString()
)
HELLO_BYTES = HELLO.data(pb.SOURCE_STDOUT)
# What is no answer of a fastlane server: of another protocol, or of HTTP/2 and no gRPC, or no message, or too much.
BEGIN = (HEADERS, END_HEADERS, fields_of(200, b"application/grpc"))
NONSENSE: Mapping[str, bytes | Sequence[Frame]] = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/1.1": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
    "noise": random.Random(7).randbytes(500),
    "a page": [(HEADERS, END_HEADERS, fields_of(200, b"text/html")), (DATA, END_STREAM, b"<h1>no</h1>")],
    "no headers": [(DATA, END_STREAM, b"\0\0\0\0\0")],
    "no message": [BEGIN, (DATA, END_STREAM, b"\0\0\0\0\x05\xff\xff\xff\xff\xff")],
    "a compressed message": [BEGIN, (DATA, 0, b"\1\0\0\0\x05\xff\xff\xff\xff\xff")],
    "no status": [(HEADERS, END_HEADERS | END_STREAM, fields_of(200, b"application/grpc", (b"grpc-status", b"no")))],
    "status 99": [(HEADERS, END_HEADERS | END_STREAM, fields_of(200, b"application/grpc", (b"grpc-status", b"99")))],
    "headers of a megabyte": [
        (HEADERS, 0, fields_of(200, b"application/grpc", *[(b"x", b"x" * 4000)] * 4)),
        *[(CONTINUATION, 0, b"".join([b"\0\1x" + text(b"x" * 4000)] * 4))] * 63,
        (CONTINUATION, END_HEADERS, b""),
    ],
}


@dataclass(frozen=True)
class Real:
    """The real server, and jobs that it ran: the name of each with its job."""

    address: str
    jobs: Mapping[str, pb.Job]

    def execution(self, name: str) -> str:
        return self.jobs[name].execution.id


def octal(data: bytes) -> str:
    """Return the data as printf takes it."""
    return "".join(f"\\{byte:03o}" for byte in data)


def status_codes() -> Iterator[tuple[grpc.StatusCode, bool]]:
    """Yield the codes of the table in clients/README.md, and whether a client gives up then."""
    page = (ROOT / "clients" / "README.md").read_text()
    for names, does in re.findall(r"^\| ([A-Z]{4}.*?) \| [\d, ]+ \| (gives up|calls again)", page, re.MULTILINE):
        # Without details, ABORTED is not of fastlane.
        for name in {*re.findall("[A-Z_]{4,}", names)} - {"ABORTED"}:
            yield grpc.StatusCode[name], does == "gives up"


def enqueue_all(client: Client, image: str) -> Mapping[str, pb.Job]:
    """Enqueue what the suite reads."""

    def job(*args: str, **options: Any) -> pb.Job:
        return client.enqueue("conformance", image, args=args, **options)

    retry = Retry(max_retries=2, initial_backoff=0.05, jitter=False)
    jobs = {
        "many": job("sh", "-c", "seq 1 300000; seq 1 4000 >&2"),
        "0": job("true"),
        "1": job("false"),
        "137": job("sh", "-c", "kill -KILL $$"),
        "143": job("sh", "-c", "kill -TERM $$"),
        "124": job("sleep", "600", timeout=1),
        "125": job("no-such-program"),
        "130": job("sleep", "600"),
        "binary": job("sh", "-c", f"for _ in $(seq 100); do printf '{octal(EVERY_BYTE)}'; done"),
        "line": job("sh", "-c", f"head -c {LONG_LINE_BYTES} /dev/zero | tr '\\0' x"),
        "text": job("sh", "-c", f"for _ in $(seq 100); do printf '{octal(BROKEN_TEXT)}'; done"),
        "attempts": job("sh", "-c", "echo attempt; echo oh >&2; exit 4", retry=retry),
    }
    client.stop(jobs["130"].id)
    return jobs


class Suite:
    """The promises, each a test. `language`: the client that is tested."""

    # The first test builds the driver, and may have to download what it is built of.
    pytestmark: ClassVar = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
    language: ClassVar[Language]

    # --------------------------------------------------------------------------------------------------------- fixtures

    @pytest.fixture(scope="class")
    @classmethod
    def driver(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
        directory = tmp_path_factory.mktemp("driver")
        driver = Driver(cls.language.driver(directory), directory)
        yield driver
        driver.end()

    @pytest.fixture(scope="class")
    @classmethod
    def real(
        cls, driver: Driver, tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient, image: str
    ) -> Iterator[Real]:
        with serving_on(sdk, tmp_path_factory.mktemp("conformance") / "data") as server:
            with Client(server.address) as client:
                jobs = enqueue_all(client, image)
            yield Real(server.address, jobs)

    @pytest.fixture(scope="class")
    @classmethod
    def running_scripted(cls, driver: Driver) -> Iterator[ScriptedServer]:
        server = ScriptedServer()
        yield server
        server.stop()

    @pytest.fixture
    def scripted(self, running_scripted: ScriptedServer) -> ScriptedServer:
        forget(running_scripted)
        return running_scripted

    # ----------------------------------------------------------------------------------------------- enqueue, get, stop

    def test_an_enqueued_job_can_be_followed_got_and_stopped(self, driver: Driver, real: Real, image: str) -> None:
        enqueued = driver.enqueue(real.address, image, "sh", "-c", "echo begin; sleep 600")
        assert enqueued.status == 0, enqueued.report
        job = enqueued.report["job"]
        with driver.start("tail", real.address, job=job["id"]) as tail:
            assert tail.read(6) == b"begin\n"
            assert driver.stop(real.address, job["id"], note="enough").report["job"]["id"] == job["id"]
            ran = tail.end()
        assert (ran.status, ran.stdout, ran.stderr) == (130, b"", b"")
        assert driver.get(real.address, job["id"]).report["job"] == {**job, "state": pb.STATE_STOPPED}

    def test_an_enqueue_whose_answer_was_cut_makes_one_job(self, driver: Driver, real: Real, image: str) -> None:
        # Within the preface, within the answer's headers, within its message.
        with closing(CuttingRelay(real.address, [1, 40, 120])) as relay:
            enqueued = driver.enqueue(relay.address, image, "true", task="once")
            assert not relay.cuts
        assert enqueued.status == 0, enqueued.report
        with Client(real.address) as client:
            jobs = [*client.jobs(task_id="once")]
        assert [job.id for job in jobs] == [enqueued.report["job"]["id"]]

    def test_an_enqueue_that_is_tried_again_has_the_same_request_id(
        self, driver: Driver, scripted: ScriptedServer
    ) -> None:
        full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", {"retry_seconds": 0.01})
        scripted.refusals.extend([full, (grpc.StatusCode.UNAVAILABLE, "", {}), full])
        for _ in range(2):
            assert driver.enqueue(scripted.address, "busybox").report["job"]["id"] == "job-1"
        ids = [request.request_id for request in scripted.received(pb.EnqueueJobRequest)]
        assert len(ids) == 5
        assert len(set(ids[:4])) == 1
        assert len(set(ids)) == 2
        assert all(len(each) >= 16 for each in ids)

    def test_a_request_id_of_the_caller_is_used(self, driver: Driver, real: Real, image: str) -> None:
        first, second = (driver.enqueue(real.address, image, "true", request_id="mine") for _ in range(2))
        assert first.report["job"]["id"] == second.report["job"]["id"]
        error = driver.enqueue(real.address, image, "false", request_id="mine").error
        assert (error["code"], error["reason"]) == (6, "REQUEST_ID_REUSED")
        assert error["metadata"]["job_id"] == first.report["job"]["id"]

    def test_a_refused_request_names_each_field_at_fault(self, driver: Driver, real: Real) -> None:
        error = driver.enqueue(real.address, "Not An Image", request_id="r" * 1000).error
        assert (error["code"], error["reason"]) == (3, "INVALID_FIELD")
        assert {field for field, _ in error["violations"]} == {"spec.image", "request_id"}
        assert all(description for _, description in error["violations"])

    def test_what_does_not_exist_is_an_error_with_its_id(self, driver: Driver, real: Real) -> None:
        for ran in (
            driver.get(real.address, "no-such"),
            driver.stop(real.address, "no-such"),
            driver.tail(real.address, job="no-such"),
        ):
            assert (ran.error["code"], ran.error["reason"]) == (5, "JOB_NOT_FOUND")
            assert ran.error["metadata"]["job_id"] == "no-such"
            assert "no-such" in ran.error["message"]
        ran = driver.tail(real.address, execution="no-such")
        assert (ran.error["code"], ran.error["reason"]) == (5, "EXECUTION_NOT_FOUND")

    def test_a_call_gives_up_after_its_timeout(self, driver: Driver) -> None:
        # Nobody listens, or nobody answers.
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            for address in (unused_address(), f"127.0.0.1:{deaf.getsockname()[1]}"):
                begin = time.monotonic()
                error = driver.get(address, "job", timeout_seconds=0.5).error
                assert error["code"] in {4, 14}
                assert time.monotonic() - begin < 10

    def test_a_defect_of_the_server_ends_a_tail(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = HELLO
        scripted.refusals.append((grpc.StatusCode.INTERNAL, "DEFECT", {"message": "defect 17"}))
        error = driver.tail(scripted.address, execution="e").error
        assert (error["code"], error["reason"], error["message"]) == (13, "DEFECT", "defect 17")

    def test_a_reason_of_a_later_release_is_told_by_its_name(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.refusals.append((grpc.StatusCode.UNAVAILABLE, "OF_A_LATER_RELEASE", {}))
        assert driver.get(scripted.address, "job-1").error["reason"] == "OF_A_LATER_RELEASE"

    def test_details_that_cannot_be_read_are_none(self, driver: Driver, scripted: ScriptedServer) -> None:
        for details in (b"\xff\xff", b"\x08\x05\x1a\x02\x0a\xff"):
            scripted.refusals.append((grpc.StatusCode.NOT_FOUND, "", {"details": details, "message": "nothing there"}))
            error = driver.get(scripted.address, "job-1").error
            assert (error["code"], error.get("reason", ""), error["message"]) == (5, "", "nothing there")

    # ------------------------------------------------------------------------------------------------- tokens and TLS

    def test_the_token_is_sent_and_both_sides_check_certificates(self, driver: Driver, tmp_path: Path) -> None:
        authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
        pair, own = authority.sign("server"), authority.sign("client")
        token_file, data_dir = tmp_path / "token", tmp_path / "data"
        data_dir.mkdir(mode=0o700)
        token_file.write_text(TokenFile(data_dir).create("ci", Role.SUBMIT) + "\n")
        files = {"tls_cert": pair.cert, "tls_key": pair.key, "tls_client_ca": authority.cert}
        server = Server(
            data_dir, engine="unix:///nobody", auth="tokens", **{name: str(each) for name, each in files.items()}
        )
        certified = {"tls_ca": authority.cert, "tls_cert": own.cert, "tls_key": own.key}
        try:
            for ask in (driver.get, driver.tail):
                known = ask(server.address, job="no-such", token_file=token_file, **certified).error
                assert (known["code"], known["reason"]) == (5, "JOB_NOT_FOUND")
                unknown = ask(server.address, job="no-such", **certified).error
                assert (unknown["code"], unknown["reason"]) == (16, "TOKEN_REQUIRED")
                begin = time.monotonic()
                distrusted = {**certified, "tls_ca": stranger.cert}
                refused = ask(server.address, job="no-such", token_file=token_file, **distrusted).error
                assert (refused["code"], refused.get("reason", "")) == (16, "")
                assert re.search("certificat", refused["message"])
                assert time.monotonic() - begin < 10
            # A client without a certificate is refused after the handshake: most libraries cannot tell why.
            without = driver.get(server.address, "j", token_file=token_file, tls_ca=authority.cert, timeout_seconds=0.5)
            assert (without.error["code"] in {1, 4, 14, 16}, without.error.get("reason", "")) == (True, "")
        finally:
            server.stop()

    def test_a_token_that_was_replaced_in_its_file_is_sent(
        self, driver: Driver, scripted: ScriptedServer, tmp_path: Path
    ) -> None:
        token_file = tmp_path / "token"
        token_file.write_text("first\n")
        scripted.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=1, heartbeat_seconds=SECONDS, heeds_stop=False)
        scripted.cuts.append(Cut(3, "unavailable"))
        with driver.start("tail", scripted.address, execution="e", token_file=token_file) as tail:
            assert tail.read(len(HELLO_BYTES)) == HELLO_BYTES
            token_file.write_text("second\n")
            scripted.event("released").set()
            assert tail.end().status == 0
        assert scripted.authorizations == ["Bearer first", "Bearer second"]

    def test_a_token_or_a_file_that_cannot_be_used_is_an_error_at_once(self, driver: Driver, tmp_path: Path) -> None:
        missing, garbled = tmp_path / "missing.pem", tmp_path / "garbled.pem"
        garbled.write_text("s3cret\nwords\n")
        for options, named in (
            ({"token_file": missing}, "missing.pem"),
            ({"token_file": garbled}, "token"),
            ({"tls_ca": missing}, "missing.pem"),
            ({"tls_cert": garbled, "tls_key": garbled}, ""),
            ({"tls_cert": garbled}, "key"),
        ):
            error = driver.tail(unused_address(), execution="e", **options).error
            assert (error["code"], error.get("reason", "")) == (16, "")
            assert named in error["message"].lower()
            assert "s3cret" not in error["message"]

    # ---------------------------------------------------------------------------------------------- the bytes of a tail

    def test_both_sources_arrive_byte_for_byte(self, driver: Driver, real: Real) -> None:
        ran = driver.tail(real.address, execution=real.execution("many"))
        assert (ran.status, ran.stdout, ran.stderr) == (0, STDOUT_OF_MANY, STDERR_OF_MANY)
        assert ran.report.get("disconnects", 0) == 0
        assert ran.report["states"][-1] == pb.STATE_SUCCEEDED

    def test_binary_output_is_not_changed(self, driver: Driver, real: Real) -> None:
        assert driver.tail(real.address, execution=real.execution("binary")).stdout == EVERY_BYTE * 100

    def test_a_line_of_16_mib_arrives_whole(self, driver: Driver, real: Real) -> None:
        ran = driver.tail(real.address, execution=real.execution("line"))
        assert ran.status == 0
        assert ran.stdout == b"x" * LONG_LINE_BYTES

    def test_text_arrives_as_utf_8(self, driver: Driver, real: Real) -> None:
        ran = driver.tail(real.address, execution=real.execution("text"), text="true")
        assert ran.stdout == (BROKEN_TEXT * 100).decode(errors="replace").encode()

    @pytest.mark.parametrize("status", [0, 1, 124, 125, 130, 137, 143])
    def test_the_exit_status_is_that_of_the_job(self, driver: Driver, real: Real, status: int) -> None:
        ran = driver.tail(real.address, job=real.jobs[str(status)].id)
        assert (ran.status, ran.report.get("exit_status", 0)) == (status, status)
        if status in {1, 137}:
            assert driver.tail(real.address, execution=real.execution(str(status))).status == status

    def test_the_log_of_a_job_goes_over_all_attempts(self, driver: Driver, real: Real) -> None:
        ran = driver.tail(real.address, job=real.jobs["attempts"].id)
        assert (ran.status, ran.stdout, ran.stderr) == (4, b"attempt\n" * 3, b"oh\n" * 3)
        assert len(set(ran.report["executions"])) == 3

    def test_output_is_written_when_it_arrives(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=1_000_000)
        with driver.start("tail", scripted.address, execution="e") as tail:
            assert tail.read(len(HELLO_BYTES)) == HELLO_BYTES
            scripted.event("stopped").set()
            assert tail.end().status == 0

    def test_a_gap_is_told_with_its_size_or_without(self, driver: Driver, scripted: ScriptedServer) -> None:
        pieces = [Piece(1, b"one"), Piece(1, missing=1000), Piece(1, b"two"), Piece(2, missing=-1), Piece(2, b"end")]
        scripted.logs["e"] = Log(pieces, exit_status=3)
        ran = driver.tail(scripted.address, execution="e")
        assert (ran.status, ran.stdout, ran.stderr) == (3, b"onetwo", b"end")
        assert ran.report["gaps"] == [
            {"source": 1, "offset": 3, "missing_bytes": 1000, "cause": 3},
            {"source": 2, "offset": 0, "missing_bytes": None, "cause": 3},
        ]

    @pytest.mark.parametrize(
        ("written", "served"),
        [
            ([HELLO_PIECE, Piece(1, b"world\n")], [HELLO_PIECE, Piece(1, b"w0rld\n")]),
            ([HELLO_PIECE, Piece(1, b"world\n")], [HELLO_PIECE]),
            ([HELLO_PIECE], [HELLO_PIECE, Piece(1, b"more")]),
            # With a gap there is no checksum.
            ([HELLO_PIECE, Piece(1, missing=7), Piece(1, b"end")], [HELLO_PIECE, Piece(1, missing=7)]),
            ([HELLO_PIECE, Piece(1, missing=7), Piece(1, b"end")], [HELLO_PIECE, Piece(1, b"end")]),
            ([HELLO_PIECE, Piece(1, missing=-1)], [HELLO_PIECE, HELLO_AGAIN, Piece(1, missing=-1)]),
        ],
        ids=["changed", "short", "long", "short after a gap", "without its gap", "repeated"],
    )
    def test_a_log_that_is_not_what_was_written_is_an_error(
        self, driver: Driver, scripted: ScriptedServer, written: Sequence[Piece], served: Sequence[Piece]
    ) -> None:
        scripted.logs["execution-1"] = Log(written, served=served)
        for options in ({"execution": "execution-1"}, {"job": "job-1"}):
            assert driver.tail(scripted.address, **options).error["code"] == 15

    # ---------------------------------------------------------------------------------------- what was not known before

    def test_unknown_events_and_fields_are_skipped(self, driver: Driver, scripted: ScriptedServer) -> None:
        # Field 99 with a message: an event of a later release, alone and beside chunks.
        unknown = b"\x9a\x06\x02\x08\x01"
        chunk = pb.LogChunk(source=1, offset=6, data=b"world\n").SerializeToString()
        beside = b"\x12" + bytes([len(chunk) + len(unknown)]) + chunk + unknown + unknown
        pieces = [Piece(1, b"hello\n"), Piece(message=unknown), Piece(message=beside)]
        log = Log([Piece(1, b"hello\n"), Piece(1, b"world\n")], served=pieces)
        scripted.logs["execution-1"] = log
        for options in ({"execution": "execution-1"}, {"job": "job-1"}):
            ran = driver.tail(scripted.address, **options)
            assert (ran.status, ran.stdout) == (0, b"hello\nworld\n"), ran.report

    def test_an_unknown_state_and_cause_are_numbers(self, driver: Driver, scripted: ScriptedServer) -> None:
        gap = pb.StreamExecutionLogsResponse(gap=pb.LogGap(source=1, offset=5, missing_bytes=2))
        gap.gap.cause = pb.LogGap.Cause.ValueType(99)
        pieces = [Piece(1, b"hello"), Piece(state=77), Piece(message=gap.SerializeToString())]
        outcome = pb.Outcome(detail="something new")
        scripted.logs["e"] = Log(
            [*pieces[:2], Piece(1, missing=2)], served=pieces, state=78, exit_status=125, outcome=outcome
        )
        ran = driver.tail(scripted.address, execution="e")
        assert (ran.status, ran.stdout) == (125, b"hello"), ran.report
        assert ran.report["states"] == [pb.STATE_RUNNING, 77, 78]
        assert [gap["cause"] for gap in ran.report["gaps"]] == [99]

    def test_an_unknown_source_is_not_an_error(self, driver: Driver, scripted: ScriptedServer) -> None:
        message = pb.StreamExecutionLogsResponse(chunks=[pb.LogChunk(data=b"?")])
        message.chunks[0].source = pb.Source.ValueType(9)
        log = Log([Piece(1, b"hello\n")], served=[Piece(1, b"hello\n"), Piece(message=message.SerializeToString())])
        scripted.logs["e"] = log
        assert driver.tail(scripted.address, execution="e").status == 0

    # ---------------------------------------------------------------------------------------------------- interruptions

    def test_a_tail_goes_on_after_a_cut_at_any_byte(self, driver: Driver, real: Real) -> None:
        # Within the preface, in headers, within, before and after messages. Long ones between, as pauses grow without.
        cuts = [
            1,
            270_000,
            30,
            65_000,
            300,
            300_000,
            *random.sample(range(5_000), 2),
            *random.sample(range(100_000), 2),
        ]
        with closing(CuttingRelay(real.address, cuts)) as relay:
            ran = driver.tail(relay.address, execution=real.execution("many"))
            assert not relay.cuts
        assert (ran.status, ran.stdout, ran.stderr) == (0, STDOUT_OF_MANY, STDERR_OF_MANY), f"{cuts} {ran.report}"
        assert ran.report["disconnects"] >= 8

    def test_the_log_of_a_job_goes_on_after_a_cut_at_any_byte(self, driver: Driver, real: Real) -> None:
        cuts = [200, 500, 900, 700, *random.sample(range(200, 1_500), 2)]
        with closing(CuttingRelay(real.address, cuts)) as relay:
            ran = driver.tail(relay.address, job=real.jobs["attempts"].id)
        assert (ran.status, ran.stdout, ran.stderr) == (4, b"attempt\n" * 3, b"oh\n" * 3), f"{cuts} {ran.report}"
        assert len(ran.report["executions"]) == 3

    def test_an_ok_without_an_end_is_an_interruption(self, driver: Driver, real: Real) -> None:
        self._breaks(driver, real, [Break(1, "ok"), Break(50_000, "ok")])

    def test_a_reset_stream_is_an_interruption(self, driver: Driver, real: Real) -> None:
        codes = (NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM)
        self._breaks(driver, real, [Break(20_000, "reset", code) for code in codes])

    def test_goaway_is_an_interruption(self, driver: Driver, real: Real) -> None:
        self._breaks(driver, real, [Break(50_000, "away", code) for code in (NO_ERROR, ENHANCE_YOUR_CALM)])

    def _breaks(self, driver: Driver, real: Real, breaks: Sequence[Break]) -> None:
        with closing(Http2Relay(real.address, breaks)) as relay:
            ran = driver.tail(relay.address, execution=real.execution("many"))
            assert not relay.breaks
        assert (ran.status, ran.stdout, ran.stderr) == (0, STDOUT_OF_MANY, STDERR_OF_MANY), ran.report
        assert ran.report["disconnects"] >= len(breaks)

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_a_proxy_without_its_server_is_an_interruption(self, driver: Driver, real: Real, status: int) -> None:
        with closing(Http2Relay(real.address, statuses=[status])) as relay:
            assert driver.tail(relay.address, execution=real.execution("1")).status == 1
            assert not relay.statuses

    def test_an_answer_that_is_nonsense_is_an_interruption(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = HELLO
        for name, nonsense in NONSENSE.items():
            with closing(Http2Relay(scripted.address, nonsense=nonsense)) as relay:
                ran = driver.tail(relay.address, execution="e", heartbeat_seconds=0.4)
            assert (ran.status, ran.stdout) == (0, HELLO_BYTES), f"{name} {ran}"
            assert ran.report["disconnects"] >= 1

    def test_the_status_code_alone_says_when_a_tail_gives_up(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = HELLO
        for code, gives_up in status_codes():
            scripted.refusals.append((code, "", {}))
            ran = driver.tail(scripted.address, execution="e")
            if gives_up:
                assert (ran.error["code"], ran.error.get("reason", "")) == (code.value[0], "")
            else:
                assert (ran.status, ran.stdout, ran.report.get("disconnects")) == (0, HELLO_BYTES, 1), f"{code} {ran}"

    @pytest.mark.parametrize(("status", "code"), [(401, 16), (403, 7), (404, 12)])
    def test_a_proxy_that_lets_nobody_in_ends_calls_and_tails(
        self, driver: Driver, real: Real, status: int, code: int
    ) -> None:
        with closing(Http2Relay(real.address, statuses=[status])) as relay:
            for ran in (driver.tail(relay.address, execution="e"), driver.get(relay.address, "j")):
                assert (ran.error["code"], ran.error.get("reason", "")) == (code, "")

    def test_three_heartbeats_of_silence_are_an_interruption(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["execution-1"] = HELLO
        for options in ({"execution": "execution-1"}, {"job": "job-1"}):
            scripted.cuts.extend([Cut(0, "silence"), Cut(2, "silence")])
            ran = driver.tail(scripted.address, heartbeat_seconds=self.language.heartbeat_seconds, **options)
            assert (ran.status, ran.stdout) == (0, HELLO_BYTES)
            assert ran.report["disconnects"] == 2

    def test_heartbeats_keep_a_silent_tail(self, driver: Driver, scripted: ScriptedServer) -> None:
        # Heartbeats for longer than the silence that is allowed, each within a twentieth of that.
        scripted.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=30, heartbeat_seconds=0.05, heeds_stop=False)
        ran = driver.tail(scripted.address, execution="e", heartbeat_seconds=0.4)
        assert (ran.status, ran.stdout, ran.report.get("disconnects", 0)) == (0, HELLO_BYTES, 0)

    def test_an_interval_of_heartbeats_that_is_too_short_is_refused(self, driver: Driver, real: Real) -> None:
        for seconds in (0.001, -1):
            error = driver.tail(real.address, execution=real.execution("0"), heartbeat_seconds=seconds).error
            assert (error["code"], error["reason"]) == (3, "INVALID_FIELD")
            assert [field for field, _ in error["violations"]] == ["heartbeat_interval"]

    def test_a_slow_reader_of_the_output_is_no_silence(self, driver: Driver, scripted: ScriptedServer) -> None:
        data = random.Random(7).randbytes(3 << 20)
        scripted.logs["e"] = Log([Piece(1, data)], heartbeat_seconds=0.02)
        with driver.start("tail", scripted.address, execution="e", heartbeat_seconds=0.4) as tail:
            begun = tail.read(1)
            # Longer than the silence that is allowed: the pipe is full, the client waits in its write.
            threading.Event().wait(1.6)
            ran = tail.end()
        assert (ran.status, begun + ran.stdout, ran.report.get("disconnects", 0)) == (0, data, 0)

    def test_the_pause_that_the_server_asks_for_is_kept(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = HELLO
        scripted.cuts.append(Cut(1, "away"))
        begin = time.monotonic()
        assert driver.tail(scripted.address, execution="e").stdout == HELLO_BYTES
        assert time.monotonic() - begin > 1.1

    def test_pauses_grow_while_nothing_arrives(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = HELLO
        scripted.cuts.extend([Cut(0, "ok")] * 4)
        begin = time.monotonic()
        ran = driver.tail(scripted.address, execution="e")
        took_seconds = time.monotonic() - begin
        assert (ran.stdout, ran.report["disconnects"]) == (HELLO_BYTES, 4)
        # A tenth of a second, doubled each time, less what chance takes off.
        assert 0.7 < took_seconds < 10

    def test_cuts_of_all_kinds_lose_and_repeat_nothing(self, driver: Driver, scripted: ScriptedServer) -> None:
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        pieces = [Piece(chance.choice([1, 2]), chance.randbytes(chance.randint(1, 60))) for _ in range(40)]
        scripted.logs["execution-1"] = log = Log(pieces, chunk_bytes=20, cut_anew=True, exit_status=9)
        for options in ({"execution": "execution-1"}, {"job": "job-1"}):
            kinds = [kind for kind in CUTS if kind != "aborted"]
            chance.shuffle(kinds)
            scripted.cuts.extend(Cut(chance.randint(1, 4), kind) for kind in kinds)
            ran = driver.tail(scripted.address, **options)
            assert (ran.status, ran.stdout, ran.stderr) == (9, log.data(1), log.data(2)), f"{seed} {ran.report}"
            assert not scripted.cuts

    def test_a_job_cut_between_its_two_ends_goes_on(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["execution-1"] = Log(HELLO.pieces, chunks_per_message=100, exit_status=2)
        # Of one message with chunks: after the first state, it, the last state and the end.
        for messages in range(1, 5):
            scripted.cuts.append(Cut(messages, "unavailable"))
            ran = driver.tail(scripted.address, job="job-1")
            assert (ran.status, ran.stdout, ran.report["disconnects"]) == (2, HELLO_BYTES, 1)
            assert ran.report["executions"] == ["execution-1"]

    def test_a_tail_outlives_its_server(
        self, driver: Driver, sdk: docker.DockerClient, tmp_path: Path, image: str
    ) -> None:
        first = Server(tmp_path / "data")
        words = ["sh", "-c", "echo begin; until [ -e /tmp/go ]; do sleep 0.02; done; seq 1 5000; exit 7"]
        job = driver.enqueue(first.address, image, *words).report["job"]
        with driver.start("tail", first.address, job=job["id"]) as tail:
            assert tail.read(6) == b"begin\n"
            first.kill()
            with serving_on(sdk, tmp_path / "data", listen=first.address):
                label = f"fastlane.instance={instance(tmp_path / 'data')}"
                [container] = sdk.containers.list(filters={"label": label})
                container.exec_run("touch /tmp/go")
                ran = tail.end()
        assert (ran.status, ran.stdout) == (7, b"".join(b"%d\n" % number for number in range(1, 5001)))

    # ---------------------------------------------------------------------------------------------------------- cursors

    def test_a_program_that_was_restarted_goes_on_at_its_cursor(self, driver: Driver, real: Real) -> None:
        execution = real.execution("many")
        stdout, stderr, cursor, runs = b"", b"", "", 0
        while runs < 3:
            driver.end()
            ran = driver.tail(real.address, execution=execution, cursor=cursor, stop_after_bytes=100_000)
            assert (ran.status, ran.report.get("error")) == (0, None)
            stdout, stderr, cursor, runs = stdout + ran.stdout, stderr + ran.stderr, ran.report["cursor"], runs + 1
        # A cursor of the execution is one of its job, too.
        for options in ({"execution": execution}, {"job": real.jobs["many"].id}):
            rest = driver.tail(real.address, cursor=cursor, **options)
            assert (stdout + rest.stdout, stderr + rest.stderr) == (STDOUT_OF_MANY, STDERR_OF_MANY)
            assert rest.report["exit_status"] == 0

    def test_a_cursor_of_another_log_is_refused(self, driver: Driver, real: Real) -> None:
        cursor = driver.tail(real.address, execution=real.execution("0")).report["cursor"]
        error = driver.tail(real.address, execution=real.execution("1"), cursor=cursor).error
        assert (error["code"], error["reason"]) == (3, "CURSOR_OF_ANOTHER_EXECUTION")
        error = driver.tail(real.address, job=real.jobs["1"].id, cursor=cursor).error
        assert (error["code"], error["reason"]) == (3, "CURSOR_OF_ANOTHER_JOB")
        error = driver.tail(real.address, execution=real.execution("1"), cursor="nonsense").error
        assert (error["code"], error["reason"]) == (3, "CURSOR_INVALID")

    def test_each_call_resumes_at_the_last_cursor(self, driver: Driver, scripted: ScriptedServer) -> None:
        scripted.logs["e"] = Log([Piece(1, b"%d" % number) for number in range(9)], chunks_per_message=1)
        scripted.cuts.extend([Cut(3, "unavailable"), Cut(3, "reset"), Cut(3, "ok")])
        ran = driver.tail(scripted.address, execution="e")
        assert (ran.status, ran.stdout) == (0, b"012345678")
        requests = scripted.received(pb.StreamExecutionLogsRequest)
        places = [float(request.cursor or 0) for request in requests]
        assert all(before < after for before, after in pairwise(places))
        assert {tuple(request.sources) for request in requests} == {(pb.SOURCE_STDOUT, pb.SOURCE_STDERR)}
