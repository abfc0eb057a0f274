"""Settings from files, variables and flags: which one counts, what is refused and how, and how they are printed."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc import config
from fastlane_grpc.config import (
    ConfigError,
    HostSettings,
    KubernetesHostSettings,
    PoolSettings,
    RegistrySettings,
    SecretSettings,
)
from fastlane_grpc.model import CaptureMode, PodCaptureMode
from fastlane_grpc.text.redaction import DEFAULT_ENTRIES
from tests.settings_tables import markdown

ROOT = Path(__file__).parent.parent

TWO_HOSTS = """
listen = "127.0.0.1:0"

[[hosts]]
name = "b"
engine = "unix:///run/b.sock"
max_running = 3
capture = "recorder"
engine_data_dir = "/srv/data"

[[hosts]]
name = "a-1"
engine = "tcp://a:2375"
max_running = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fastlane.toml"


def refusal(file: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.load(flags, environ or {}, file)
    return str(refused.value)


# ---- hosts


def test_hosts_are_those_of_the_file_in_their_order(file: Path) -> None:
    file.write_text(TWO_HOSTS)
    loaded = config.load({}, {}, file)
    assert loaded.hosts == [
        HostSettings("b", "unix:///run/b.sock", 3, CaptureMode.RECORDER, Path("/srv/data")),
        HostSettings("a-1", "tcp://a:2375", 5, CaptureMode.AUTO, None),
    ]
    assert loaded.max_running == 8


@pytest.mark.parametrize("text", ["host", "none", "default", "/srv", "a:b", "../a", "a b", "container:x", "-a"])
def test_no_network_or_volume_of_the_host_can_be_allowed(file: Path, text: str) -> None:
    for name in ("allow_networks", "allow_volumes"):
        assert f"has {text!r}, which jobs cannot be given" in refusal(file, f'{name} = "{text}"')


def test_allow_lists_are_of_the_only_host_or_of_each(file: Path) -> None:
    assert config.load({"allow_networks": "a, b"}, {}, None).hosts[0].allow_networks == ("a", "b")
    for paths in ("/etc", "/dev", "/dev/../etc", "fuse"):
        with pytest.raises(ConfigError, match="is not a path below /dev"):
            config.load({"allow_devices": paths}, {}, None)
    file.write_text(TWO_HOSTS + "allow_gpus = true\n")
    assert [host.allow_gpus for host in config.load({}, {}, file).hosts] == [False, True]
    file.write_text(TWO_HOSTS + 'allow_volumes = "cache"\n')
    assert [host.allow_volumes for host in config.load({}, {}, file).hosts] == [(), ("cache",)]
    assert "set it in each host" in refusal(file, 'allow_volumes = "cache"\n' + TWO_HOSTS)


def test_max_running_beside_hosts_is_the_limit_over_all_of_them(file: Path) -> None:
    file.write_text(TWO_HOSTS)
    assert config.load({"max_running": "4"}, {}, file).max_running == 4


def test_without_hosts_there_is_one_that_the_other_settings_make() -> None:
    environ = {"FASTLANE_CAPTURE": "attach", "FASTLANE_MAX_RUNNING": "7"}
    loaded = config.load({"engine": "unix:///x.sock", "engine_data_dir": "/seen"}, environ, None)
    assert list(loaded.hosts) == [HostSettings("local", "unix:///x.sock", 7, CaptureMode.ATTACH, Path("/seen"))]


@pytest.mark.parametrize(
    ("environ", "flags", "said"),
    [
        ({}, {"engine": "unix:///x.sock"}, "engine (flag --engine) cannot be combined with [[hosts]]"),
        (
            {"FASTLANE_CAPTURE": "attach"},
            {},
            "capture (environment variable FASTLANE_CAPTURE) cannot be combined with [[hosts]]",
        ),
        ({}, {"engine_data_dir": "/x"}, "engine_data_dir (flag --engine-data-dir) cannot be combined with [[hosts]]"),
    ],
)
def test_hosts_and_what_makes_the_one_host_exclude_each_other(
    file: Path, environ: dict[str, str], flags: dict[str, object], said: str
) -> None:
    assert said in refusal(file, TWO_HOSTS, environ, **flags)


HOST = '[[hosts]]\nname = "a"\nengine = "unix:///a"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HOST + HOST.replace("///a", "///b"), "two [[hosts]] in {file} have the name 'a'"),
        (HOST + HOST.replace('"a"', '"b"'), "[[hosts]] 'a' and 'b' in {file} have the same engine, unix:///a"),
        (HOST.replace('"a"', '"A"'), "name in [[hosts]] 1 of file {file} is 'A': must be 1 to 63 of a-z, 0-9 and -"),
        (HOST.replace('"a"', f'"{"a" * 64}"'), "must be 1 to 63 of a-z, 0-9 and -"),
        (HOST.replace('"a"', '"a\\n"'), "must be 1 to 63 of a-z, 0-9 and -"),
        ('[[hosts]]\nname = "a"\n', "[[hosts]] 1 of file {file} has no engine, which is required"),
        (HOST + "[[hosts]]\n", "[[hosts]] 2 of file {file} has no name, which is required"),
        (
            HOST + "capture = 'maybe'\n",
            "capture in [[hosts]] 1 of file {file} is 'maybe': must be auto, recorder or attach",
        ),
        (
            HOST + "max_running = 0\n",
            "max_running in [[hosts]] 1 of file {file} is '0': must be a whole number from 1 on",
        ),
        (
            HOST + "max_runing = 2\n",
            "unknown setting in [[hosts]] 1 of file {file}: 'max_runing'; did you mean 'max_running'?",
        ),
        (HOST + "listen = 'x'\n", "unknown setting in [[hosts]] 1 of file {file}: 'listen'; known names: name, engine"),
        ("hosts = []", "hosts in {file} must be tables, each under a line [[hosts]]"),
        ("hosts = ['a']", "hosts in {file} must be tables"),
        ("[hosts]\na = 'unix:///a'", "hosts in {file} must be tables"),
        ("[[host]]\nname = 'a'", "unknown setting in {file}: 'host'; did you mean 'hosts'?"),
    ],
)
def test_what_is_wrong_with_hosts_is_said(file: Path, text: str, said: str) -> None:
    assert said.format(file=file) in refusal(file, text)


