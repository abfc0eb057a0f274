"""Outputs of executions: what a container leaves at named paths, kept with its log, and unpacked without harm."""

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import docker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.backup import back_up, restore, verify
from fastlane_grpc.client import (
    AsyncClient,
    CannotUnpack,
    Client,
    Input,
    InvalidRequest,
    NotFound,
    OutputsDamaged,
    unpack_outputs,
)
from fastlane_grpc.client.outputs import Parts
from fastlane_grpc.inputs import ArchiveInvalid, rewritten
from fastlane_grpc.model import utc_now
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import fastlane
from tests.http_client import ask
from tests.reading import outcome, run
from tests.serving import Server, serving, serving_on

BIG = 3 << 20
LIMIT = 8 << 20
# Writes a tree with all that a tree may have, and fails.
SCRIPT = f"""
umask 022; mkdir -p /src/dist/deep && cd /src/dist
echo one >deep/one && chmod 4751 deep/one && ln -s deep/one link && ln deep/one hard
mkfifo pipe && mknod device c 1 3; ln -s /etc/passwd out
head -c {BIG} /dev/urandom >big; sha256sum <big; echo report >/report.txt; exit 3
"""


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for each, content in entries:
            each.size = len(content)
            archive.addfile(each, io.BytesIO(content))
    return io.BytesIO(file.getvalue())


# ---- unpacking


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([(entry("../out"), b"x")], "'../out' leads out of the archive"),
        ([(entry("/out"), b"x")], "'/out' leads out"),
        ([(entry("a/../../out"), b"x")], "leads out"),
        ([(entry("link", tarfile.SYMTYPE, "/etc/passwd"), b"")], "'link' is a symbolic link to '/etc/passwd'"),
        ([(entry("a/link", tarfile.SYMTYPE, "../../out"), b"")], "which may lead out of"),
        (
            # By its words it stays within, and by way of the first link it does not.
            [(entry("a/up", tarfile.SYMTYPE, ".."), b""), (entry("a/out", tarfile.SYMTYPE, "up/../../out"), b"")],
            "which may lead out of",
        ),
        ([(entry("hard", tarfile.LNKTYPE, "../out"), b"")], "'../out' leads out"),
    ],
)
def test_an_archive_writes_nothing_outside_of_its_directory(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], fault: str
) -> None:
    with pytest.raises(CannotUnpack, match=fault):
        unpack_outputs(tar(*entries), tmp_path / "here")
    assert [path for path in tmp_path.rglob("*") if path.name != "here" and path.name != "a"] == []


