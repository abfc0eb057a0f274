"""Inputs of jobs: files that are in the container before its command begins, byte for byte."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.backup import back_up, restore, verify
from fastlane_grpc.client import Client, Input, InvalidRequest, RequestIdReused, packed
from fastlane_grpc.client.inputs import CannotPack, Parts
from fastlane_grpc.inputs import ArchiveInvalid, InputFiles, WrongChecksum, archive_of, check_archive
from fastlane_grpc.inputs.files import UNUSED_SECONDS
from fastlane_grpc.model import Input as ModelInput
from fastlane_grpc.model import utc_now
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import fastlane
from tests.http_client import Answer, ask
from tests.reading import outcome, run
from tests.serving import Server, serving, serving_on

CONTENT = bytes(range(256)) * 64
DIGEST = hashlib.sha256(CONTENT).hexdigest()


# ---- the files of contents


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 5000)), max_size=12), st.data())
def test_an_upload_ends_with_the_content_however_its_parts_came(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("inputs")
    received = 0
    for offset, length in parts:
        # Another process each time, as after a restart.
        stored = InputFiles(directory).add(DIGEST, len(CONTENT), offset, CONTENT[offset : offset + length])
        end = min(offset + length, len(CONTENT))
        received = max(received, end) if offset <= received else received
        assert stored == received
    files = InputFiles(directory)
    assert files.add(DIGEST, len(CONTENT), received, CONTENT[received:]) == len(CONTENT)
    with files.open(DIGEST) as file:
        assert file.read() == CONTENT
    assert [path.name for path in directory.iterdir()] == [DIGEST]


def test_a_content_with_another_checksum_is_not_kept(tmp_path: Path) -> None:
    files = InputFiles(tmp_path)
    with pytest.raises(WrongChecksum):
        files.add(DIGEST, 3, 0, b"abc")
    assert list(tmp_path.iterdir()) == []


def test_a_content_is_deleted_an_hour_after_its_last_use_unless_a_job_names_it(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    files = InputFiles(tmp_path, wall_clock=lambda: now)
    unused, named, part = files.keep(b"unused"), files.keep(b"named"), DIGEST
    files.add(part, len(CONTENT), 0, b"begun")
    asked: list[str] = []

    def in_use(checksums: object) -> set[str]:
        asked.extend(checksums)  # type: ignore[arg-type]
        return {named}

    now += UNUSED_SECONDS - 1
    assert files.delete_unused(in_use) == 0
    assert asked == []
    now += 2
    assert files.use(unused) == 6
    assert files.delete_unused(in_use) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([unused, named])
    now += UNUSED_SECONDS + 1
    assert files.delete_unused(in_use) == 1
    assert [path.name for path in tmp_path.iterdir()] == [named]


# ---- archives


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


LINK = (entry("link", tarfile.SYMTYPE, "/etc"), b"")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no archive at all" * 100, "not a tar archive"),
        (tar((entry("a"), b"12345" * 300))[:1000], "not a tar archive"),
        (tar((entry("../a"), b"")), "'../a' leads out of the archive"),
        (tar((entry("a/../../b"), b"")), "leads out of the archive"),
        (tar((entry("/etc/passwd"), b"")), "'/etc/passwd' leads out of the archive"),
        (tar(LINK, (entry("link/passwd"), b"")), "'link/passwd' is below a symbolic link"),
        (tar(LINK, (entry("./link/a/b"), b"")), "is below a symbolic link"),
        (tar(LINK, (entry("link", tarfile.DIRTYPE), b"")), "is there twice"),
        (tar((entry("hard", tarfile.LNKTYPE, "../../etc/shadow"), b"")), "'hard' leads out of the archive"),
        (tar(LINK, (entry("hard", tarfile.LNKTYPE, "link/shadow"), b"")), "'hard' is below a symbolic link"),
        (tar((entry("device", tarfile.CHRTYPE), b"")), "'device' is no plain file, directory or link"),
        (tar((entry("pipe", tarfile.FIFOTYPE), b"")), "no plain file"),
        (tar((entry("x" * 70_000), b"")), "a header takes 70012 bytes"),
    ],
)
def test_an_archive_that_leads_out_of_its_path_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(ArchiveInvalid, match=fault):
        check_archive(io.BytesIO(content))


NAMES = st.sampled_from(["a", "b", "dir/c", "dir/deep/d", "a name", "ünïcode", "x" * 150])


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=5), st.integers(0, 0o7777))
def test_an_archive_holds_all_inputs_at_their_paths(trees: dict[str, bytes], mode: int) -> None:
    packed_tree = tar(*((entry(name, mode=0o750), content) for name, content in trees.items()))
    contents = {hashlib.sha256(each).hexdigest(): each for each in (packed_tree, CONTENT)}
    inputs = [
        ModelInput("/etc/file", DIGEST, len(CONTENT), mode, uid=5, gid=6),
        ModelInput("/src", hashlib.sha256(packed_tree).hexdigest(), len(packed_tree), uid=7, gid=8, unpack=True),
    ]
    archive = b"".join(archive_of(inputs, lambda sha256: io.BytesIO(contents[sha256])))
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        found = {each.name: (each.mode, each.uid, each.gid, read.extractfile(each)) for each in read}
    assert found.pop("src")[:3] == (0o755, 7, 8)
    read_back = {name: (*rest, file.read() if file else None) for name, (*rest, file) in found.items()}
    expected = {f"src/{name}": (0o750, 7, 8, content) for name, content in trees.items()}
    assert read_back == {"etc/file": (mode or 0o644, 5, 6, CONTENT), **expected}


def test_an_archive_of_a_content_that_is_gone_or_short_says_which_one(tmp_path: Path) -> None:
    missing = ModelInput("/etc/file", DIGEST, len(CONTENT))
    with pytest.raises(ArchiveInvalid, match="the content of /etc/file cannot be read: No such file"):
        list(archive_of([missing], InputFiles(tmp_path).open))
    with pytest.raises(ArchiveInvalid, match="16381 bytes are missing"):
        list(archive_of([missing], lambda sha256: io.BytesIO(b"abc")))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("exponent", [40, 80])
def test_an_archive_whose_entry_claims_any_size_is_refused_at_once(exponent: int) -> None:
    claiming = entry("file")
    claiming.size = 1 << exponent
    content = claiming.tobuf(tarfile.GNU_FORMAT) + bytes(3 * tarfile.BLOCKSIZE)
    with pytest.raises(ArchiveInvalid, match="it ends before its entries do"):
        check_archive(io.BytesIO(content))


@pytest.mark.parametrize("time", ["nan", "inf", "-1e400"])
def test_an_archive_with_a_time_that_is_no_number_is_refused(time: str) -> None:
    claiming = entry("file")
    claiming.pax_headers = {"mtime": time}
    content = claiming.tobuf(tarfile.PAX_FORMAT) + bytes(2 * tarfile.BLOCKSIZE)
    with pytest.raises(ArchiveInvalid, match="the time of 'file' is not a number"):
        check_archive(io.BytesIO(content))


def test_a_directory_is_packed_with_modes_and_links_that_stay_in_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o700)
    (tmp_path / "bin/tool").write_bytes(CONTENT)
    (tmp_path / "bin/tool").chmod(0o751)
    (tmp_path / "bin/same").symlink_to("../bin/tool")
    with packed(tmp_path) as first, packed(tmp_path) as second:
        content = first.read()
        assert content == second.read()
    check_archive(io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        seen = {each.name: (each.mode & 0o777, each.linkname) for each in archive if not each.issym()}
        assert archive.getmember("bin/same").linkname == "../bin/tool"
    assert seen == {".": (tmp_path.stat().st_mode & 0o777, ""), "bin": (0o700, ""), "bin/tool": (0o751, "")}


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", "a/../x"])
def test_a_directory_with_a_link_that_leaves_it_is_not_packed(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with (
        pytest.raises(CannotPack, match=f"link is a symbolic link to {target}, which may lead out of"),
        packed(tmp_path),
    ):
        pass


# ---- the calls


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps jobs and starts none."""
    data_dir = tmp_path_factory.mktemp("inputs") / "data"
    with serving(data_dir, engine="unix:///nobody", max_input_bytes="3m", http_listen="127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def keeping(server: Server) -> Iterator[Client]:
    with Client(server.address, timeout=20) as client:
        yield client


def test_a_job_tells_of_its_inputs_without_their_contents(keeping: Client) -> None:
    given = [Input("/etc/a", CONTENT, mode=0o600, uid=3), Input("/empty", b"")]
    job = keeping.enqueue("t", "busybox", inputs=given, request_id="told")
    assert list(keeping.job(job.id).spec.inputs) == [
        pb.Input(path="/etc/a", sha256=DIGEST, size_bytes=len(CONTENT), mode=0o600, uid=3),
        pb.Input(path="/empty", sha256=hashlib.sha256(b"").hexdigest()),
    ]
    # The same request, with the content or with its checksum.
    given[0] = Input("/etc/a", sha256=DIGEST, mode=0o600, uid=3)
    assert keeping.enqueue("t", "busybox", inputs=given, request_id="told").id == job.id
    given[0] = Input("/etc/a", b"other", mode=0o600, uid=3)
    with pytest.raises(RequestIdReused):
        keeping.enqueue("t", "busybox", inputs=given, request_id="told")


def test_jobs_of_a_batch_and_jobs_that_are_replaced_have_inputs(keeping: Client) -> None:
    results = keeping.enqueue_array(2, "t", "busybox", inputs=[Input("/a", b"of an array")])
    assert [keeping.job(each.job.id).spec.inputs[0].size_bytes for each in results if each.job] == [11, 11]
    job = keeping.enqueue("t", "busybox")
    replaced = keeping.replace_job(job.id, "t", "busybox", inputs=[Input("/a", b"replaced")])
    assert replaced.spec.inputs[0].size_bytes == 8
    with pytest.raises(InvalidRequest, match="upload it first"):
        keeping.replace_job(job.id, "t", "busybox", inputs=[Input("/a", sha256="0" * 64)])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"inputs": [Input("a", b"x")]}, r"inputs\[0\].path: 'a' is not an absolute path"),
        ({"inputs": [Input("/a/../b", b"x")]}, "without . and .."),
        ({"inputs": [Input("/.fastlane/x", b"x")]}, "is in /dev, /proc, /sys, /.fastlane"),
        ({"inputs": [Input("/proc/1/x", b"x")]}, "is in /dev"),
        ({"inputs": [Input("/a", b"x"), Input("/a", b"y")]}, r"inputs\[1\].path: '/a' is there twice"),
        ({"inputs": [Input("/tmp/x", b"x")], "tmpfs": ["/tmp"]}, "'/tmp/x' is in '/tmp', which is mounted"),
        ({"inputs": [Input("/a", b"x", mode=0o10000)]}, "mode: is 4096"),
        ({"inputs": [Input("/a", b"x", uid=(1 << 32) - 1)]}, "uid: is 4294967295"),
        ({"inputs": [Input("/a", sha256="abc")]}, "sha256: must be the SHA-256"),
        ({"inputs": [Input("/a", b"x", sha256=DIGEST)]}, "sha256: is not that of the content"),
        ({"inputs": [Input("/a", sha256="0" * 64)]}, "there is no content 0000"),
        ({"inputs": [Input("/a", b"x" * 600, unpack=True)]}, r"inputs\[0\].content: cannot be unpacked"),
        ({"inputs": [Input("/a", b"x", unpack=True, mode=1)]}, "mode: cannot be set with unpack"),
        ({"inputs": [Input("/a", b"x")], "read_only_root": True}, "cannot be written where read_only_root"),
        ({"inputs": [Input(f"/{n}", b"x") for n in range(65)]}, "has 65 entries; at most 64"),
    ],
)
def test_an_input_that_cannot_be_is_refused_with_its_field(
    keeping: Client, options: dict[str, object], fault: str
) -> None:
    with pytest.raises(InvalidRequest, match=fault):
        keeping.enqueue("t", "busybox", **options)  # type: ignore[arg-type]


