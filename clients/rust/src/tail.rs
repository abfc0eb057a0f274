use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use tokio::time::{sleep, timeout};
use tonic::{Code, Streaming};

use crate::check::Check;
use crate::error::Error;
use crate::v1::{JobLogEnd, JobLogExecution, LogChunk, LogEnd, LogGap, LogState, StreamJobLogsResponse};

const SILENCE: Duration = Duration::from_secs(30);

/// A step of a tail: output or one event.
#[derive(Clone, Debug)]
pub struct Message {
    /// Output, in order.
    pub chunks: Vec<LogChunk>,
    /// None beside chunks.
    pub event: Option<Event>,
    /// The point after this message. Store it after the output, and resume there.
    pub cursor: String,
}

/// What happens in a log beside output.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Bytes are missing.
    Gap(LogGap),
    State(LogState),
    /// Of a job: another execution begins.
    Execution(Box<JobLogExecution>),
    /// The log of an execution is over.
    End(LogEnd),
    /// The log of a job is over.
    JobEnd(Box<JobLogEnd>),
    /// The tail was interrupted, and resumes by itself.
    Interruption(Error),
}

/// A log, live or stored: a stream that is over after its `End` or `JobEnd`, or after an error. Interruptions are
/// resumed: no byte is repeated or lost. To drop it ends the call.
pub type Tail = BoxStream<'static, Result<Message, Error>>;

/// Makes a call that begins after a cursor.
pub(crate) type Open = Box<dyn FnMut(String) -> BoxFuture<'static, Result<Call, Error>> + Send>;
pub(crate) type Call = Streaming<StreamJobLogsResponse>;

/// Makes calls until the tail is over.
pub(crate) fn follow(
    of_job: bool,
    cursor: String,
    heartbeat: Option<prost_types::Duration>,
    check: Check,
    open: Open,
) -> Tail {
    // An interval that is too short is for the server to refuse: its answer needs a moment.
    let silence = heartbeat.map_or(SILENCE, |interval| {
        Duration::try_from(interval).unwrap_or_default().saturating_mul(3).max(Duration::from_millis(300))
    });
    let (call, received, failures, pause, over) = Default::default();
    let progress = Progress { of_job, cursor, silence, check, open, call, received, failures, pause, over };
    unfold(progress, |mut progress| async { Some((progress.step().await?, progress)) }).boxed()
}

/// The progress of one tail.
struct Progress {
    of_job: bool,
    cursor: String,
    silence: Duration,
    check: Check,
    open: Open,
    call: Option<Call>,
    /// The messages of this call.
    received: u32,
    /// The interruptions without progress.
    failures: u32,
    pause: Option<Duration>,
    over: bool,
}

impl Progress {
    /// Returns the next message to tell, or None if the tail is over.
    async fn step(&mut self) -> Option<Result<Message, Error>> {
        while !self.over {
            if let Some(pause) = self.pause.take() {
                sleep(pause).await;
            }
            match self.receive().await {
                Ok(message) if message.event.is_none() && message.chunks.is_empty() => {}
                Ok(message) => return Some(Ok(message)),
                Err(failure) if failure.is_resumable() => {
                    (self.call, self.pause) = (None, Some(failure.pause(self.failures)));
                    self.failures += 1;
                    let event = Some(Event::Interruption(failure));
                    return Some(Ok(Message { chunks: Vec::new(), event, cursor: self.cursor.clone() }));
                }
                Err(failure) => {
                    (self.call, self.over) = (None, true);
                    return Some(Err(failure));
                }
            }
        }
        None
    }

    async fn receive(&mut self) -> Result<Message, Error> {
        let next = async {
            let call = match self.call {
                Some(ref mut call) => call,
                None => {
                    self.received = 0;
                    self.call.insert((self.open)(self.cursor.clone()).await?)
                }
            };
            Ok::<_, Error>(call.message().await?)
        };
        // A dead connection says nothing: only the time in which a message is waited for counts.
        let response = timeout(self.silence, next)
            .await
            .map_err(|_| interrupted(format!("no message for {:?}, not even a heartbeat", self.silence)))??
            .ok_or_else(|| interrupted("the stream ended early, without an end"))?;
        // The first message of a call comes before anything is read: only the second one is progress.
        self.received += 1;
        if self.received > 1 {
            self.failures = 0;
        }
        let event = self.check.take(&response.chunks, response.event)?;
        self.over = matches!(event, Some(Event::JobEnd(_))) || (!self.of_job && matches!(event, Some(Event::End(_))));
        self.cursor = response.cursor;
        Ok(Message { chunks: response.chunks, event, cursor: self.cursor.clone() })
    }
}

fn interrupted(message: impl Into<String>) -> Error {
    Error::new(Code::Unavailable, message)
}