# ---- hosts that are clusters

CLUSTER = """
[[hosts]]
name = "pods"
kind = "kubernetes"
namespace = "jobs"
kit_image = "registry.example.org:5000/fastlane-kit:1"
relay_address = "10.0.0.5:7021"
"""
WITHOUT_KIT = '[[hosts]]\nname = "pods"\nkind = "kubernetes"\nnamespace = "jobs"\n'


def test_a_cluster_is_a_host_beside_engines(file: Path) -> None:
    file.write_text(
        TWO_HOSTS
        + CLUSTER
        + 'kubeconfig = "/k"\ncontext = "c@d"\nmax_running = 7\nnode_selector = "disk=ssd, example.org/gpu="\n'
        + 'tolerations = "gpu=true:NoSchedule,spot,a/b:NoExecute,*"\nimage_pull_secrets = "a,b.c"\n'
    )
    loaded = config.load({}, {}, file)
    [cluster] = loaded.kubernetes_hosts
    assert (cluster.name, cluster.namespace, cluster.kubeconfig, cluster.context) == ("pods", "jobs", Path("/k"), "c@d")
    assert loaded.max_running == 3 + 5 + 7
    assert cluster.node_labels == {"disk": "ssd", "example.org/gpu": ""}
    assert cluster.tolerated_taints == [
        {"key": "gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
        {"key": "a/b", "operator": "Exists", "effect": "NoExecute"},
        {"operator": "Exists"},
    ]
    assert cluster.image_pull_secrets == ("a", "b.c")


def test_a_host_without_relays_needs_neither_a_kit_nor_an_address(file: Path) -> None:
    file.write_text(WITHOUT_KIT + 'capture = "kubelet"\n')
    loaded = config.load({}, {}, file)
    [cluster] = loaded.kubernetes_hosts
    assert (cluster.capture, cluster.kit_image, loaded.relayed_hosts) == (PodCaptureMode.KUBELET, "", [])


def test_two_hosts_may_be_one_namespace(file: Path) -> None:
    file.write_text(CLUSTER + CLUSTER.replace('"pods"', '"gpus"') + 'node_selector = "gpu=true"\n')
    assert [host.name for host in config.load({}, {}, file).kubernetes_hosts] == ["pods", "gpus"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CLUSTER + 'engine = "unix:///a"', "engine in [[hosts]] 1 of file {file} is a setting of hosts of kind docker"),
        (CLUSTER + 'capture = "attach"', "is 'attach': must be relay or kubelet for a host of kind kubernetes"),
        (WITHOUT_KIT, 'has no kit_image, which is required: set it, or capture = "kubelet"'),
        (HOST + 'namespace = "a"', "namespace in [[hosts]] 1 of file {file} is a setting of hosts of kind kubernetes"),
        (HOST + 'kind = "nomad"', "kind in [[hosts]] 1 of file {file} is 'nomad': must be docker or kubernetes"),
        (CLUSTER.replace('namespace = "jobs"', ""), "[[hosts]] 1 of file {file} has no namespace, which is required"),
        (CLUSTER.replace("kit_image", "kit_imag"), "'kit_imag'; did you mean 'kit_image'?"),
        (CLUSTER.replace('"jobs"', '"Jobs"'), "is 'Jobs': must be the name of a namespace"),
        *(
            (
                CLUSTER.replace(":7021", port),
                f"relay_address in [[hosts]] 1 of file {{file}} is '10.0.0.5{port}': must be",
            )
            for port in ("", ":0")
        ),
        (CLUSTER + 'context = "c"', "has a context and no kubeconfig"),
        (CLUSTER + 'node_selector = "disk"', "has 'disk', which is not a label of a node"),
        (CLUSTER + 'node_selector = "a=b,a=c"', "has the label a twice"),
        (CLUSTER + 'tolerations = "gpu:Sometimes"', "has 'gpu:Sometimes', which is not a taint"),
        (CLUSTER + 'service_account = "a b"', "is 'a b': must be the name of an object of Kubernetes"),
        (CLUSTER.replace("registry.", "-"), "must be the name of an image"),
        ('relay_ca = "/ca"\n' + CLUSTER, "relay_ca is set, and tls_cert is not"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said(file: Path, text: str, said: str) -> None:
    assert said.format(file=file) in refusal(file, text)


# ---- pools

POOL = '[[pools]]\nname = "mail"\npattern = "mail-*,sms"\nhosts = "a"\n'


def test_pools_are_those_of_the_file_in_their_order(file: Path) -> None:
    file.write_text(TWO_HOSTS + POOL.replace('"a"', '"a-1"') + POOL.replace("mail", "rest").replace('"a"', '"b,a-1"'))
    loaded = config.load({}, {}, file)
    assert loaded.pools == [
        PoolSettings("mail", "mail-*,sms", ("a-1",)),
        PoolSettings("rest", "rest-*,sms", ("b", "a-1")),
    ]
    pools = loaded.pools_of_hosts
    assert [pools.of_task(task) for task in ("mail-x", "mail", "sms", "rest-", "SMS")] == [
        *("mail", "", "mail", "rest", "")
    ]
    assert (pools.of_host("a-1"), pools.of_host("b")) == (("mail", "rest"), ("rest",))
    lines = config.toml(config.in_force({}, {}, file)).splitlines()
    assert lines[-4:] == [
        "[[pools]]",
        f'name = "rest"  # file {file}',
        f'pattern = "rest-*,sms"  # file {file}',
        f'hosts = "b,a-1"  # file {file}',
    ]
    told = json.loads(config.as_json(config.in_force({}, {}, file)))
    assert told["pools"][1] == {"name": "rest", "pattern": "rest-*,sms", "hosts": "b,a-1"}


def test_the_one_host_of_the_other_settings_may_be_in_a_pool(file: Path) -> None:
    file.write_text(POOL.replace('"a"', '"local"'))
    assert config.load({}, {}, file).pools_of_hosts.of_host("local") == ("mail",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HOST + POOL + POOL, "two [[pools]] in {file} have the name 'mail': give each pool its own name"),
        (HOST + POOL.replace('"a"', '"b"'), "unknown host in [[pools]] 1 of file {file}: 'b'; known names: a"),
        (POOL, "unknown host in [[pools]] 1 of file {file}: 'a'; known names: local"),
        (HOST + POOL.replace('"a"', '"a,a"'), "hosts in [[pools]] 1 of file {file} names a host twice: a,a"),
        (HOST + POOL.replace('"a"', '["a"]'), "hosts in [[pools]] 1 of file {file} is a list; it must be a quoted"),
        (HOST + POOL.replace("mail-*", "^mail.*$"), "pattern in [[pools]] 1 of file {file} is '^mail.*$,sms': must be"),
        (HOST + POOL.replace("mail-*,sms", ""), "pattern in [[pools]] 1 of file {file} is '': must be names of tasks"),
        (HOST + POOL.replace('name = "mail"\n', ""), "[[pools]] 1 of file {file} has no name, which is required"),
        (HOST + POOL.replace("hosts", "host"), "unknown setting in [[pools]] 1 of file {file}: 'host'"),
        (HOST + "[pools]\nname = 'a'", "pools in {file} must be tables, each under a line [[pools]]"),
        (HOST + "[[pool]]\nname = 'a'", "unknown setting in {file}: 'pool'; did you mean 'pools'?"),
    ],
)
def test_what_is_wrong_with_pools_is_said(file: Path, text: str, said: str) -> None:
    # Settings outside of tables come first.
    assert said.format(file=file) in refusal(file, text)


