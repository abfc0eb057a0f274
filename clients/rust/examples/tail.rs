//! Runs a command in a container as if it ran here: its output comes live, and the exit status is the job's. With --job
//! it follows a job that is there already.

use std::io::{self, Write};
use std::{env, error, process};

use fastlane_client::v1::{EnqueueJobRequest, JobSpec, Source, StreamJobLogsRequest};
use fastlane_client::{Client, Event, Options, StreamExt};

const USAGE: &str = "usage: tail [--address HOST:PORT] [--task NAME] (--job ID | IMAGE [WORD...])";

#[tokio::main]
async fn main() {
    let status = run().await.unwrap_or_else(|error| {
        eprintln!("tail: {error}");
        1
    });
    process::exit(status);
}

async fn run() -> Result<i32, Box<dyn error::Error>> {
    let mut address = env::var("FASTLANE_ADDRESS").unwrap_or("127.0.0.1:7020".into());
    let (mut task_id, mut job_id, mut words) = (String::from("tail"), String::new(), env::args().skip(1).peekable());
    while let Some(flag) = words.next_if(|word| word.starts_with('-')) {
        let value = words.next().ok_or_else(|| format!("{flag} needs a value\n{USAGE}"))?;
        match &flag[..] {
            "--address" => address = value,
            "--task" => task_id = value,
            "--job" => job_id = value,
            _ => return Err(format!("there is no option {flag}\n{USAGE}").into()),
        }
    }
    if words.peek().is_some() != job_id.is_empty() {
        return Err(format!("give either an image or --job\n{USAGE}").into());
    }
    let client = Client::new(&address, Options::default())?;
    if let Some(image) = words.next() {
        let spec = Some(JobSpec { image, args: words.collect(), ..Default::default() });
        job_id = client.enqueue(EnqueueJobRequest { task_id, spec, ..Default::default() }).await?.id;
        tokio::spawn(stop_at_ctrl_c(client.clone(), job_id.clone()));
    }
    let sources = vec![Source::Stdout.into(), Source::Stderr.into()];
    let mut tail = client.tail_job(StreamJobLogsRequest { job_id, sources, ..Default::default() });
    while let Some(message) = tail.next().await {
        let message = message?;
        for chunk in &message.chunks {
            match chunk.source() {
                Source::Stderr => io::stderr().write_all(&chunk.data)?,
                _ => io::stdout().write_all(&chunk.data).and_then(|()| io::stdout().flush())?,
            }
        }
        match message.event {
            Some(Event::Gap(gap)) => {
                eprintln!("tail: bytes of {:?} are missing here ({:?})", gap.source(), gap.cause())
            }
            Some(Event::JobEnd(end)) => return Ok(end.exit_status),
            _ => {}
        }
    }
    Err("the log ended early".into())
}

/// The first Ctrl-C stops the job, while its output goes on; the second one ends this program alone.
async fn stop_at_ctrl_c(client: Client, job_id: String) {
    if tokio::signal::ctrl_c().await.is_ok() {
        client.stop(&job_id, "Ctrl-C").await.map_or_else(|error| eprintln!("tail: {error}"), |_| ());
        _ = tokio::signal::ctrl_c().await;
        process::exit(130);
    }
}
