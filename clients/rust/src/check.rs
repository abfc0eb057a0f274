use std::collections::HashMap;

use tonic::Code;

use crate::error::Error;
use crate::tail::Event;
use crate::v1::stream_job_logs_response::Event as Told;
use crate::v1::{LogChunk, LogEnd, LogState, Source};

/// The bytes that came of the current execution: no offset may be repeated or missing, and the totals have to agree.
pub(crate) struct Check {
    text: bool,
    sources: Vec<i32>,
    execution_id: String,
    state: Option<LogState>,
    ended: bool,
    /// Whether the log of the execution is read from its first byte.
    whole: bool,
    positions: HashMap<i32, Position>,
}

/// The offset of the next byte, if it is known, and the checksum of all before it, if they are the whole.
struct Position {
    offset: i64,
    sum: crc32fast::Hasher,
    known: bool,
    whole: bool,
}

impl Check {
    pub(crate) fn new(whole: bool, text: bool, sources: &[i32]) -> Self {
        let sources = if sources.is_empty() { &[1, 2, 3] } else { sources }.to_vec();
        let (execution_id, state, ended, positions) = Default::default();
        Check { text, sources, execution_id, state, ended, whole, positions }
    }

    /// Checks a message and returns its event, if there is one to tell. A call that resumes begins with what was told
    /// before: the execution, its state, perhaps its end.
    pub(crate) fn take(&mut self, chunks: &[LogChunk], event: Option<Told>) -> Result<Option<Event>, Error> {
        for chunk in chunks {
            self.advance(chunk.source, chunk.offset, &chunk.data)?;
        }
        Ok(match event {
            Some(Told::Execution(start)) => {
                let id = start.execution.as_ref().map(|execution| execution.id.clone()).unwrap_or_default();
                self.begin(id).then(|| Event::Execution(Box::new(start)))
            }
            Some(Told::Gap(gap)) => {
                let at = self.advance(gap.source, gap.offset, &[])?;
                at.offset += gap.missing_bytes();
                at.whole = false;
                Some(Event::Gap(gap))
            }
            Some(Told::State(state)) => {
                let before = self.state.replace(state.clone());
                (before.as_ref() != Some(&state)).then_some(Event::State(state))
            }
            Some(Told::End(end)) if !self.ended => {
                self.verify(&end)?;
                self.ended = true;
                Some(Event::End(end))
            }
            Some(Told::JobEnd(end)) => Some(Event::JobEnd(Box::new(end))),
            Some(Told::End(_) | Told::Heartbeat(_)) | None => None,
        })
    }

    /// Returns whether the execution is another one than before.
    fn begin(&mut self, id: String) -> bool {
        if id == self.execution_id {
            return false;
        }
        self.whole |= !self.execution_id.is_empty();
        (self.execution_id, self.state, self.ended) = (id, None, false);
        self.positions.clear();
        true
    }

    fn position(&mut self, source: i32) -> &mut Position {
        let (known, whole) = (self.whole, self.whole);
        self.positions.entry(source).or_insert_with(|| Position { offset: 0, sum: Default::default(), known, whole })
    }

    /// Moves the position of the source, which has to be at this offset. Text may leap, but never goes back.
    fn advance(&mut self, source: i32, offset: i64, data: &[u8]) -> Result<&mut Position, Error> {
        let text = self.text;
        let at = self.position(source);
        if at.known && offset != at.offset && !(text && offset > at.offset) {
            return Err(inconsistent(source, format!("byte {offset}, expected byte {}", at.offset)));
        }
        (at.offset, at.known) = (offset + data.len() as i64, true);
        at.sum.update(data);
        Ok(at)
    }

    /// Compares what came of an execution with what the server has.
    fn verify(&mut self, end: &LogEnd) -> Result<(), Error> {
        if !end.sealed || self.text {
            return Ok(());
        }
        for source in self.sources.clone() {
            let has = end.totals.iter().find(|totals| totals.source == source).cloned().unwrap_or_default();
            let at = self.position(source);
            let sum = at.sum.clone().finalize();
            let changed = at.whole && has.crc32.is_some_and(|crc32| crc32 != sum);
            if changed || (at.known && at.offset != has.bytes) {
                let came = format!("{} bytes with checksum {sum:08x} came", at.offset);
                let what = format!("{came}, the server has {} with {:08x}", has.bytes, has.crc32());
                return Err(inconsistent(source, what));
            }
        }
        Ok(())
    }
}

fn inconsistent(source: i32, what: String) -> Error {
    let name = Source::try_from(source).map_or_else(|_| source.to_string(), |known| known.as_str_name().into());
    Error::new(Code::DataLoss, format!("the log is inconsistent in {name}: {what}"))
}
