//! The conformance driver of the Rust client: see clients/conformance.md.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::time::Duration;

use fastlane_client::v1::{EnqueueJobRequest, Job, JobSpec, Source, StreamExecutionLogsRequest, StreamJobLogsRequest};
use fastlane_client::{Client, Error, Event, Options, StreamExt, Tail};
use serde_json::{Value, json};
use tokio::runtime::Builder;

const FAILED: i32 = 70;
const SOURCES: [i32; 2] = [Source::Stdout as i32, Source::Stderr as i32];

/// What a driver tells beside the bytes and the status.
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
    operation: String,
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

/// Where the output of one call goes.
struct Outputs {
    stdout: File,
    stderr: File,
}

fn main() -> io::Result<()> {
    for line in io::stdin().lines() {
        let mut words: Vec<String> = serde_json::from_str(&line?)?;
        let operation = words.remove(0);
        let (mut options, mut args) = (HashMap::new(), Vec::new());
        for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
            if name == "arg" {
                args.push(value.into());
            }
            options.insert(name.into(), value.into());
        }
        // A runtime ends with its connections.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        println!("{}", runtime.block_on(call(&Words { operation, options, args }))?);
    }
    Ok(())
}

/// Makes the call, writes its report and returns its status.
async fn call(words: &Words) -> io::Result<i32> {
    let open = |name| File::options().write(true).open(words.text(name));
    let mut outputs = Outputs { stdout: open("stdout")?, stderr: open("stderr")? };
    let mut report = Report::default();
    let (status, failure) = match run(words, &mut report, &mut outputs).await {
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
    Ok(status)
}

async fn run(words: &Words, report: &mut Report, outputs: &mut Outputs) -> Result<i32, Error> {
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
    let job = match words.operation.as_str() {
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
        _ => return follow(tail(&client, words), words, report, outputs).await,
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

async fn follow(mut tail: Tail, words: &Words, report: &mut Report, outputs: &mut Outputs) -> Result<i32, Error> {
    let enough = words.number("stop_after_bytes").map(|bytes| bytes as usize);
    let mut written = 0;
    while let Some(message) = tail.next().await {
        let message = message?;
        for chunk in message.chunks {
            let data = if words.text("text") == "true" { chunk.text.into_bytes() } else { chunk.data };
            let output = if chunk.source == Source::Stderr as i32 { &mut outputs.stderr } else { &mut outputs.stdout };
            output.write_all(&data).expect("the output can be written");
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
