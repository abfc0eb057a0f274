"""What a request may hold: each field at fault is named, all of them at once."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from fastlane_grpc.api.validation import enqueue_violations, is_signal, stop_violations
from fastlane_grpc.model import JobSpec, Limits, utc_now
from fastlane_grpc.text.redaction import SecretNames

NOW = utc_now()
LIMIT = timedelta(minutes=30)
GOOD = JobSpec(image="registry:5000/mail/send:1.2", command="python /app/sendmail.py", envs={"SMTP": "host"})


def fields(spec: JobSpec, *, task_id: str = "task", request_id: str = "") -> list[str]:
    return [violation.field for violation in enqueue_violations(task_id, spec, request_id, LIMIT, NOW)]


def test_a_spec_as_people_write_it_has_no_fault() -> None:
    assert fields(GOOD) == []


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:1.36",
        "library/busybox",
        "localhost:5000/a/b_c/d--e:Tag.1-x",
        "my.docker.repo.com/my-send-email-image:latest",
        "127.0.0.1:5000/x@sha256:" + "0" * 64,
        "busybox:1@sha256:" + "a" * 64,
        "sha256:" + "b" * 64,
        "[::1]:5000/x",
    ],
)
def test_every_form_of_an_image_is_taken(image: str) -> None:
    assert fields(replace(GOOD, image=image)) == []


@pytest.mark.parametrize(
    "image",
    ["", "Busybox", "a b", "a:", ":a", "a@sha256:12", "a//b", "http://a/b", "a\n", "-a", "a" * 600, "a:" + "t" * 129],
)
def test_what_is_no_image_is_refused(image: str) -> None:
    assert fields(replace(GOOD, image=image)) == ["spec.image"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (replace(GOOD, command="echo 'open"), "spec.command"),
        (replace(GOOD, command="a\0b"), "spec.command"),
        (replace(GOOD, args=("fine", "a\0b")), "spec.args[1]"),
        (replace(GOOD, args=("x" * (128 << 10),)), "spec.args[0]"),
        (replace(GOOD, entrypoint=("", "x")), "spec.entrypoint[0]"),
        (replace(GOOD, envs={"": "x"}), 'spec.envs[""]'),
        (replace(GOOD, envs={"A=B": "x"}), 'spec.envs["A=B"]'),
        (replace(GOOD, envs={"A": "x\0"}), 'spec.envs["A"]'),
        (replace(GOOD, envs={"DB_PASSWORD": "***"}), 'spec.envs["DB_PASSWORD"]'),
        (replace(GOOD, args=["mysql", "--password", "***"]), "spec.args[2]"),
        (replace(GOOD, command="mysql --password ***"), "spec.command"),
        (replace(GOOD, working_dir="relative"), "spec.working_dir"),
        (replace(GOOD, user="a b"), "spec.user"),
        (replace(GOOD, user="a\x1b[2J"), "spec.user"),
        (replace(GOOD, network="host"), "spec.network"),
        (replace(GOOD, network="container:x"), "spec.network"),
        (replace(GOOD, timeout=timedelta()), "spec.timeout"),
        (replace(GOOD, timeout=timedelta(seconds=-1)), "spec.timeout"),
        (replace(GOOD, timeout=LIMIT + timedelta(seconds=1)), "spec.timeout"),
        (replace(GOOD, stop_grace=timedelta(seconds=-1)), "spec.stop_grace"),
        (replace(GOOD, stop_signal="SIGNOPE"), "spec.stop_signal"),
        (replace(GOOD, stop_signal="65"), "spec.stop_signal"),
        (replace(GOOD, stop_signal="44"), "spec.stop_signal"),
        (replace(GOOD, stop_signal="sigrtmin+10"), "spec.stop_signal"),
        (replace(GOOD, priority=101), "spec.priority"),
        (replace(GOOD, limits=Limits(memory_bytes=1024)), "spec.limits.memory_bytes"),
        (replace(GOOD, limits=Limits(memory_bytes=-1)), "spec.limits.memory_bytes"),
        (replace(GOOD, limits=Limits(cpus=-0.5)), "spec.limits.cpus"),
        (replace(GOOD, limits=Limits(cpus=math.nan)), "spec.limits.cpus"),
        (replace(GOOD, limits=Limits(pids=-1)), "spec.limits.pids"),
        (replace(GOOD, labels={"": "x"}), 'spec.labels[""]'),
        (replace(GOOD, labels={"a": "x" * 257}), 'spec.labels["a"]'),
        (replace(GOOD, labels={"fastlane.instance": "x"}), 'spec.labels["fastlane.instance"]'),
        (replace(GOOD, labels={str(number): "" for number in range(65)}), "spec.labels"),
        (replace(GOOD, metadata={"a": "x" * (64 << 10)}), "spec.metadata"),
    ],
)
def test_the_field_at_fault_is_named(spec: JobSpec, field: str) -> None:
    assert fields(spec) == [field]


@pytest.mark.parametrize("task_id", ["", ".hidden", "-dash", "a/b", "a b", "ä", "x" * 129])
def test_a_task_id_is_a_plain_name(task_id: str) -> None:
    assert fields(GOOD, task_id=task_id) == ["task_id"]


def test_all_faults_are_told_at_once() -> None:
    spec = replace(GOOD, image="", network="host", priority=-101)
    assert fields(spec, task_id="", request_id="r" * 129) == [
        "task_id",
        "request_id",
        "spec.image",
        "spec.network",
        "spec.priority",
    ]


@pytest.mark.parametrize("name", ["SIGTERM", "TERM", "sigint", "15", "9", "SIGRTMIN+9", "RTMAX-3", "USR1"])
def test_signals_are_known_by_name_and_number(name: str) -> None:
    assert is_signal(name)


MASKED = "postgres://app:***@db"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (replace(GOOD, envs={"URL": f"x {MASKED}"}), 'spec.envs["URL"]'),
        (replace(GOOD, command=f"psql {MASKED}"), "spec.command"),
        (replace(GOOD, args=("a", MASKED)), "spec.args[1]"),
        (replace(GOOD, entrypoint=(MASKED,)), "spec.entrypoint[0]"),
        (replace(GOOD, labels={"db": MASKED}), 'spec.labels["db"]'),
    ],
)
def test_a_password_that_was_not_shown_is_refused_wherever_it_stands(spec: JobSpec, field: str) -> None:
    [violation] = enqueue_violations("task", spec, "", LIMIT, NOW)
    assert violation.field == field
    assert "in place of a secret that was not shown; give the real one" in violation.description


def test_no_error_repeats_a_secret() -> None:
    spec = replace(GOOD, envs={"DB_PASSWORD=hunter2": "x", "A=postgres://u:hunter2@h": "x", "API_KEY": "hunter2\0"})
    violations = list(enqueue_violations("task", spec, "", LIMIT, NOW))
    assert [each.field for each in violations] == [
        'spec.envs["DB_PASSWORD=***"]',
        'spec.envs["A=postgres://u:***@h"]',
        'spec.envs["API_KEY"]',
    ]
    assert "hunter2" not in str(violations)
    url = "https://user:" + "hunter2" * 20 + "@host"
    spec = replace(GOOD, image=url, network=url, stop_signal=url, labels={url: "x"})
    assert "hunter2" not in str(list(enqueue_violations("task", spec, "", LIMIT, NOW)))


def test_which_names_are_secret_is_a_setting() -> None:
    spec = replace(GOOD, envs={"PIN": "***", "API_KEY": "***"})
    [violation] = enqueue_violations("task", spec, "", LIMIT, NOW, SecretNames.read("pin"))
    assert violation.field == 'spec.envs["PIN"]'


@pytest.mark.parametrize(
    "note", ["x)\nsucceeded: exited with 0", "\x1b]52;c;aGVsbG8=\x07", "a\tb", "\x9b", "\u202e", "\u2028"]
)
def test_a_note_is_one_line_of_text(note: str) -> None:
    [violation] = stop_violations(note, None)
    assert violation.field == "note"
    assert f"U+{ord(next(each for each in note if not each.isprintable())):04X}" in violation.description


@pytest.mark.parametrize("note", ["", "wrong mailing list – Zoë", "n" * 256])
def test_a_note_for_people_is_taken(note: str) -> None:
    assert not [*stop_violations(note, None)]


@pytest.mark.parametrize("path", ["/.fastlane", "/.fastlane/", "//.fastlane/box", "/x/../.fastlane/recorder"])
def test_a_working_directory_below_the_recorder_is_refused(path: str) -> None:
    [violation] = enqueue_violations("task", replace(GOOD, working_dir=path), "", LIMIT, NOW)
    assert violation.field == "spec.working_dir"
    assert "/.fastlane" in violation.description


@pytest.mark.parametrize("path", ["/", "/.fastlanes", "/x/.fastlane", ""])
def test_other_working_directories_are_accepted(path: str) -> None:
    assert not [*enqueue_violations("task", replace(GOOD, working_dir=path), "", LIMIT, NOW)]
