use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::check::Check;
use crate::error::{Error, random};
use crate::tail::{Call, Open, Tail, follow};
use crate::transport::Transport;
use crate::v1::job_service_client::JobServiceClient;
use crate::v1::{
    EnqueueJobRequest, GetJobRequest, Job, StopJobRequest, StreamExecutionLogsRequest, StreamJobLogsRequest,
    StreamJobLogsResponse,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client may be told beside the address.
#[derive(Clone, Default)]
pub struct Options {
    /// Sent with each call, for a server that requires one.
    pub token: String,
    /// A file with the token, instead of `token`. It is read anew for each call.
    pub token_file: Option<PathBuf>,
    /// Without, the connection is not encrypted.
    pub tls: Option<ClientTlsConfig>,
    /// The time for a call and its repetitions. None: 30 seconds. A tail has no limit.
    pub timeout: Option<Duration>,
}

/// A connection to a server. A clone uses the same one.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    options: Options,
}

impl Client {
    /// Makes a client of the server at HOST:PORT, without TLS. It connects when the first call is made. It has to be
    /// made within a Tokio runtime.
    pub fn new(address: &str) -> Result<Self, Error> {
        Self::with_options(address, Options::default())
    }

    /// Makes a client with a token, TLS or another timeout.
    pub fn with_options(address: &str, options: Options) -> Result<Self, Error> {
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| invalid(format!("the address {address:?} is not HOST:PORT")))?
            .connect_timeout(Duration::from_secs(5))
            // Finds a dead connection while a call is open.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        if let Some(tls) = options.tls.clone() {
            endpoint = endpoint.tls_config(tls).map_err(|error| invalid(format!("TLS: {error:?}")))?;
        }
        Ok(Client { transport: Transport(endpoint.connect_lazy()), options })
    }

    /// Stores a job and returns it with its first execution. Without a `request_id` the client makes one, so that a call
    /// that was interrupted is repeated and makes no second job.
    pub async fn enqueue(&self, mut request: EnqueueJobRequest) -> Result<Job, Error> {
        if request.request_id.is_empty() {
            request.request_id = format!("{:016x}{:016x}", random(), random());
        }
        self.call(request, async |mut jobs, request| Ok(jobs.enqueue_job(request).await?.into_inner().job)).await
    }

    /// Returns the job as it is now, with its current execution.
    pub async fn get(&self, job_id: &str) -> Result<Job, Error> {
        let request = GetJobRequest { job_id: job_id.into() };
        self.call(request, async |mut jobs, request| Ok(jobs.get_job(request).await?.into_inner().job)).await
    }

    /// Ends the job: its signal, the grace period, then a kill. It returns when that has begun.
    pub async fn stop(&self, job_id: &str, note: &str) -> Result<Job, Error> {
        let request = StopJobRequest { job_id: job_id.into(), note: note.into(), ..Default::default() };
        self.call(request, async |mut jobs, request| Ok(jobs.stop_job(request).await?.into_inner().job)).await
    }

    /// Follows the log of an execution, live or stored, to its `End`.
    pub fn tail(&self, request: StreamExecutionLogsRequest) -> Tail {
        let from_first_byte = request.tail_lines.is_none() && request.since_time.is_none() && request.start_line <= 1;
        let check = Check::new(from_first_byte && request.cursor.is_empty(), request.text, &request.sources);
        let (client, cursor, heartbeat) = (self.clone(), request.cursor.clone(), request.heartbeat_interval);
        let open: Open = Box::new(move |cursor| {
            let (client, request) = (client.clone(), StreamExecutionLogsRequest { cursor, ..request.clone() });
            Box::pin(async move { client.stream("/fastlane.v1.ExecutionService/StreamExecutionLogs", request).await })
        });
        follow(false, cursor, heartbeat, check, open)
    }

    /// Follows the logs of all executions of a job, one after another, to the `JobEnd`.
    pub fn tail_job(&self, request: StreamJobLogsRequest) -> Tail {
        let from_first_byte = request.tail_lines.is_none() && request.since_time.is_none();
        let check = Check::new(from_first_byte && request.cursor.is_empty(), request.text, &request.sources);
        let (client, cursor, heartbeat) = (self.clone(), request.cursor.clone(), request.heartbeat_interval);
        let open: Open = Box::new(move |cursor| {
            let (client, request) = (client.clone(), StreamJobLogsRequest { cursor, ..request.clone() });
            Box::pin(async move { client.stream("/fastlane.v1.JobService/StreamJobLogs", request).await })
        });
        follow(true, cursor, heartbeat, check, open)
    }

    /// Makes a call that may be sent twice, and repeats it while the error may pass and there is time.
    async fn call<Q: Clone>(
        &self,
        message: Q,
        method: impl AsyncFn(JobServiceClient<Transport>, Request<Q>) -> Result<Option<Job>, Status>,
    ) -> Result<Job, Error> {
        let timeout = self.options.timeout.unwrap_or(CALL_TIMEOUT);
        let (deadline, mut failures) = (Instant::now() + timeout, 0);
        loop {
            let call = method(JobServiceClient::new(self.transport.clone()), self.request(message.clone())?);
            let failure = match timeout_at(deadline, call).await {
                Ok(Ok(job)) => return Ok(job.unwrap_or_default()),
                Ok(Err(status)) => Error::from(status),
                Err(_) => Error::new(Code::DeadlineExceeded, format!("no answer in {timeout:?}")),
            };
            let pause = failure.pause(failures);
            if !failure.is_passing() || deadline.saturating_duration_since(Instant::now()) <= pause {
                return Err(failure);
            }
            sleep(pause).await;
            failures += 1;
        }
    }

    /// Opens the stream of a log. A message of an execution's stream is one of a job's.
    async fn stream<Q: prost::Message + 'static>(&self, method: &'static str, message: Q) -> Result<Call, Error> {
        let mut grpc = tonic::client::Grpc::new(self.transport.clone());
        grpc.ready().await.map_err(|error| Error::from(Status::from_error(error.into())))?;
        let codec = ProstCodec::<Q, StreamJobLogsResponse>::default();
        Ok(grpc.server_streaming(self.request(message)?, PathAndQuery::from_static(method), codec).await?.into_inner())
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        let token = match &self.options.token_file {
            Some(path) => fs::read_to_string(path).map_err(|error| invalid(format!("{}: {error}", path.display())))?,
            None => self.options.token.clone(),
        };
        let token = token.trim();
        if !token.is_empty() {
            let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
                .parse()
                .map_err(|_| invalid("token: it may have printable characters of ASCII only"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, message)
}