# ---- single values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "max_running = 1.5",
            "max_running in {file} is a number with a point; it must be a quoted text or a whole number",
        ),
        ("max_running = true", "max_running in {file} is true or false"),
        ("max_running = -1", "max_running in {file} is '-1': must be a whole number from 1 on"),
        ("listen = ['127.0.0.1:1']", "listen in {file} is a list"),
        ("[listen]\nhost = 'x'", "listen in {file} is a table"),
        ("listen = 2026-11-25", "listen in {file} is a date or a time"),
        ("default_timeout = 90", "default_timeout in {file} is '90': must be a duration"),
        ("listne = 'x'", "unknown setting in {file}: 'listne'; did you mean 'listen'?"),
        ("listen = ", "cannot read the settings in {file}"),
    ],
)
def test_a_value_of_a_wrong_kind_is_said_to_be_one(file: Path, text: str, said: str) -> None:
    assert said.format(file=file) in refusal(file, text)


def test_a_misspelled_variable_is_told_with_the_nearest_setting() -> None:
    environ = {"FASTLANE_MAX_STREAM": "5", "FASTLANE_LISTNE": "x", "FASTLANE_MAX_RUNNING": "3"}
    found = config.in_force({}, environ, None)
    assert found.settings.max_running == 3
    assert found.warnings == [
        "environment variable FASTLANE_MAX_STREAM is not a setting; did you mean FASTLANE_MAX_STREAMS?",
        "environment variable FASTLANE_LISTNE is not a setting; did you mean FASTLANE_LISTEN?",
    ]


