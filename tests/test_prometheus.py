"""Metrics: what a scrape says of a known history is exact, and each metric is documented, shown and alerted on."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_in
from prometheus_client.parser import text_string_to_metric_families as families_in

from fastlane_grpc.app import Server
from fastlane_grpc.config import Settings
from fastlane_grpc.dispatcher import Dispatcher
from fastlane_grpc.model import Cron, Execution, JobSpec, Retry, Source, State, TaskLimitsChange, utc_now
from fastlane_grpc.prometheus.families import FAMILIES, CounterFamily, GaugeFamily, HistogramFamily
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.fakes import Announcements, FakeGone, FakeHost, FakeRunner
from tests.http_client import ask
from tests.notified import hook
from tests.receivers import OK, HttpReceiver, Post
from tests.tools import tool

ROOT = Path(__file__).parents[1]
SPEC = JobSpec("busybox")


class ScrapedServer(Server):
    """A server with two hosts without engines, `here` with two slots and `there` with one. What runs there, the test
    ends. Its clock is moved by the test."""

    def __init__(self, directory: Path) -> None:
        settings = Settings(data_dir=directory, listen="127.0.0.1:0", http_listen="127.0.0.1:0", max_running=3)
        self.ahead = timedelta()
        super().__init__(settings, now=lambda: utc_now() + self.ahead)
        self.announced = Announcements()

    def open_hosts(self, parts: AsyncExitStack) -> None:
        """Make fake hosts, of which only the first one is up."""
        self.fake_hosts = {"here": FakeHost("here"), "there": FakeHost("there", up=False)}

    def open_dispatcher(self, parts: AsyncExitStack) -> None:
        """Run a dispatcher over fake hosts."""
        self.runners = {name: FakeRunner(self.store, host, hold=True) for name, host in self.fake_hosts.items()}
        slots = {"here": 2, "there": 1}
        self.dispatcher = Dispatcher(
            self.store,
            [HostSlots(host, self.runners[name], slots[name]) for name, host in self.fake_hosts.items()],
            removed=FakeGone(self.store),
            max_running=self.settings.max_running,
            supervisor=self.supervisor,
            now=self.now,
        )
        self.listeners += [self.dispatcher.on_change, self.announced]
        self.run(parts, "dispatcher", self.dispatcher.run, restart=False)
        parts.push_async_callback(self.dispatcher.close)

    def open_sweepers(self, parts: AsyncExitStack) -> None:
        """There is nothing to sweep."""

    async def enqueue(self, task_id: str = "mail", **spec: Any) -> Execution:
        job, _ = await self.store.enqueue(
            task_id=task_id, spec=JobSpec("busybox", **spec), request_id="", caller_address=""
        )
        return job.execution

    async def running(self, execution: Execution) -> Execution:
        """Wait until the execution runs."""
        return await self.announced.reaches(execution.id, State.RUNNING)

    async def end(self, execution: Execution, exit_code: int = 0) -> None:
        """End it, and wait until its slot is free."""
        self.runners["here"].end(execution.id, exit_code)
        await self.announced.until(
            lambda: any(each.id == execution.id and each.state.final for each in self.announced.all)
        )

    async def next_of(self, job_id: str, former: Execution) -> Execution:
        """Wait for the execution of the job that runs after this one."""
        found: list[Execution] = []

        def runs() -> bool:
            found[:] = [
                each
                for each in self.announced.all
                if each.job_id == job_id and each.id != former.id and each.state is State.RUNNING
            ]
            return bool(found)

        await self.announced.until(runs)
        return found[0]

    async def pass_time(self, time: timedelta) -> None:
        """Move the clock, and have the dispatcher look at it."""
        self.ahead += time
        self.dispatcher.host_changed("here")

    async def scrape(self) -> "Scrape":
        answer = await ask(self.http_port, "GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scrape(answer.body.decode())


class Scrape:
    """All samples of a scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in families_in(text)}
        self.samples = {
            (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __getitem__(self, key: "str | tuple[str, ...]") -> float:
        """The value of a sample, by its name without `fastlane_` and by its labels."""
        name, *labels = (key,) if isinstance(key, str) else key
        return self.samples[f"fastlane_{name}", *labels]

    def nonzero(self, name: str) -> Mapping[str, float]:
        """The values of a metric that are not 0, by their labels."""
        return {
            " ".join(labels): value
            for (sample, *labels), value in self.samples.items()
            if sample == f"fastlane_{name}" and value
        }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScrapedServer]:
    async with ScrapedServer(tmp_path) as server:
        yield server


async def test_a_scrape_of_a_known_history_is_exact(server: ScrapedServer) -> None:
    first, second = await server.enqueue(), await server.enqueue()
    await server.running(first)
    await server.running(second)
    for _ in range(3):
        await server.enqueue()
    await server.store.update_task("paused", TaskLimitsChange(paused=True))
    for _ in range(2):
        await server.enqueue("paused")
    await server.enqueue("later", start_in=timedelta(hours=1))
    await server.store.drain_host("there", "broken", lambda: None)
    scrape = await server.scrape()
    assert scrape["jobs_enqueued_total"] == 8
    assert scrape.nonzero("executions") == {"state=scheduled": 1, "state=queued": 5, "state=running": 2}
    assert scrape.nonzero("executions_waiting") == {
        "reason=no_free_slot": 3,
        "reason=task_paused": 2,
        "reason=not_due": 1,
    }
    assert (scrape["executions_claimed_total"], scrape["executions_requeued_total"]) == (2, 0)
    assert (scrape["slots"], scrape["slots_used"]) == (3, 2)
    hosts = ("host_up", "host_slots", "host_slots_used", "host_drained", "host_circuit_open")
    assert [scrape[name, "host=here"] for name in hosts] == [1, 2, 2, 0, 0]
    assert [scrape[name, "host=there"] for name in hosts] == [0, 1, 0, 1, 0]
    await server.end(first, 3)
    await server.announced.until(lambda: server.store.execution_counts.claims == 3)
    await server.store.stop_execution(second.id, grace=timedelta(0), note="")
    await server.announced.until(lambda: server.store.execution_counts.claims == 4)
    scrape = await server.scrape()
    assert scrape.nonzero("executions_ended_total") == {
        "reason=exit_code state=failed": 1,
        "reason=unspecified state=stopped": 1,
    }
    assert scrape["execution_phase_seconds_count", "phase=queued"] == 4
    assert scrape["execution_phase_seconds_count", "phase=running"] == 2
    assert scrape["executions", "state=queued"] == 3
    assert scrape["store_writable"] == 1
    assert scrape["store_commit_seconds_count"] == scrape["store_commit_units_count"] > 10


async def test_retries_and_ticks_are_counted_as_what_they_are(server: ScrapedServer) -> None:
    failing = await server.enqueue("failing", retry=Retry(max_retries=1, initial_backoff=timedelta(hours=1)))
    await server.running(failing)
    await server.end(failing, 1)
    assert (await server.scrape()).nonzero("executions_waiting") == {"reason=backoff": 1}
    await server.pass_time(timedelta(hours=2))
    await server.end(await server.next_of(failing.job_id, failing))
    nightly = await server.enqueue("nightly", cron=Cron("0 0 * * *"))
    await server.pass_time(timedelta(days=1))
    run = await server.running(nightly)
    # Two ticks come while it runs: both are skipped.
    for _ in range(2):
        server.ahead += timedelta(days=1)
        await server.store.promote(10)
    scrape = await server.scrape()
    assert scrape.nonzero("executions_started_total") == {"cause=enqueue": 1, "cause=retry": 1, "cause=tick": 1}
    assert scrape["schedule_ticks_skipped_total"] == 2
    await server.end(run)


async def test_notifications_are_counted_by_what_becomes_of_them(server: ScrapedServer) -> None:
    answers = {"ok": OK, "busy": b"HTTP/1.1 503 Busy\r\n\r\n", "gone": b"HTTP/1.1 410 Gone\r\n\r\n"}

    async def answer(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[post.path.rpartition("/")[2]])

    async with HttpReceiver(answer) as receiver:
        notifications = [hook(f"{receiver.url}/{name}") for name in answers]
        execution = await server.enqueue(notifications=notifications)
        await server.running(execution)
        assert (await server.scrape()).nonzero("notification_attempts_total") == {}
        await server.end(execution)
        # An attempt is counted when its result is stored.
        while len(counted := (scrape := await server.scrape()).nonzero("notification_attempts_total")) < 3:
            pass
        # What is stored is read a moment later.
        while scrape.nonzero("notifications") != {"state=pending": 1, "state=failed": 1}:
            scrape = await server.scrape()
    assert counted == {f"outcome={outcome} receiver=webhook": 1 for outcome in ("delivered", "repeated", "given_up")}
    assert scrape.nonzero("notifications") == {"state=pending": 1, "state=failed": 1}
    assert scrape["notification_attempts_total", "outcome=delivered", "receiver=mail"] == 0


async def test_calls_are_counted_by_method_and_code(server: ScrapedServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        jobs, executions = pb_grpc.JobServiceStub(channel), pb_grpc.ExecutionServiceStub(channel)
        request = pb.EnqueueJobRequest(task_id="mail", spec=pb.JobSpec(image="busybox"))
        job = (await jobs.EnqueueJob(request)).job
        for refused in (jobs.EnqueueJob(pb.EnqueueJobRequest()), jobs.GetJob(pb.GetJobRequest(job_id="none"))):
            with pytest.raises(grpc.aio.AioRpcError):
                await refused
        stream = executions.StreamExecutionLogs(pb.StreamExecutionLogsRequest(execution_id=job.execution.id))
        watch = jobs.WatchJobs(pb.WatchJobsRequest())
        await stream.read()
        await watch.read()
        scrape = await server.scrape()
        assert scrape.nonzero("streams_open") == {"door=grpc stream=execution_log": 1, "door=grpc stream=watch": 1}
        assert scrape["logs_open"] == 1
        stream.cancel()
        await server.running(job.execution)
        await server.end(job.execution)
        while "code=CANCELLED method=StreamExecutionLogs" not in scrape.nonzero("grpc_calls_total"):
            scrape = await server.scrape()
        watch.cancel()
    assert scrape.nonzero("grpc_calls_total") == {
        "code=OK method=EnqueueJob": 1,
        "code=INVALID_ARGUMENT method=EnqueueJob": 1,
        "code=NOT_FOUND method=GetJob": 1,
        "code=CANCELLED method=StreamExecutionLogs": 1,
    }
    assert scrape.nonzero("streams_open") == {"door=grpc stream=watch": 1}
    assert scrape["grpc_call_seconds_count", "method=EnqueueJob"] == 2


async def test_requests_are_counted_by_path_and_no_client_makes_a_label(server: ScrapedServer) -> None:
    bad = {"/nowhere/1": "GET", "/nowhere/2": "PROPFIND", "/jobs/none": "GET", "/jobs/other": "DELETE"}
    for path, verb in bad.items():
        assert (await ask(server.http_port, verb, path)).status >= 400
    assert (await ask(server.http_port, "POST", "/tasks/mail", {"image": "busybox"})).status == 201
    assert (await ask(server.http_port, "GET", "/jobs", host="evil.example")).status == 421
    scrape = await server.scrape()
    assert scrape.nonzero("http_requests_total") == {
        "path=/jobs/{job_id} status=404 verb=GET": 1,
        "path=other status=404 verb=GET": 1,
        "path=other status=404 verb=other": 1,
        "path=/jobs/{job_id} status=405 verb=DELETE": 1,
        "path=/tasks/{task_id} status=201 verb=POST": 1,
        "path=other status=421 verb=GET": 1,
    }
    assert (await server.scrape())["http_requests_total", "path=/metrics", "status=200", "verb=GET"] == 1


async def test_bytes_of_logs_are_counted_as_they_are_sent(server: ScrapedServer) -> None:
    execution = await server.enqueue()
    await server.running(execution)
    server.logs.path(execution.id).mkdir(parents=True, exist_ok=True)
    writer = RecordWriter.create(server.logs.output_path(execution.id), execution_id=execution.id, capture="test")
    writer.write([(Source.STDOUT, b"x" * 100_000)], 1)
    writer.seal(0, {}, 2)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.ExecutionServiceStub(channel)
        request = pb.StreamExecutionLogsRequest(execution_id=execution.id, follow=False)
        sent = sum([each.ByteSize() async for each in stub.StreamExecutionLogs(request) if each.chunks])
    assert (await server.scrape())["log_sent_bytes_total", "encoding=protobuf"] == sent > 100_000


async def test_a_scrape_in_the_format_of_openmetrics_says_the_same(server: ScrapedServer) -> None:
    await server.enqueue()
    answer = await ask(server.http_port, "GET", "/metrics", accept="application/openmetrics-text;version=1.0.0;q=0.9")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in open_metrics_in(answer.body.decode())}
    assert families["fastlane_jobs_enqueued"].samples[0].value == 1
    assert {family.name.removesuffix("_total") for family in FAMILIES} <= set(families)


async def test_the_openapi_document_has_the_formats_of_a_scrape(server: ScrapedServer) -> None:
    answer = await ask(server.http_port, "GET", "/openapi.json")
    formats = json.loads(answer.body)["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    for format in formats:
        answer = await ask(server.http_port, "GET", "/metrics", accept=format)
        assert answer.headers["content-type"].startswith(f"{format};")


async def test_scrapes_at_the_same_time_are_made_once(server: ScrapedServer) -> None:
    taken = server.store.census
    censuses = 0

    def census() -> Any:
        nonlocal censuses
        censuses += 1
        return taken()

    server.store.census = census  # type: ignore[method-assign]
    texts = await asyncio.gather(*(server.scrape() for _ in range(50)))
    assert len(texts) == 50
    assert censuses < 25


async def test_a_scrape_that_the_store_cannot_answer_says_why(server: ScrapedServer) -> None:
    server.store._readers.close()
    answer = await ask(server.http_port, "GET", "/metrics")
    assert (answer.status, answer.reason) == (503, "SERVER_STOPPING")


# ------------------------------------------------------------------------------------- documentation, dashboard, alerts


def documented() -> Mapping[str, tuple[str, str]]:
    """The metrics of docs/metrics.md: of each its type and its labels."""
    rows = re.findall(
        r"^\| `(fastlane_[a-z_]+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    return {name: (kind, labels.strip()) for name, kind, labels in rows}


def test_the_page_of_metrics_has_each_metric_with_its_labels() -> None:
    kinds = {GaugeFamily: "gauge", CounterFamily: "counter", HistogramFamily: "histogram"}
    assert documented() == {
        family.name: (kinds[type(family)], ", ".join(f"`{label}`" for label in family.labels)) for family in FAMILIES
    }


def test_metrics_are_named_as_is_the_convention() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"fastlane(_[a-z]+)+", family.name)
        assert family.name.endswith("_total") == isinstance(family, CounterFamily), family.name
        assert family.help.endswith("."), family.name
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# What a query may name beside metrics and labels.
_WORDS = frozenset(
    (
        *("sum", "rate", "increase", "changes", "histogram_quantile", "predict_linear", "label_values"),
        *("by", "on", "ignoring", "and", "or", "unless"),
        *("le", "job", "instance"),
    )
)


def queries() -> Mapping[str, str]:
    """Each query of the dashboard and of the alerts, by its title."""
    dashboard = json.loads((ROOT / "docs" / "deploy" / "grafana.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = variable["query"]
    return found | {alert["alert"]: alert["expr"] for alert in alerts()}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "docs" / "deploy" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def names_in(query: str) -> set[str]:
    """The names in a query, without strings, ranges and variables of Grafana."""
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.sub(r'"[^"]*"|\[[^]]*\]|\$\w+|\d+[smhdw]?', " ", query)))


@pytest.mark.parametrize("title", sorted(queries()))
async def test_a_query_asks_for_metrics_and_labels_that_there_are(title: str) -> None:
    samples = {"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
    samples |= {"process_open_fds", "process_max_fds"}
    labels: dict[str, set[str]] = {name: set() for name in samples}
    for family in FAMILIES:
        suffixes = ("_bucket", "_count", "_sum") if isinstance(family, HistogramFamily) else ("",)
        for suffix in suffixes:
            labels[family.name + suffix] = {*family.labels, *(["le"] if suffix == "_bucket" else [])}
    names = names_in(queries()[title]) - _WORDS
    asked = names & set(labels)
    assert asked, "asks for no metric of ours"
    left = names - asked
    assert left <= set().union(*(labels[name] for name in asked)), left


def test_prometheus_understands_each_query(tmp_path: Path) -> None:
    """Its own tool parses them: the alerts as they are, and the queries of the dashboard as rules."""
    promtool = tool("promtool")
    variables = {"$__rate_interval": "5m", "$instance": "127.0.0.1:10000"}
    rules = []
    for query in queries().values():
        if not query.startswith("label_values("):
            expression = re.sub(r"\$\w+", lambda name: variables[name[0]], query)
            rules.append({"record": f"query_{len(rules)}", "expr": expression})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    for each in (file, ROOT / "docs" / "deploy" / "alerts.yaml"):
        checked = subprocess.run([promtool, "check", "rules", each], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_prometheus_finds_no_fault_with_a_scrape(server: ScrapedServer) -> None:
    await server.enqueue()
    text = (await server.scrape()).text
    promtool = tool("promtool")
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len(alerts()) >= 8
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert["alert"]
        assert alert["annotations"]["summary"], alert["alert"]
        assert len(alert["annotations"]["description"].split()) > 8, alert["alert"]
        assert "for" in alert, alert["alert"]


def test_the_dashboard_has_a_title_a_unit_and_a_place_for_each_panel() -> None:
    dashboard = json.loads((ROOT / "docs" / "deploy" / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) >= 12
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places, f"{panel['title']} lies over another one"
        places |= cells
