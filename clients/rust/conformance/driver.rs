//! The conformance driver of the Rust client: see clients/conformance.md.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;
use std::{env, error, fs, process};

use fastlane_client::v1::{EnqueueJobRequest, Job, JobSpec, Source, StreamExecutionLogsRequest, StreamJobLogsRequest};
use fastlane_client::{Client, Error, Event, Options, StreamExt, Tail};
use serde_json::{Value, json};

const FAILED: i32 = 70;
const SOURCES: [i32; 2] = [Source::Stdout as i32, Source::Stderr as i32];

/// What a driver tells beside the bytes and the exit status.
#[derive(Default)]
struct Report {
    job: Value,
    exit_status: Option<i32>,
    cursor: String,
    gaps: Vec<Value>,
    states: Vec<i32>,
    executions: Vec<String>,
    disconnects: u32,
}

struct Words {
    options: HashMap<String, String>,
    args: Vec<String>,
}

impl Words {
    fn text(&self, name: &str) -> String {
        self.options.get(name).cloned().unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.options.get(name)?.parse().ok()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let mut words = Words { options: HashMap::new(), args: Vec::new() };
    for word in env::args().skip(2) {
        let (name, value) = word.split_once('=').ok_or("each word is name=value")?;
        if name == "arg" {
            words.args.push(value.into());
        }
        words.options.insert(name.into(), value.into());
    }
    let mut report = Report::default();
    let operation = env::args().nth(1).unwrap_or_default();
    let (status, failure) = match run(&operation, &words, &mut report).await {
        Ok(status) => (status, Value::Null),
        Err(failure) => (FAILED, told(&failure)),
    };
    let Report { job, exit_status, cursor, gaps, states, executions, disconnects } = report;
    let text = json!({
        "job": job,
        "exit_status": exit_status,
        "cursor": cursor,
        "gaps": gaps,
        "states": states,
        "executions": executions,
        "disconnects": disconnects,
        "error": failure,
    });
    fs::write(words.text("report"), text.to_string())?;
    process::exit(status);
}

async fn run(operation: &str, words: &Words, report: &mut Report) -> Result<i32, Error> {
    let timeout = words.number("timeout_seconds").map(Duration::from_secs_f64);
    let file = |name: &str| words.options.get(name).map(Into::into);
    let options = Options {
        tls_ca: file("tls_ca"),
        tls_cert: file("tls_cert"),
        tls_key: file("tls_key"),
        token: words.text("token"),
        token_file: file("token_file"),
        timeout,
    };
    let client = Client::new(&words.text("address"), options)?;
    let job = match operation {
        "enqueue" => {
            let spec = JobSpec { image: words.text("image"), args: words.args.clone(), ..Default::default() };
            let request = EnqueueJobRequest {
                task_id: words.text("task"),
                request_id: words.text("request_id"),
                spec: Some(spec),
                ..Default::default()
            };
            client.enqueue(request).await?
        }
        "get" => client.get(&words.text("job")).await?,
        "stop" => client.stop(&words.text("job"), &words.text("note")).await?,
        _ => return follow(tail(&client, words), words, report).await,
    };
    let Job { id, execution, state, .. } = job;
    report.job = json!({"id": id, "execution_id": execution.unwrap_or_default().id, "state": state});
    Ok(0)
}

fn tail(client: &Client, words: &Words) -> Tail {
    let nanos = words.number("heartbeat_seconds").map(|seconds| (seconds * 1e9) as i64);
    let heartbeat_interval = nanos
        .map(|nanos| prost_types::Duration { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as i32 });
    let (cursor, sources, text) = (words.text("cursor"), SOURCES.to_vec(), words.text("text") == "true");
    if words.options.contains_key("job") {
        let job_id = words.text("job");
        client.tail_job(StreamJobLogsRequest {
            job_id,
            cursor,
            sources,
            text,
            heartbeat_interval,
            ..Default::default()
        })
    } else {
        let execution_id = words.text("execution");
        client.tail(StreamExecutionLogsRequest {
            execution_id,
            cursor,
            sources,
            text,
            heartbeat_interval,
            ..Default::default()
        })
    }
}

async fn follow(mut tail: Tail, words: &Words, report: &mut Report) -> Result<i32, Error> {
    let enough = words.number("stop_after_bytes").map(|bytes| bytes as usize);
    let mut written = 0;
    while let Some(message) = tail.next().await {
        let message = message?;
        for chunk in message.chunks {
            let data = if words.text("text") == "true" { chunk.text.into_bytes() } else { chunk.data };
            write(chunk.source, &data).expect("the output can be written");
            written += data.len();
        }
        if let Some(event) = message.event {
            note(event, report);
        }
        report.cursor = message.cursor;
        if enough.is_some_and(|enough| written >= enough) {
            return Ok(0);
        }
    }
    Ok(report.exit_status.unwrap_or(FAILED))
}

fn write(source: i32, data: &[u8]) -> io::Result<()> {
    if source == Source::Stderr as i32 {
        return io::stderr().write_all(data);
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    stdout.flush()
}

fn note(event: Event, report: &mut Report) {
    match event {
        Event::Gap(gap) => report.gaps.push(json!({
            "source": gap.source, "offset": gap.offset, "missing_bytes": gap.missing_bytes, "cause": gap.cause,
        })),
        Event::State(state) if report.states.last() != Some(&state.state) => report.states.push(state.state),
        Event::Execution(start) => report.executions.push(start.execution.unwrap_or_default().id),
        Event::Interruption(_) => report.disconnects += 1,
        // Of a job, the last one counts.
        Event::End(end) => report.exit_status = Some(end.exit_status),
        Event::JobEnd(end) => report.exit_status = Some(end.exit_status),
        _ => {}
    }
}

fn told(failure: &Error) -> Value {
    let violations: Vec<_> = failure.violations.iter().map(|each| [&each.field, &each.description]).collect();
    json!({
        "code": failure.code as i32,
        "reason": failure.reason,
        "message": failure.message,
        "violations": violations,
        "metadata": failure.metadata,
    })
}