def test_variables_of_other_programs_of_the_same_name_are_ignored() -> None:
    names = ["USER", "PASSWORD", "SESSION", "SKIP_UPDATE_CHECK", "HIDE_TIMESTAMP", "TEAM_ID", "XCODE_LIST_TIMEOUT"]
    environ = {f"FASTLANE_{name}": "x" for name in [*names, "ARRAY_INDEX", "ADDRESS", "CONFIG"]}
    assert config.in_force({}, environ, None) == config.in_force({}, {}, None)


# ---- what is in force


def test_each_setting_is_printed_with_where_it_came_from(file: Path) -> None:
    file.write_text('max_streams = 10\ncache_bytes = "1m"\ndefault_timeout = "60s"')
    environ = {"FASTLANE_CACHE_BYTES": "2048k", "FASTLANE_DEFAULT_PIDS": "9"}
    lines = config.toml(config.in_force({"default_pids": "8"}, environ, file)).splitlines()
    assert f"max_streams = 10  # file {file}" in lines
    assert 'cache_bytes = "2m"  # environment variable FASTLANE_CACHE_BYTES' in lines
    assert "default_pids = 8  # flag --default-pids" in lines
    assert f'default_timeout = "1m"  # file {file}' in lines
    assert 'max_timeout = "1d"  # default' in lines
    assert "# engine_data_dir is not set" in lines