def test_contents_of_a_job_beyond_the_maximum_are_refused(keeping: Client, tmp_path: Path, server: Server) -> None:
    assert keeping.server_info().max_input_bytes == 3 << 20
    half = keeping.upload(io.BytesIO(b"x" * (2 << 20)))
    with pytest.raises(InvalidRequest, match="take 4194304 bytes in sum; at most 3145728"):
        keeping.enqueue("t", "busybox", inputs=[Input("/a", sha256=half), Input("/b", sha256=half)])
    with pytest.raises(InvalidRequest, match="size_bytes: is 4194304; it must be from 1 to 3145728"):
        keeping.upload(io.BytesIO(b"x" * (4 << 20)))
    (tmp_path / "large").write_bytes(b"x" * (4 << 20))
    refused = fastlane(server, "enqueue", "--input", f"{tmp_path}/large:/large", "busybox")
    assert refused.returncode == 2
    assert b"the inputs take 4.2 MB; the server takes at most 3.1 MB for a job" in refused.stderr


async def test_a_content_is_uploaded_over_http_as_it_is(server: Server, tmp_path: Path) -> None:
    content = os.urandom((2 << 20) + 7)
    digest = hashlib.sha256(content).hexdigest()

    async def put(body: bytes, sha256: str = digest, **headers: str) -> Answer:
        headers = {"content_type": "application/octet-stream"} | headers
        return await ask(server.http_port, "PUT", f"/inputs/{sha256}", body, **headers)

    size = len(content)
    first = await put(content[:9], content_range=f"bytes 0-8/{size}")
    assert (first.status, first.json) == (200, {"received_bytes": "9", "complete": False})
    # Bytes that are stored already, and those after a gap, change nothing.
    assert (await put(content[20:30], content_range=f"bytes 20-29/{size}")).json == first.json
    rest = await put(content[5:], content_type="", content_range=f"bytes 5-{size - 1}/{size}")
    assert rest.json == {"received_bytes": str(size), "complete": True}
    assert (await put(content)).json == rest.json
    for body, headers, status, told in (
        (b"abc", {}, 400, "is not that of the content"),
        (bytes((3 << 20) + 1), {}, 400, "it must be from 1 to 3145728 (max_input_bytes)"),
        (b"abc", {"content_range": "bytes 0-1/9"}, 400, "is shorter than the body"),
        (b"abc", {"content_range": "bytes 3-1/9"}, 400, "must be bytes FIRST-LAST/SIZE"),
        (b"abc", {"content_encoding": "gzip"}, 415, "the body is encoded as gzip"),
        (b"3\r\nabc\r\n0\r\n\r\n", {"content_length": "", "transfer_encoding": "chunked"}, 411, "Content-Length"),
        (b"abc", {"content_type": "text/plain"}, 415, "the body must be JSON"),
    ):
        answered = await put(body, hashlib.sha256(content[::-1]).hexdigest(), **headers)
        assert (answered.status, told in answered.body.decode()) == (status, True), answered.body
    assert (await put(b"abc", "x")).status == 400