_TARGETS = st.lists(st.sampled_from(["..", "..", "a", "x"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(st.tuples(st.sampled_from(["a/x", "a/y", "y"]), _TARGETS), max_size=4))
@settings(max_examples=300)
def test_no_links_of_archives_lead_out_of_the_directory_together(links: Sequence[tuple[str, str]]) -> None:
    with TemporaryDirectory() as outside:
        here = Path(outside).resolve() / "top" / "here"
        unpack_outputs(tar((entry("a", tarfile.DIRTYPE), b"")), here)
        for name, target in links:
            with suppress(CannotUnpack):
                unpack_outputs(tar((entry(name, tarfile.SYMTYPE, target), b"")), here)
        for path in here.rglob("*"):
            assert Path(os.path.realpath(path)).is_relative_to(here)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("path", "fault"), [("", "unexpected end"), ("other", "it ends before its entries do")])
def test_an_archive_whose_entry_claims_any_size_is_refused_at_once(tmp_path: Path, path: str, fault: str) -> None:
    claiming = entry("file")
    claiming.size = 1 << 80
    content = claiming.tobuf(tarfile.GNU_FORMAT) + bytes(3 * tarfile.BLOCKSIZE)
    with pytest.raises(CannotUnpack, match=fault):
        unpack_outputs(io.BytesIO(content), tmp_path / "here", path)


@pytest.mark.parametrize("time", ["nan", "inf", "-1e400", "9e99"])
def test_a_time_that_is_none_is_an_error_of_the_archive(tmp_path: Path, time: str) -> None:
    claiming = entry("file")
    claiming.pax_headers = {"mtime": time}
    with pytest.raises(CannotUnpack, match="the archive is damaged"):
        unpack_outputs(io.BytesIO(claiming.tobuf(tarfile.PAX_FORMAT) + bytes(1024)), tmp_path / "here")


def test_an_archive_writes_through_no_symbolic_link(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "old").symlink_to(elsewhere)
    with pytest.raises(OSError, match="old"):
        unpack_outputs(tar((entry("old/file"), b"x")), here)
    # A link of the archive itself is made last, and a file of the same name is replaced.
    (here / "kept").symlink_to(elsewhere / "target")
    with pytest.raises(IsADirectoryError):
        unpack_outputs(tar((entry("new", tarfile.SYMTYPE, "dir"), b""), (entry("new/file"), b"x")), here)
    unpack_outputs(tar((entry("kept"), b"x")), here)
    assert (here / "kept").read_bytes() == b"x"
    assert list(elsewhere.iterdir()) == []


def test_files_that_are_unpacked_have_no_setuid_bit_and_replace_others(tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"old")
    (tmp_path / "tool").chmod(0o400)
    device = entry("device", tarfile.CHRTYPE)
    unpack_outputs(
        tar((entry("tool", mode=0o6755), b"new"), (device, b""), (entry("pipe", tarfile.FIFOTYPE), b"")), tmp_path
    )
    assert (tmp_path / "tool").read_bytes() == b"new"
    assert (tmp_path / "tool").stat().st_mode & 0o7000 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tool"]


def test_an_archive_of_an_engine_that_is_cut_or_leads_elsewhere_is_refused() -> None:
    whole = tar((entry("dist", tarfile.DIRTYPE), b""), (entry("dist/a"), b"x" * 600)).getvalue()
    assert sum(begins for _, begins in rewritten(io.BytesIO(whole), "/src/dist")) == 2
    for cut in (512, 1024, 1100, 2048):
        with pytest.raises(ArchiveInvalid, match=r"cut off|damaged"):
            list(rewritten(io.BytesIO(whole[:cut]), "/src/dist"))
    with pytest.raises(ArchiveInvalid, match="'other', which is not in 'dist'"):
        list(rewritten(tar((entry("other"), b"")), "/src/dist"))


def test_an_archive_with_another_checksum_is_reported() -> None:
    parts = Parts("id", io.BytesIO())
    assert not parts.note(pb.ReadOutputsResponse(data=b"ab", size_bytes=3, sha256="0" * 64))
    assert parts.next().offset == 2
    with pytest.raises(OutputsDamaged, match="3 bytes were received"):
        parts.note(pb.ReadOutputsResponse(data=b"c", size_bytes=3, sha256="0" * 64))


# ---- the container


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs") / "data"


@pytest.fixture(scope="module")
def server(data_dir: Path, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, data_dir, http_listen="127.0.0.1:0", max_output_bytes=str(LIMIT)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def failed(client: Client, image: str) -> tuple[pb.Execution, str]:
    """An execution that failed and left a tree, and the checksum of a file in it."""
    wanted = ["/src/dist", "/report.txt", "/nowhere/at all"]
    log = run(client, image, "sh", "-c", SCRIPT, outputs=wanted)
    assert log.end().exit_status == 3
    return client.execution(log.execution_id), log.stdout.split()[0].decode()


@pytest.mark.engine
def test_outputs_of_a_failed_job_are_kept_and_both_clients_read_them(
    server: Server, client: Client, failed: tuple[pb.Execution, str], tmp_path: Path
) -> None:
    execution, big = failed
    kept = execution.outputs
    assert (kept.entries, list(kept.missing), kept.fault) == (8, ["/nowhere/at all"], 0)
    archive, again = io.BytesIO(), io.BytesIO()
    client.read_outputs(execution.id, archive)

    async def read() -> None:
        async with AsyncClient(server.address) as other:
            await other.read_outputs(execution.id, again)

    asyncio.run(read())
    assert archive.getvalue() == again.getvalue()
    assert hashlib.sha256(archive.getvalue()).hexdigest() == kept.sha256
    with tarfile.open(fileobj=io.BytesIO(archive.getvalue())) as read_back:
        names = {each.name: each.mode for each in read_back}
        read_back.extract("src/dist/big", tmp_path, filter="data")
    below = ("", "/deep", "/deep/one", "/link", "/hard", "/out", "/big")
    assert set(names) == {"report.txt", *(f"src/dist{name}" for name in below)}
    assert names["src/dist/deep/one"] == 0o4751
    assert hashlib.sha256((tmp_path / "src/dist/big").read_bytes()).hexdigest() == big
    listed = list(client.outputs(execution.id))
    with tarfile.open(fileobj=io.BytesIO(archive.getvalue())) as read_back:
        assert [(each.path, each.mode, each.size_bytes) for each in listed] == [
            (f"/{each.name}", each.mode, each.size) for each in read_back
        ]
    entries = {each.path.removeprefix("/src/dist/"): each for each in listed}
    # Of two names of one file, the archive has the content with the first.
    first, second = sorted((entries["deep/one"], entries["hard"]), key=lambda each: each.kind)
    kinds = [each.kind for each in (first, entries["deep"], entries["link"], second)]
    assert kinds == [
        pb.OutputEntry.KIND_FILE,
        pb.OutputEntry.KIND_DIRECTORY,
        pb.OutputEntry.KIND_SYMBOLIC_LINK,
        pb.OutputEntry.KIND_HARD_LINK,
    ]
    assert (entries["link"].target, second.target) == ("deep/one", first.path)
    begin = entries["big"].content_offset
    assert hashlib.sha256(archive.getvalue()[begin : begin + BIG]).hexdigest() == big
    paths, token = [], ""
    while not paths or token:
        path = f"/executions/{execution.id}/outputs/entries?page_size=3&page_token={token}"
        page = asyncio.run(ask(server.http_port, "GET", path)).json
        paths += [each["path"] for each in page["entries"]]
        token = page.get("next_page_token", "")
    assert paths == [each.path for each in listed]
    # A link out of the directory is nothing that a caller wants.
    archive.seek(0)
    with pytest.raises(CannotUnpack, match="'src/dist/out' is a symbolic link to '/etc/passwd'"):
        unpack_outputs(archive, tmp_path / "refused")


@pytest.mark.engine
def test_outputs_are_served_over_http_as_they_are_from_any_offset(
    server: Server, client: Client, failed: tuple[pb.Execution, str]
) -> None:
    execution, _ = failed
    archive = io.BytesIO()
    client.read_outputs(execution.id, archive)
    path = f"/executions/{execution.id}/outputs"
    told = asyncio.run(ask(server.http_port, "GET", path))
    assert (told.status, told.body) == (200, archive.getvalue())
    assert told.headers["content-type"] == "application/x-tar"
    assert told.headers["fastlane-sha256"] == execution.outputs.sha256
    assert told.headers["content-length"] == str(execution.outputs.size_bytes)
    whole, size = archive.getvalue(), execution.outputs.size_bytes
    assert asyncio.run(ask(server.http_port, "GET", f"{path}?offset=1000")).body == whole[1000:]
    for text, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, size),
        (f"bytes={size - 3}-{size + 9}", size - 3, size),
        ("bytes=-10", size - 10, size),
        (f"bytes=1000-{(1 << 20) + 2000}", 1000, (1 << 20) + 2001),
    ):
        part = asyncio.run(ask(server.http_port, "GET", path, range=text, if_range=told.headers["etag"]))
        assert (part.status, part.body) == (206, whole[begin:end]), text
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for text, more in (("bytes=0-1,5-6", ""), ("lines=1-2", ""), ("bytes=9-1", ""), ("bytes=0-1", '"another"')):
        assert asyncio.run(ask(server.http_port, "GET", path, range=text, if_range=more)).body == whole
    behind = asyncio.run(ask(server.http_port, "GET", path, range=f"bytes={size}-"))
    assert (behind.status, behind.headers["content-range"]) == (416, f"bytes */{size}")
    head = asyncio.run(ask(server.http_port, "HEAD", path))
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")
    assert asyncio.run(ask(server.http_port, "GET", f"{path}?offset=-1")).status == 400