def test_hosts_are_printed_with_where_their_settings_came_from(file: Path) -> None:
    file.write_text(TWO_HOSTS)
    lines = config.toml(config.in_force({}, {}, file)).splitlines()
    assert lines[-12:] == [
        "[[hosts]]",
        f'name = "a-1"  # file {file}',
        f'engine = "tcp://a:2375"  # file {file}',
        f"max_running = 5  # file {file}",
        'capture = "auto"  # default',
        "# engine_data_dir is not set",
        "# engine_cert_dir is not set",
        'allow_networks = ""  # default',
        'allow_volumes = ""  # default',
        'allow_devices = ""  # default',
        'allow_gpus = "false"  # default',
        'kind = "docker"  # default',
    ]
    assert not [line for line in lines[: lines.index("[[hosts]]")] if line.startswith(("engine", "capture"))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        TWO_HOSTS,
        CLUSTER,
        CLUSTER + 'node_selector = "a=b"\ntolerations = "*"\nservice_account = "jobs"\n',
        TWO_HOSTS + '[[pools]]\nname = "x"\npattern = "*"\nhosts = "a-1,b"\n',
        'capture = "attach"\nengine_data_dir = "/srv/\\u007f \\" ü"\nmax_timeout = "90s"',
    ],
)
def test_what_is_printed_is_a_file_that_has_the_same_in_force(file: Path, text: str) -> None:
    file.write_text(text)
    in_force = config.in_force({"default_timeout": "61s", "data_dir": "/where ever\t"}, {}, file)
    again = file.with_name("again.toml")
    again.write_text(config.toml(in_force))
    assert config.load({}, {}, again) == in_force.settings


def test_a_path_cannot_end_a_comment(tmp_path: Path) -> None:
    file = tmp_path / "a\nmax_streams = 1 #"
    file.write_text("max_streams = 10")
    assert tomllib.loads(config.toml(config.in_force({}, {}, file)))["max_streams"] == 10


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(lambda text: f"/{text}"))
def test_whatever_a_path_holds_is_printed_so_that_toml_reads_it(path: str) -> None:
    in_force = config.in_force({"engine_data_dir": path}, {}, None)
    assert tomllib.loads(config.toml(in_force))["engine_data_dir"] == str(in_force.settings.engine_data_dir)


def test_as_json_they_are_one_object_with_all_hosts(file: Path) -> None:
    told = json.loads(config.as_json(config.in_force({"max_streams": "3"}, {}, None)))
    assert told["max_streams"] == {"value": 3, "origin": "flag --max-streams"}
    assert told["max_timeout"] == {"value": "1d", "origin": "default"}
    assert [host["name"] for host in told["hosts"]] == ["local"]
    file.write_text(TWO_HOSTS)
    told = json.loads(config.as_json(config.in_force({}, {}, file)))
    assert [(host["name"], host["max_running"], host["engine_data_dir"]) for host in told["hosts"]] == [
        ("b", 3, "/srv/data"),
        ("a-1", 5, None),
    ]


