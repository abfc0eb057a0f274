use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Response, StatusCode};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tower::ServiceExt;
use tower::util::MapResponse;

use crate::check::Check;
use crate::error::{Error, random};
use crate::tail::{Open, Tail, follow};
use crate::v1::job_service_client::JobServiceClient;
use crate::v1::{
    EnqueueJobRequest, GetJobRequest, Job, StopJobRequest, StreamExecutionLogsRequest, StreamJobLogsRequest,
    StreamJobLogsResponse,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How a client connects. The default: without TLS, without a token.
#[derive(Clone, Default)]
pub struct Options {
    /// Turns TLS on: a PEM file with the authority that signed the server's certificate. "system": this machine's.
    pub tls_ca: Option<PathBuf>,
    /// Turns TLS on: a PEM file with the client's own certificate, for a server that requires one.
    pub tls_cert: Option<PathBuf>,
    /// A PEM file with the key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
    /// Shown with each call, for a server that requires one.
    pub token: String,
    /// A file with the token, which is read anew for each call.
    pub token_file: Option<PathBuf>,
    /// The time for a call and its repetitions. None: 30 seconds. A tail has no limit.
    pub timeout: Option<Duration>,
}

impl Options {
    fn tls(&self) -> Result<Option<ClientTlsConfig>, Error> {
        let tls = match &self.tls_ca {
            Some(ca) if ca.as_os_str() != "system" => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?))
            }
            None if self.tls_cert.is_none() && self.tls_key.is_none() => return Ok(None),
            _ => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(Some(tls.identity(Identity::from_pem(read(cert)?, read(key)?)))),
            (None, None) => Ok(Some(tls)),
            _ => Err(refused("tls_cert and tls_key go together: give both, or neither")),
        }
    }
}

/// A channel whose answers are [`without_page`].
type Transport = MapResponse<Channel, fn(Response<Body>) -> Response<Body>>;

/// Returns the answer, or of a proxy's page the HTTP status alone: no page is read as if it were a message.
fn without_page(answer: Response<Body>) -> Response<Body> {
    if answer.status() == StatusCode::OK { answer } else { answer.map(|_| Body::empty()) }
}

/// A connection to a server. A clone uses the same one.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    options: Options,
}

impl Client {
    /// Makes a client of the server at HOST:PORT. It connects when the first call is made. It has to be made within a
    /// Tokio runtime.
    pub fn new(address: &str, options: Options) -> Result<Self, Error> {
        let tls = options.tls()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| refused(format!("the address {address:?} is not HOST:PORT")))?
            .connect_timeout(Duration::from_secs(5))
            // Finds a dead connection while a call is open.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).map_err(|error| refused(format!("TLS: {error:?}")))?;
        }
        Ok(Client { transport: endpoint.connect_lazy().map_response(without_page), options })
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
        let (cursor, heartbeat) = (request.cursor.clone(), request.heartbeat_interval);
        let path = "/fastlane.v1.ExecutionService/StreamExecutionLogs";
        let open = self.open(path, move |cursor| StreamExecutionLogsRequest { cursor, ..request.clone() });
        follow(false, cursor, heartbeat, check, open)
    }

    /// Follows the logs of all executions of a job, one after another, to the `JobEnd`.
    pub fn tail_job(&self, request: StreamJobLogsRequest) -> Tail {
        let from_first_byte = request.tail_lines.is_none() && request.since_time.is_none();
        let check = Check::new(from_first_byte && request.cursor.is_empty(), request.text, &request.sources);
        let (cursor, heartbeat) = (request.cursor.clone(), request.heartbeat_interval);
        let path = "/fastlane.v1.JobService/StreamJobLogs";
        let open = self.open(path, move |cursor| StreamJobLogsRequest { cursor, ..request.clone() });
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

    /// Returns what opens the stream of a log after a cursor. A message of an execution's stream is one of a job's.
    fn open<Q: Message + 'static>(&self, path: &'static str, request: impl Fn(String) -> Q + Send + 'static) -> Open {
        let client = self.clone();
        Box::new(move |cursor| {
            let (client, request) = (client.clone(), client.request(request(cursor)));
            Box::pin(async move {
                let mut grpc = tonic::client::Grpc::new(client.transport);
                grpc.ready().await.map_err(|error| Error::from(Status::from_error(error.into())))?;
                let codec = ProstCodec::<Q, StreamJobLogsResponse>::default();
                Ok(grpc.server_streaming(request?, PathAndQuery::from_static(path), codec).await?.into_inner())
            })
        })
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        let token = self.options.token_file.as_deref().map_or_else(|| Ok(self.options.token.clone()), read)?;
        if !token.trim().is_empty() {
            let mut value = MetadataValue::<Ascii>::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| refused("a token has printable characters of ASCII only"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|error| refused(format!("{}: {error}", file.display())))
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::Unauthenticated, message)
}
