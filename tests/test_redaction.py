"""Redaction: secret names, and secrets in text, wherever they stand."""

import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import JobSpec, Outcome
from fastlane_grpc.text.redaction import (
    DEFAULT_ENTRIES,
    REDACTED,
    SecretNames,
    mask_secrets,
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


# ---- secrets in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://app:hunter2@db:5432/x?y#z", "postgres://app:***@db:5432/x?y#z"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("smtp://me@example.com:hunter2@mail", "smtp://me@example.com:***@mail"),
        ("amqp://u:a/b:c@d@host and x://u:p@h", "amqp://u:***@host and x://u:***@h"),
        ("a://b://c:hunter2@d", "a://b:***@d"),
        ("http://u:12/sec@h", "http://u:***@h"),
        ("http://u:12/sec@10.0.0.1:80", "http://u:***@10.0.0.1:80"),
        ("https://ghp_0123456789abcdefghij@host", "https://ghp_***@host"),
        ("no job flt_0123456789abcdefghij", "no job flt_***"),
        ("https://0123456789abcdef0123:x-oauth-basic@host", "https://***:***@host"),
        ("jdbc:mysql://db:3306/x?user=a&password=a;b&ssl=1", "jdbc:mysql://db:3306/x?user=a&password=***&ssl=1"),
        ("jdbc:sqlserver://db:1433;user=a;password=a&b;x=1", "jdbc:sqlserver://db:1433;user=a;password=***;x=1"),
        (
            "http://host/x?token=abc http://host/?a=1&api_key=abc",
            "http://host/x?token=*** http://host/?a=1&api_key=***",
        ),
        ("curl 'http://host/x?token=abc' -o x", "curl 'http://host/x?token=***' -o x"),
        ("run --api-key=abc PASSWORD='a b' x", "run --api-key=*** PASSWORD='***' x"),
        ("host=db password=a'b user=x", "host=db password=*** user=x"),
        ('{"a": 1, "password": "a\\"b", "b": 2}', '{"a": 1, "password": "***", "b": 2}'),
        ("curl -H 'Authorization: Bearer abc' x", "curl -H 'Authorization: ***' x"),
        ("proxy-authorization: Basic YTpi\nX-Api-Key:abc", "proxy-authorization: ***\nX-Api-Key:***"),
        ("sent bearer abcdefghijklmno1.x-y_z=", "sent bearer ***"),
        ("sent BEARER abcdefghijklmnop1", "sent BEARER ***"),
        ("npm_0123456789abcdefghij", "npm_***"),
        ("glpat-0123456789abcdefghij is denied", "glpat-*** is denied"),
    ],
)
def test_secrets_in_text_are_masked(text: str, shown: str) -> None:
    assert mask_secrets(text) == shown
    assert mask_secrets(shown) == shown
    assert NAMES.holds_mask(shown)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/path@2",
        "http://host:8080/path@v1.2",
        "http://host:8080/path?mail=me@example.com",
        "http://host/a:b@c",
        "docker://registry:5000/image:tag@sha256:0123",
        "https://user@host",
        "ssh://git@github.com/x",
        "http://host:80",
        "://a:b@c",
        "me@example.com:22",
        "monkey=1 keyboard: us a==b",
        "token: unexpected end",
        "password=",
        'Bearer realm="x"',
        "bearer authentication required",
        "lookup vault-token: no such host",
        "echo ***",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert mask_secrets(text) == text
    assert not NAMES.holds_mask(text)


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
        assert form not in mask_secrets(f"{before} {scheme}://{user}:{form}@host/{after}")


@given(digits=st.integers(0, 99_999), secret=st.text("abcxyz/:#", min_size=1, max_size=9).map(lambda text: f"S{text}S"))
def test_no_password_that_looks_like_a_port_is_shown(digits: int, secret: str) -> None:
    assert secret not in mask_secrets(f"http://u:{digits}/{secret}@host:80/x")


# No character that ends the value where it stands, and none that is in what surrounds it.
SECRETS = st.text("ABCXYZ0189._~+/$!*%", min_size=1, max_size=30).map(lambda text: f"S0{text}0S")
PLACES = [
    "https://host/x?a=b&{name}={secret}&c=d",
    "https://host/x?{name}={secret}",
    "jdbc:sqlserver://host;user=u;{name}={secret};c=d",
    "host=db {name}={secret} user=u",
    "--{name}={secret}",
    "-D{name}={secret} x",
    "export {name}='{secret}'; run",
    'run "{name}={secret}" x',
    '{{"{name}": "{secret}", "a": 1}}',
]


@given(
    place=st.sampled_from(PLACES),
    name=st.sampled_from(["password", "api_key", "X_TOKEN", "client-secret", "db.password", "accessToken"]),
    secret=SECRETS,
    before=st.sampled_from(["", "run ", "a=b ", "error: "]),
)
def test_no_value_with_a_secret_name_is_shown(place: str, name: str, secret: str, before: str) -> None:
    shown = mask_secrets(before + place.format(name=name, secret=secret))
    assert secret not in shown
    assert shown == before + place.format(name=name, secret=REDACTED)


@given(
    header=st.sampled_from(["Authorization: Bearer {}", "authorization:{}", "Cookie: a={}; b=c", "X-Auth-Token: {}"]),
    quotes=st.sampled_from(["", "'", '"']),
    secret=SECRETS,
)
def test_no_value_of_a_secret_header_is_shown(header: str, quotes: str, secret: str) -> None:
    assert secret not in mask_secrets(f"curl -H {quotes}{header.format(secret)}{quotes}")


