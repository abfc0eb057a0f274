"""The first example of the original's documentation, from `curl` to the mail: a registry, an image with Python and a
script, an engine, an SMTP server."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.docker_registry import docker_registry
from tests.mails import BRIDGE, Mails
from tests.serving import Server, serving_on
from tests.tools import tool

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

SECONDS = 60
# As the reader of that documentation sees it, but for the host, the image and the mail server.
CURL = """
curl -X POST http://fastlane.local:10000/tasks/send-very-specific-email --header "Content-Type: application/json" \
     -d '{"image": "my.docker.repo.com/my-send-email-image:latest", "command": "python /app/sendmail.py",
          "envs": {"SMTP_SERVER": "my-smtp-server"}}'
"""
SEND_MAIL = b"""
import os, smtplib, sys
from email.message import EmailMessage

mail = EmailMessage()
mail["From"], mail["To"], mail["Subject"] = "job@example.com", "you@example.com", "very specific"
mail.set_content("It has arrived.")
print("connecting to", os.environ["SMTP_SERVER"], flush=True)
with smtplib.SMTP(os.environ["SMTP_SERVER"], timeout=20) as server:
    server.send_message(mail)
print("sent", file=sys.stderr)
"""


@pytest.fixture
def server(tmp_path: Path, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path / "data", http_listen="127.0.0.1:0") as server:
        yield server


def curl(*arguments: str) -> Any:
    command = [tool("curl"), "--silent", "--show-error", "--fail-with-body", "--max-time", str(SECONDS), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 5)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return json.loads(ran.stdout)


def ended(http: str, job_id: str) -> Any:
    """The job, once it is final: told by the watch, not asked again and again."""
    command = [tool("curl"), "--silent", "--no-buffer", "--max-time", str(SECONDS)]
    command += ["--header", "Accept: application/x-ndjson", f"{http}/watch?job_ids={job_id}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        try:
            return next(
                message["job"] for message in map(json.loads, watch.stdout) if "outcome" in message.get("job", {})
            )
        finally:
            watch.kill()


def test_the_curl_of_the_seed_sends_its_mail(
    server: Server, python_image: str, sdk: docker.DockerClient, tmp_path: Path
) -> None:
    http = f"http://127.0.0.1:{server.http_port}"
    with Mails() as mails, docker_registry(tmp_path, sdk, python_image) as registry:
        link = "RUN ln -s python3 /usr/bin/python\n"
        registry.push_with_files("my-send-email-image:latest", {"/app/sendmail.py": SEND_MAIL}, link)
        command = shlex.split(
            CURL.replace("http://fastlane.local:10000", http)
            .replace("my.docker.repo.com", registry.address)
            .replace("my-smtp-server", f"{BRIDGE}:{mails.port}")
        )
        answered = curl(*command[1:])
        links = answered["links"]
        assert links["task"] == f"{http}/tasks/send-very-specific-email"
        job = ended(http, answered["job"]["id"])
        assert job["state"] == "STATE_SUCCEEDED", job
        mail = mails.received.get(timeout=SECONDS)
        assert (mail["Subject"], mail["To"]) == ("very specific", "you@example.com")
        assert mail.get_content().strip() == "It has arrived."
        assert curl(links["job"])["job"]["outcome"]["exit_code"] == 0
        assert curl(links["execution"])["execution"]["host"] == "local"
        assert curl(links["task"])["task"]["jobs"] == "1"
