"""A server that is killed -9 delays notifications: none is lost, and those of a job arrive in order."""

import asyncio
import random
from pathlib import Path

from fastlane_grpc.client import AsyncClient, Webhook
from tests.receivers import OK, HttpReceiver, Post
from tests.serving import Server

JOBS, KILLS = 12, 2


def served(directory: Path) -> Server:
    """One whose engine is not there: what it is told to stop ends at once."""
    return Server(directory / "data", engine=f"unix://{directory}/no-engine", notify_backoff="1s")


async def test_an_attempt_without_a_result_is_made_again_under_the_same_id(tmp_path: Path) -> None:
    async with HttpReceiver() as receiver:
        server = served(tmp_path)

        async def kill(post: Post, writer: asyncio.StreamWriter) -> None:
            server.process.kill()
            server.process.wait()

        receiver.answer = kill
        async with AsyncClient(server.address) as client:
            job = await client.enqueue("t", "busybox", notifications=[Webhook(receiver.url)])
            await client.stop(job.id)
            await receiver.received(1)
        receiver.answer = accept_some(chance=1.0)
        server = served(tmp_path)
        first, second = await receiver.received(2)
        server.stop()
    assert (first.id, first.body, first.json["data"]["job"]["id"]) == (second.id, second.body, job.id)
    assert [post.headers["fastlane-attempt"] for post in (first, second)] == ["1", "1"]


async def test_whatever_is_killed_each_end_is_told_and_in_order(tmp_path: Path) -> None:
    accepted: dict[str, list[int]] = {}
    complete = asyncio.Event()

    async def answer(post: Post, writer: asyncio.StreamWriter) -> None:
        job = post.json["data"]["job"]
        await accept_some(chance=0.8)(post, writer)
        await writer.drain()
        accepted.setdefault(job["id"], []).append(int(job["execution"]["run"]))
        if len(accepted) == JOBS and all(2 in runs for runs in accepted.values()):
            complete.set()

    async with HttpReceiver(answer) as receiver:
        server = served(tmp_path)
        jobs: list[str] = []
        for killing in range(KILLS + 1):
            async with AsyncClient(server.address) as client:
                for _ in range(JOBS // (KILLS + 1)):
                    job = await client.enqueue("t", "busybox", notifications=[Webhook(receiver.url)])
                    jobs.append(job.id)
                    await client.stop(job.id)
                    await client.retry_job(job.id)
                    await client.stop(job.id)
            if killing < KILLS:
                # At any moment of the attempts. Each job has two ends: no more posts than these are sure to come.
                await receiver.received(min(len(receiver.posts) + random.randint(0, 4), 2 * len(jobs)))
                server.process.kill()
                server.process.wait()
                server = served(tmp_path)
        async with asyncio.timeout(60):
            await complete.wait()
        server.stop()
    assert set(accepted) == set(jobs)
    for runs in accepted.values():
        assert runs == sorted(runs), "the end of run 2 is not told before that of run 1 was accepted"


def accept_some(chance: float):  # type: ignore[no-untyped-def]
    async def answer(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if random.random() < chance else b"HTTP/1.1 503 Busy\r\n\r\n")

    return answer
