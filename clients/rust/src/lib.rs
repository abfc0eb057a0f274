//! A client of a fastlane server, which runs commands in containers and streams their output.
//!
//! Calls are repeated while the server cannot be reached. A tail never repeats a byte and never drops one in silence.

mod check;
mod client;
mod error;
mod tail;
/// The messages of the contract, and stubs of its services. Generated.
#[allow(clippy::all, clippy::pedantic, rustdoc::all)]
#[rustfmt::skip]
pub mod v1;

pub use client::{Client, Options};
pub use error::Error;
/// What reads a tail: `tail.next().await`.
pub use futures_util::StreamExt;
pub use tail::{Event, Message, Tail};
pub use tonic::Code;
pub use tonic_types::FieldViolation;
