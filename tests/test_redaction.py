"""Which values are secrets: names by their words, and the passwords of URLs."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.model import JobSpec, Outcome
from fastlane_grpc.text.redaction import (
    DEFAULT_ENTRIES,
    REDACTED,
    SecretNames,
    holds_masked_password,
    mask_url_passwords,
)

NAMES = SecretNames()

HIDDEN = [
    name
    for line in (
        "PGPASS PGPASSWORD SSHPASS MY_PASS DB_PWD DBPWD MYSQL_PWD PASSPHRASE KEY_PASSPHRASE DB_PASSWORD PASSWORD2",
        "spring.datasource.password PASSWD AUTHORIZATION DOCKER_AUTH_CONFIG OAuth2Token MY_AUTH BEARER GH_PAT",
        "GITHUB_TOKEN",
        "AWS_SESSION_TOKEN AWS_SECRET_ACCESS_KEY accessToken JWT SECRET_KEY_BASE API_KEY APIKEY APIKey api-key KEY1",
        "PRIVATE_KEY SIGNING_KEY SSH_KEYS ClientSecret CLIENT_ID clientId CREDENTIALS COOKIE SESSION_COOKIES",
        "SENTRY_DSN MYSQL_DSN CONNECTION_STRING AZURE_STORAGE_CONNECTIONSTRING TOTP_SECRET",
    )
    for name in line.split()
]
SHOWN = [
    name
    for line in (
        "MONKEY KEYBOARD KEYMAP HOCKEY TOKENIZERS_PARALLELISM TOKENIZER MAX_TOKENS AUTHOR AUTHORS PASSENGER COMPASS",
        "BYPASS PWD OLDPWD SECRETARY PATH PATTERN PATCH PATH_INFO HOME LANG SMTP_SERVER DATABASE_URL",
        "COOKIECUTTER_DIR SSH_AUTH_SOCK SSH_ASKPASS PYTHONUNBUFFERED",
    )
    for name in line.split()
]


@pytest.mark.parametrize("name", HIDDEN)
def test_names_with_a_secret_word_are_hidden(name: str) -> None:
    assert NAMES.hides(name)
    assert NAMES.shown(name, "hunter2") == REDACTED


@pytest.mark.parametrize("name", SHOWN)
def test_names_that_only_share_letters_with_a_secret_word_are_shown(name: str) -> None:
    assert NAMES.shown(name, "value") == "value"


# Names are made of these, none of which is secret.
WORDS = st.sampled_from(["APP", "MONKEY", "AUTHOR", "COMPASS", "X", "TOKENIZERS", "V2", "PASSENGER"])
SECRET_WORDS = sorted(entry.strip("*") for entry in DEFAULT_ENTRIES if not entry.startswith("!") and entry != "*pwd")


@given(before=st.lists(WORDS, max_size=3), word=st.sampled_from(SECRET_WORDS), after=st.lists(WORDS, max_size=3))
def test_a_secret_word_hides_a_name_wherever_it_stands(before: list[str], word: str, after: list[str]) -> None:
    for join in ("_", "-", ".", "__"):
        assert NAMES.hides(join.join([*before, word.upper(), *after]))
        assert NAMES.hides(join.join([*before, f"{word}s", *after]).lower())
        assert not NAMES.hides(join.join([*before, *after]))
    assert NAMES.hides("".join(each.capitalize() for each in [*before, *word.split("_"), *after]))


@given(name=st.text())
def test_any_name_at_all_is_hidden_or_not(name: str) -> None:
    assert NAMES.hides(name) in {True, False}


# ---- the setting


def test_a_list_takes_the_place_of_the_default_or_adds_to_it() -> None:
    own = SecretNames.read("pin, Internal_Code,my*thing")
    assert [
        name for name in ("PIN", "SPINNER", "X_INTERNAL_CODES", "CODE", "MYBIGTHING", "API_KEY") if own.hides(name)
    ] == [
        "PIN",
        "X_INTERNAL_CODES",
        "MYBIGTHING",
    ]
    more = SecretNames.read("default,pin,!sort_key,!*_partition_key")
    assert [name for name in ("PIN", "API_KEY", "SORT_KEY", "MY_SORT_KEY", "A_PARTITION_KEY") if more.hides(name)] == [
        "PIN",
        "API_KEY",
        "MY_SORT_KEY",
    ]


@pytest.mark.parametrize("text", ["default", "pin", "default,pin,!sort_key", "a*b,c_d"])
def test_a_list_is_written_as_it_is_read(text: str) -> None:
    assert str(SecretNames.read(text)) == text
    assert SecretNames.read(str(SecretNames.read(text))) == SecretNames.read(text)


@pytest.mark.parametrize("text", ["", "a,,b", "a b", "a-b", "!", "ä", "_a", "a;b"])
def test_what_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an entry"):
        SecretNames.read(text)


# ---- URLs


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://app:hunter2@db:5432/x?y#z", "postgres://app:***@db:5432/x?y#z"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("smtp://me@example.com:hunter2@mail", "smtp://me@example.com:***@mail"),
        ("amqp://u:a/b:c@d@host and x://u:p@h", "amqp://u:***@host and x://u:***@h"),
        ("http://host:8080/path@2", "http://host:8080/path@2"),
        ("http://host/a:b@c", "http://host/a:b@c"),
        ("docker://registry:5000/image:tag@sha256:0123", "docker://registry:5000/image:tag@sha256:0123"),
        ("https://user@host", "https://user@host"),
        ("http://host:80", "http://host:80"),
        ("://a:b@c", "://a:b@c"),
        ("me@example.com:22", "me@example.com:22"),
        ("a://b://c:hunter2@d", "a://b:***@d"),
    ],
)
def test_passwords_of_urls_are_masked(text: str, shown: str) -> None:
    assert mask_url_passwords(text) == shown
    assert mask_url_passwords(shown) == shown


USERS = st.text("abcXYZ019-_.%~@", max_size=8)
PASSWORDS = st.text("abcXYZ-_.~!$&'()*+,;=:@%/", min_size=1, max_size=20).map(lambda text: f"#{text}#")


@given(
    before=st.text(max_size=9),
    scheme=st.sampled_from(["postgres", "redis+tls", "http", "s3"]),
    user=USERS,
    password=PASSWORDS,
    after=st.text(max_size=9),
)
def test_no_password_of_a_url_is_shown(before: str, scheme: str, user: str, password: str, after: str) -> None:
    for form in (password, quote(password, safe="")):
        shown = mask_url_passwords(f"{before} {scheme}://{user}:{form}@host/{after}")
        assert form not in shown
        assert f"{scheme}://{user}:{REDACTED}@" in shown


@given(text=st.text(st.sampled_from("ab:/@# 1*") | st.characters()))
def test_masking_changes_nothing_but_passwords_and_is_found_again(text: str) -> None:
    shown = mask_url_passwords(text)
    assert mask_url_passwords(shown) == shown
    assert shown == text or holds_masked_password(shown)


@given(text=st.text(st.sampled_from("a:/@ ")))
def test_masking_makes_a_text_at_most_half_as_long_again(text: str) -> None:
    # Less than that: a spec of 2 MiB stays below the 3 MiB of an answer.
    assert 7 * len(mask_url_passwords(text)) <= 10 * (len(text) + 1)


def test_masking_takes_linear_time() -> None:
    for text in ("a://u:" * 20_000 + "@", "a" * 120_000 + "://x:y@z", "://" * 40_000 + "@", "a://1:2/" * 15_000 + "@"):
        mask_url_passwords(text)
        NAMES.hides(text)


# ---- what is shown of a job


def test_a_spec_is_shown_without_secrets_wherever_they_stand() -> None:
    url = "postgres://app:hunter2@db/x"
    spec = JobSpec(
        "busybox",
        command=f"psql {url}",
        args=[url, "plain"],
        entrypoint=["run", url],
        envs={"DATABASE_URL": url, "PGPASS": "hunter2", "PLAIN": "value"},
        labels={"db": url},
    )
    shown = spec.redacted(NAMES)
    assert "hunter2" not in repr(shown)
    assert (shown.args[1], shown.envs["PLAIN"], shown.image) == ("plain", "value", "busybox")
    assert shown.redacted(NAMES) == shown


def test_an_outcome_shows_no_password_of_a_url() -> None:
    assert "hunter2" not in Outcome(detail='exec: "postgres://app:hunter2@db/x": not found').detail


def test_a_spec_without_secrets_is_shown_as_it_is() -> None:
    spec = JobSpec("busybox", "true", ("a",), {"HOME": "/"}, entrypoint=("sh",), labels={"team": "mail"})
    assert spec.redacted(SecretNames()) is spec