def test_the_command_prints_what_a_server_with_the_same_flags_would_have(file: Path, tmp_path: Path) -> None:
    file.write_text(TWO_HOSTS)

    def ran(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        environ = {"PATH": os.environ["PATH"], "FASTLANE_CONFIG": str(file), "FASTLANE_MAX_STREAMS": "6"}
        return subprocess.run(
            [sys.executable, "-m", "fastlane_grpc.cli", "config", *arguments],
            env=environ,
            capture_output=True,
            check=False,
        )

    told = ran("--data-dir", str(tmp_path))
    expected = config.in_force({"data_dir": str(tmp_path)}, {"FASTLANE_MAX_STREAMS": "6"}, file)
    assert (told.stdout.decode(), told.stderr, told.returncode) == (config.toml(expected), b"", 0)
    assert json.loads(ran("-o", "json").stdout)["max_streams"] == {
        "value": 6,
        "origin": "environment variable FASTLANE_MAX_STREAMS",
    }
    refused = ran("--engine", "unix:///x.sock")
    assert (refused.stdout, refused.returncode) == (b"", 2)
    assert refused.stderr.startswith(b"fastlane: engine (flag --engine) cannot be combined with [[hosts]]")


# ---- documentation


def test_the_tables_of_settings_in_the_documentation_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert markdown(config.SETTINGS) in text
    assert markdown(fields(HostSettings)) in text
    assert markdown(fields(KubernetesHostSettings)) in text
    assert markdown(fields(PoolSettings)) in text
    assert markdown(fields(RegistrySettings)) in text
    assert markdown(fields(SecretSettings)) in text


def test_the_example_in_the_documentation_is_right(file: Path) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for example in text.split("```toml\n")[1:]:
        file.write_text(example.partition("```")[0])
        assert len(config.load({}, {}, file).hosts) > 1


def test_the_documented_list_of_secret_names_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    listed = text.partition("The default list:\n\n```text\n")[2].partition("\n```")[0]
    assert tuple(listed.replace("\n", "").split(",")) == DEFAULT_ENTRIES


# ---- the engine


@pytest.mark.parametrize(
    "address",
    [
        "unix:///var/run/docker.sock",
        "tcp://10.0.0.7:2375",
        "tcp://[::1]:2376",
        "ssh://there",
        "ssh://me@there.example.org:2222",
        "context://far-1",
    ],
)
def test_an_engine_is_named_as_the_docker_command_names_it(address: str) -> None:
    assert config.read_engine(address) == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "must be the address of a Docker engine"),
        ("/var/run/docker.sock", "must be the address of a Docker engine"),
        ("unix://docker.sock", "must be the address of a Docker engine"),
        ("tcp://there", "has no port; must be as tcp://there:2376 with TLS or tcp://there:2375 without"),
        ("tcp://me:secret@there:2376", "must be the address"),
        ("tcp://there:2376/path", "must be the address"),
        ("ssh://me:secret@there", "must be the address"),
        ("ssh://there/var/run/docker.sock", "must be the address"),
        ("ssh://-oProxyCommand=x", "must be the address"),
        ("ssh://-lx@there", "must be the address"),
        ("http://there:2375", "must be the address"),
        ("context://", "must be the address"),
        ("context://../x", "must be the address"),
    ],
)
def test_an_address_that_no_engine_can_have_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.read_engine(address)


def test_the_certificates_of_the_docker_command_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.default_cert_dir({"DOCKER_CERT_PATH": "/certs"}) is None
    assert config.default_cert_dir({"DOCKER_CERT_PATH": "/certs", "DOCKER_TLS_VERIFY": "1"}) == Path("/certs")
    monkeypatch.setenv("HOME", "/me")
    assert config.default_cert_dir({"DOCKER_TLS_VERIFY": "1"}) == Path("/me/.docker")


# ---- secret names


def test_secret_names_come_from_where_all_settings_do(file: Path) -> None:
    file.write_text('secret_names = "default, PIN"')
    in_force = config.in_force({}, {}, file)
    assert in_force.settings.secret_names.hides("MY_PIN")
    assert in_force.settings.secret_names.hides("API_KEY")
    assert f'secret_names = "default,pin"  # file {file}' in config.toml(in_force).splitlines()
    assert not config.load({"secret_names": "pin"}, {"FASTLANE_SECRET_NAMES": "key"}, file).secret_names.hides(
        "API_KEY"
    )
    assert f"secret_names in {file} is 'a b': must be names, separated by commas" in refusal(
        file, "secret_names = 'a b'"
    )


def test_no_password_in_the_address_of_an_engine_is_shown(file: Path) -> None:
    for engine in ("tcp://user:hunter2@host:2375", "http://user:hunter2@host"):
        with pytest.raises(config.ConfigError, match=r"user:\*\*\*@host") as refused:
            config.in_force({"engine": engine}, {}, None)
        assert "hunter2" not in str(refused.value)
        assert "hunter2" not in refusal(file, f'[[hosts]]\nname = "a"\nengine = "{engine}"\n')