@pytest.mark.engine
def test_a_run_copies_its_outputs_to_where_they_are_wanted(server: Server, image: str, tmp_path: Path) -> None:
    script = (
        "mkdir -p /out/bin; echo made >/out/bin/app; chmod 751 /out/bin/app; ln -s bin/app /out/app; echo r >/r; exit 5"
    )
    wanted = ["--output", f"/out:{tmp_path}/here", "--output", f"/r:{tmp_path}/report", "--output", "/none"]
    ran = fastlane(server, "run", *wanted, image, "sh", "-c", script)
    assert ran.returncode == 5, ran.stderr
    assert b"the container has no /none, which was to be kept" in ran.stderr
    assert (tmp_path / "here/app").read_text() == "made\n"
    assert (tmp_path / "here/bin/app").stat().st_mode & 0o777 == 0o751
    assert (tmp_path / "report").read_text() == "r\n"


@pytest.mark.engine
def test_outputs_of_a_job_are_listed_unpacked_and_written_by_a_command(
    server: Server, client: Client, failed: tuple[pb.Execution, str], image: str, tmp_path: Path
) -> None:
    log = run(client, image, "sh", "-c", "mkdir /d; echo x >/d/f; chmod 640 /d/f", outputs=["/d"])
    job = client.execution(log.execution_id).job_id
    listed = fastlane(server, "outputs", "--list", job).stdout.decode().splitlines()
    assert [line.split() for line in listed] == [["drwxr-xr-x", "0", "d"], ["-rw-r-----", "2", "d/f"]]
    assert fastlane(server, "outputs", job, "-C", f"{tmp_path}/new/here").returncode == 0
    assert (tmp_path / "new/here/d/f").read_text() == "x\n"
    written = fastlane(server, "outputs", "--tar", log.execution_id).stdout
    assert hashlib.sha256(written).hexdigest() == client.execution(log.execution_id).outputs.sha256
    refused = fastlane(server, "outputs", failed[0].id, "-C", f"{tmp_path}/refused")
    assert (refused.returncode, b"which may lead out of" in refused.stderr) == (1, True)


