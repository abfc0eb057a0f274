use tonic::body::Body;
use tonic::codegen::http::{Request, Response, StatusCode};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::transport::{Channel, Error};

/// A channel that reads no page of a proxy as if it were a message: its HTTP status alone tells the code.
#[derive(Clone)]
pub(crate) struct Transport(pub(crate) Channel);

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<Response<Body>, Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async {
            let answer = answer.await?;
            Ok(if answer.status() == StatusCode::OK { answer } else { answer.map(|_| Body::empty()) })
        })
    }
}
