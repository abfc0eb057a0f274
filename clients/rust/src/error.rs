use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::iter::successors;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The codes of interruptions, unless the server has a reason.
const PASSING: [Code; 5] = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Internal, Code::Unknown];

/// A call that failed: refused by the server, or interrupted on the way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Error {
    /// The status code of gRPC. `DataLoss`: a log is not what the server says it is; found by the client.
    pub code: Code,
    /// A name of `fastlane.v1.ErrorReason` without its prefix. Empty: the error is not the server's.
    pub reason: String,
    pub message: String,
    /// The fields at fault of a request that is not valid: its path, and what is wrong with it.
    pub violations: Vec<FieldViolation>,
    /// What the error is about, for example the id of the job.
    pub metadata: BTreeMap<String, String>,
    /// How long the server asks to wait. None: it does not ask.
    pub retry_after: Option<Duration>,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let (reason, violations, metadata) = Default::default();
        Error { code, reason, message: message.into(), violations, metadata, retry_after: None }
    }

    /// Whether the same call may succeed later.
    pub fn is_passing(&self) -> bool {
        self.retry_after.is_some() || (self.reason.is_empty() && PASSING.contains(&self.code))
    }

    /// Whether a stream that ended like this may be called again. Its request is never too large: without a reason,
    /// `ResourceExhausted` is a proxy's or the connection's.
    pub(crate) fn is_resumable(&self) -> bool {
        self.is_passing() || (self.reason.is_empty() && self.code == Code::ResourceExhausted)
    }

    /// The pause before the next try: longer after each failure, on top of what the server asks for. Up to a half is
    /// taken off at random, so that many clients do not come back together.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let longest = (FIRST_PAUSE * (1 << failures.min(10))).min(LONGEST_PAUSE);
        let part = f64::from(random() as u32) / f64::from(u32::MAX);
        self.retry_after.unwrap_or_default().saturating_add(longest.mul_f64(1.0 - part / 2.0))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // Without an answer of a server, UNKNOWN is a connection that broke.
        let broke = status.code() == Code::Unknown && std::error::Error::source(&status).is_some();
        let mut error = Error::new(if broke { Code::Unavailable } else { status.code() }, status.message());
        // gRPC says "transport error", and only a cause that the connection was refused.
        for cause in successors(std::error::Error::source(&status), |cause| cause.source()) {
            if !error.message.contains(&cause.to_string()) {
                error.message += &format!(": {cause}");
            }
            // A handshake failed: that of TLS does not pass by itself.
            if cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData) {
                error.code = Code::Unauthenticated;
            }
        }
        let details = status.get_error_details();
        if let Some(info) = details.error_info().filter(|info| info.domain == "fastlane") {
            error.reason = info.reason.clone();
            error.metadata = info.metadata.clone().into_iter().collect();
        }
        error.violations = details.bad_request().map(|request| request.field_violations.clone()).unwrap_or_default();
        error.retry_after = details.retry_info().map(|info| info.retry_delay.unwrap_or_default());
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// A number that nobody can guess: the state has keys of the operating system's.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}