@pytest.mark.engine
def test_outputs_that_are_too_large_or_missing_do_not_change_the_outcome(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", f"head -c {LIMIT} /dev/zero >/big", outputs=["/big"])
    large = client.execution(log.execution_id)
    assert (log.end().exit_status, large.outputs.fault) == (0, pb.Outputs.FAULT_TOO_LARGE)
    assert large.outputs.detail == f"the outputs take more than {LIMIT} bytes (max_output_bytes)"
    log = run(client, image, "true", outputs=["/none"])
    none = client.execution(log.execution_id)
    assert (log.end().exit_status, list(none.outputs.missing), none.outputs.size_bytes) == (0, ["/none"], 0)
    for execution, why in ((large, "take more than"), (none, "none of the paths")):
        with pytest.raises(NotFound, match=why):
            client.read_outputs(execution.id, io.BytesIO())
    with pytest.raises(InvalidRequest, match="overlap"):
        client.enqueue("t", image, outputs=["/a", "/a/b"])
    with pytest.raises(InvalidRequest, match=r"outputs\[0\]: '/proc/1' is in"):
        client.enqueue("t", image, outputs=["/proc/1"])


@pytest.mark.engine
def test_outputs_are_collected_after_a_crash_kept_in_backups_and_pruned_with_the_log(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, kill_at="sealed") as server, Client(server.address) as client:
        job = client.enqueue("t", image, args=["sh", "-c", "echo kept >/f"], outputs=["/f"])
        server.wait()
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        for _ in client.tail_job(job.id):
            pass
        execution = client.job(job.id).execution
        archive = io.BytesIO()
        client.read_outputs(execution.id, archive)
        back_up(data_dir, str(tmp_path / "backup"), output=io.BytesIO(), version="test", now=utc_now())
        client.prune(timedelta(), logs_only=True)
        with pytest.raises(NotFound, match="they were pruned"):
            client.read_outputs(execution.id, io.BytesIO())
    archive.seek(0)
    assert unpack_outputs(archive, tmp_path / "here") == [tmp_path / "here/f"]
    assert (tmp_path / "here/f").read_text() == "kept\n"
    restored = tmp_path / "restored"
    restore(str(tmp_path / "backup"), restored, stream=io.BytesIO(), now=utc_now())
    assert verify(restored).faults == []
    [kept] = restored.glob("logs/*/*/outputs")
    os.truncate(kept, 700)
    assert [fault.detail for fault in verify(restored).faults] == [
        f"{kept} is damaged: it has another checksum than it had"
    ]


@pytest.mark.engine
def test_an_image_with_links_to_the_recorder_harms_its_own_job_alone(
    data_dir: Path, client: Client, sdk: docker.DockerClient, image: str
) -> None:
    made = sdk.containers.run(image, ["sh", "-c", "ln -s /.fastlane/box /box; ln -s /.fastlane /all"], detach=True)
    made.wait()
    hostile = made.commit("fastlane-test", uuid4().hex)
    made.remove()
    try:
        # Into the directory that the recorder was given, and over the record itself: the engine follows the links.
        log = run(
            client, hostile.tags[0], "echo", "ran", inputs=[Input("/box/file", b"x", mode=0o4755)], outputs=["/box"]
        )
        assert (log.stdout, log.end().exit_status) == (b"ran\n", 0)
        over = run(client, hostile.tags[0], "true", inputs=[Input("/box/log", b"x")])
        assert outcome(over).reason == pb.REASON_REFUSED_BY_ENGINE
        after = run(client, image, "echo", "well", inputs=[Input("/file", b"x")], outputs=["/file"])
        assert (after.stdout, client.execution(after.execution_id).outputs.entries) == (b"well\n", 1)
    finally:
        sdk.images.remove(hostile.id, force=True)
    for execution in (log, over, after):
        [directory] = (data_dir / "logs").glob(f"*/{execution.execution_id}")
        assert {path.name for path in directory.iterdir()} <= {"log", "system", "outputs"}