def test_an_upload_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    content = io.BytesIO(os.urandom(3 << 20))
    parts = Parts(content)
    with serving(tmp_path / "data", engine="unix:///nobody") as server, Client(server.address) as client:
        for _ in range(2):
            parts.note(client._call(client._jobs.UploadInput, parts.next()))
        server.kill()
    with serving(tmp_path / "data", engine="unix:///nobody") as server, Client(server.address) as client:
        anew = Parts(content)
        assert not anew.note(client._call(client._jobs.UploadInput, anew.next()))
        assert anew.next().offset == 1 << 20
        digest = client.upload(content)
        assert (tmp_path / "data/inputs" / digest).read_bytes() == content.getvalue()


# ---- the container


@pytest.mark.engine
def test_a_container_has_its_inputs_exactly_also_after_a_crash_and_a_retry(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/tool").write_text("#!/bin/sh\necho ran as $(id -u)\n")
    (tree / "bin/tool").chmod(0o755)
    (tree / "big").write_bytes(big := os.urandom(5 << 20))
    (tree / "link").symlink_to("bin/tool")
    (tmp_path / "config").write_bytes(CONTENT)
    (tmp_path / "config").chmod(0o640)
    script = """
        sha256sum </src/big; sha256sum </etc/my/config; stat -c '%a %u %g %n' /src/bin/tool /etc/my/config /etc/my
        /src/link; echo changed >/src/big; test "$(cat /etc/my/config | wc -c)" = 1
    """
    looked = (
        f"{hashlib.sha256(big).hexdigest()}  -\n{DIGEST}  -\n755 0 0 /src/bin/tool\n640 0 0 /etc/my/config\n"
        "755 0 0 /etc/my\nran as 0\n"
    )
    data_dir = tmp_path / "data"
    given = ["--input", f"{tree}:/src/", "--input", f"{tmp_path}/config:/etc/my/config"]
    # Killed when the inputs are in a container that was not started.
    with serving(data_dir, kill_at="attached") as server:
        words = [*given, "--retries", "1", "--backoff", "0s", image, "sh", "-c", script]
        made = fastlane(server, "enqueue", *words)
        server.wait()
    with serving_on(sdk, data_dir) as server:
        log = fastlane(server, "logs", "-f", made.stdout.decode().strip())
        assert log.stdout.decode() == looked * 2, log.stderr


@pytest.mark.engine
def test_inputs_whose_content_is_gone_end_the_execution_with_that(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = tmp_path / "data"
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        client.update_task("t", paused=True)
        job = client.enqueue("t", image, "true", inputs=[Input("/a", CONTENT)])
        (data_dir / "inputs" / DIGEST).unlink()
        client.update_task("t", paused=False)
        for _ in client.tail_job(job.id):
            pass
        ended = client.job(job.id).outcome
        log = run(client, image, "cat", "/b", inputs=[Input("/b", b"still works")])
    assert ended.reason == pb.REASON_INPUT_UNAVAILABLE
    assert "the content of /a cannot be read: No such file" in ended.detail
    assert log.stdout == b"still works", outcome(log)


# ---- backups


def test_a_backup_has_the_contents_of_inputs_and_damage_of_one_is_found(tmp_path: Path) -> None:
    data_dir, restored = tmp_path / "data", tmp_path / "restored"
    with serving(data_dir, engine="unix:///nobody") as server, Client(server.address) as client:
        job = client.enqueue("t", "busybox", inputs=[Input("/a", CONTENT)])
        back_up(data_dir, str(tmp_path / "backup"), output=io.BytesIO(), version="test", now=utc_now())
    restore(str(tmp_path / "backup"), restored, stream=io.BytesIO(), now=utc_now())
    assert (restored / "inputs" / DIGEST).read_bytes() == CONTENT
    assert verify(restored).faults == []
    (restored / "inputs" / DIGEST).write_bytes(CONTENT[1:])
    assert [fault.detail for fault in verify(restored).faults] == ["has another content than the one of its checksum"]
    (restored / "inputs" / DIGEST).unlink()
    [fault] = verify(restored).faults
    assert (fault.subject, fault.detail) == (f"job {job.id}", f"the content {DIGEST} of an input is missing")