@given(text=st.text(" \n=;&ab#@:/'\"", max_size=20))
def test_a_word_shows_nothing_after_its_secret_name(text: str) -> None:
    assert NAMES.mask_word(f"--password={text}") == f"--password={REDACTED if text else ''}"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["mysql", "--password", "x y", "db"], ["mysql", "--password", "***", "db"]),
        (["prog", "-apiKey", "x", "--token=y"], ["prog", "-apiKey", "***", "--token=***"]),
        (["sh", "-c", "mysql --password 'a b' -h db"], ["sh", "-c", "mysql --password '***' -h db"]),
        (["prog", "--token", "ghp_0123456789abcdefghij"], ["prog", "--token", "***"]),
    ],
)
def test_the_word_after_a_secret_option_is_masked(words: list[str], shown: list[str]) -> None:
    assert NAMES.mask_words(words) == tuple(shown)
    assert NAMES.mask_words(shown) == tuple(shown)
    assert any(NAMES.is_mask(shown, number) or NAMES.holds_mask(word) for number, word in enumerate(shown))


@pytest.mark.parametrize(
    "words",
    [
        ["psql", "--no-password", "db"],
        ["prog", "--password", "--verbose", "x"],
        ["prog", "--password"],
        ["prog", "password", "x"],
        ["prog", "--monkey", "x"],
        ["echo", "-", "***"],
        ["sh", "-c", "psql --no-password db; prog --password --verbose; prog --token"],
    ],
)
def test_a_word_after_another_option_is_shown(words: list[str]) -> None:
    assert NAMES.mask_words(words) == tuple(words)
    assert not any(NAMES.is_mask(words, number) or NAMES.holds_mask(word) for number, word in enumerate(words))


@given(words=st.lists(st.lists(st.text("a- ='\"\n", max_size=3) | st.sampled_from(["--token", "key"]), max_size=5)))
def test_masking_words_twice_is_masking_them_once(words: list[list[str]]) -> None:
    shown = NAMES.mask_words(["".join(word) for word in words])
    assert NAMES.mask_words(shown) == shown


# Everything that begins or ends a secret, in any order.
FRAGMENTS = st.sampled_from(
    [
        "a",
        "1",
        ":",
        "/",
        "@",
        "#",
        "*",
        "=",
        "&",
        "?",
        ";",
        ",",
        "'",
        '"',
        "-",
        ".",
        "\\",
        "://",
        ":80/",
        "***",
        "token",
        "key=",
        "password=",
        "Bearer",
        "Authorization:",
        "X-Key:",
        "ghp_",
        "abcdefgh12345678",
        "a://u:p@h",
        '"key":"',
        '{"token":',
        "@v1",
        "@sha256:",
        " ",
        "\n",
        "--key ",
        "-token ",
    ]
)


@given(text=st.lists(FRAGMENTS | st.characters(), max_size=14).map("".join))
@settings(max_examples=1000)
def test_masking_changes_nothing_but_secrets_and_is_found_again(text: str) -> None:
    for mask in (mask_secrets, NAMES.mask_command):
        shown = mask(text)
        assert mask(shown) == shown
        assert shown == text or NAMES.holds_mask(shown)


@given(text=st.lists(FRAGMENTS, max_size=14).map("".join) | st.text(st.sampled_from("a:/@ ")))
def test_masking_makes_a_text_at_most_half_as_long_again(text: str) -> None:
    assert 7 * len(NAMES.mask_command(text)) <= 10 * (len(text) + 1)
    # Less than that: a spec of 2 MiB stays below the 3 MiB of an answer.
    assert 7 * len(mask_secrets(text)) <= 10 * (len(text) + 1)


HOSTILE = [
    "a://u:",
    "a://",
    "://",
    "a://1:2/",
    "a://1:2/?x=@",
    "a://@",
    "key=",
    "'a",
    "password='",
    '"a":"',
    "x-a",
    "x-key:",
    "a-authorization",
    "bearer_",
    "ghp_",
    "x-auth-token",
    '\\"',
    "a.",
    "A0",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_masking_takes_linear_time(piece: str) -> None:
    # 100 times the time of a short text would be 10 000 times if time were quadratic.
    short, long = (piece.replace("_", " ") * (length // len(piece)) + "?x=@key=" for length in (2_000, 200_000))
    assert _seconds(long) < 1000 * max(_seconds(short), 0.0001)


def _seconds(text: str) -> float:
    def once() -> float:
        began = time.thread_time()
        mask_secrets(text)
        NAMES.hides(text)
        return time.thread_time() - began

    return min(once(), once(), once())


# ---- what is shown of a job


def test_a_spec_is_shown_without_secrets_wherever_they_stand() -> None:
    url = "postgres://app:hunter2@db/x"
    spec = JobSpec(
        "busybox",
        command=f"psql {url} 'x;password=hunter2'",
        args=[url, "plain", "--password=hunter2 hunter2", "Authorization: Bearer hunter2"],
        entrypoint=["run", url],
        envs={"DATABASE_URL": url, "PGPASS": "hunter2", "PLAIN": "value"},
        labels={"db": url},
    )
    shown = spec.redacted(NAMES)
    assert "hunter2" not in repr(shown)
    assert (shown.args[1], shown.envs["PLAIN"], shown.image) == ("plain", "value", "busybox")
    assert shown.redacted(NAMES) == shown


def test_an_outcome_shows_no_secret() -> None:
    for secret in ("postgres://app:hunter2@db/x", "http://db/x?token=hunter2", "Authorization: Bearer hunter2"):
        assert "hunter2" not in Outcome(detail=f'exec: "{secret}": not found').detail


def test_a_spec_without_secrets_is_shown_as_it_is() -> None:
    spec = JobSpec("busybox", "true", ("a",), {"HOME": "/"}, entrypoint=("sh",), labels={"team": "mail"})
    assert spec.redacted(SecretNames()) is spec
