//! Rules that make the server misbehave in a chosen way on chosen requests.
//!
//! A request is matched against the rules in the order they were added. [`Action::Delay`] adds up over all rules that match; of the other
//! actions the first rule that matches wins. A rule counts only the requests it is asked about, so `skip` and `times` are exact.

use std::time::Duration;

use parking_lot::Mutex;

use crate::operation::Operation;

/// What happens to a request that a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An error with this HTTP status and the S3 code that goes with it (503: SlowDown, 403: AccessDenied, 404: NoSuchKey, 500: InternalError).
    Error(u16),
    /// An error with this HTTP status and this S3 code.
    Code(u16, &'static str),
    /// Do what is asked, and then answer with an error of this HTTP status.
    ActThenError(u16),
    /// Do what is asked, and then close the connection with a reset instead of an answer.
    ActThenDrop,
    /// Close the connection with a reset after so many bytes of the request's body. Bodies that are not longer stay whole.
    ResetRequestAfter(u64),
    /// Wait this long before the answer, which is otherwise right.
    Delay(Duration),
    /// Never answer; ends when the client closes the connection or the server stops.
    Hang,
    /// Close the connection with a reset before a byte of the answer.
    Drop,
    /// Reset the connection after so many bytes of the body (the last ones may be lost in the reset). Bodies that are not longer stay whole.
    ResetAfter(u64),
    /// Announce the whole length, send so many bytes of the body, then close the connection in order. Bodies that are not longer stay whole.
    CloseAfter(u64),
    /// Send so many bytes of the body and then nothing more. Bodies that are not longer stay whole.
    StallAfter(u64),
    /// Send the body at so many bytes per second (at least one byte every 50 ms).
    Slow(u64),
    /// Announce and send so many bytes less than the range has; Content-Range still claims the range that was asked for. Only GetObject.
    Shorten(u64),
    /// Answer as if the object had been replaced by one with this etag (without quotes): If-Match with another fails. Only GET and HEAD.
    Etag(String),
    /// Answer 200 with the whole object although a range was asked for. Only GetObject.
    IgnoreRange,
    /// Redirect to another region, with status 301 (PermanentRedirect) or 307 (TemporaryRedirect).
    Redirect {
        /// 301 or 307.
        status: u16,
        /// Value of the header `x-amz-bucket-region`.
        region: String,
        /// Value of the header `location`, left out when `None`.
        location: Option<String>,
    },
    /// Flip the lowest bit of the body's byte at this position.
    Corrupt(u64),
}

/// A rule: which requests, how often, and what happens.
#[derive(Clone, Debug)]
pub struct Fault {
    action: Action,
    operations: Vec<Operation>,
    key: Option<String>,
    skip: u64,
    times: Option<u64>,
}

impl Fault {
    /// A rule for every request, for good.
    pub fn new(action: Action) -> Self {
        Fault { action, operations: Vec::new(), key: None, skip: 0, times: None }
    }

    /// Only for this operation; may be called several times.
    pub fn on(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// Only for keys (for listings: prefixes) that contain this text.
    pub fn key(mut self, part: impl Into<String>) -> Self {
        self.key = Some(part.into());
        self
    }

    /// The first `count` requests that match pass unharmed.
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// The rule ends after it struck `count` times.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }
}

/// Names a rule that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

struct Rule {
    id: FaultId,
    fault: Fault,
    hits: u64,
}

/// What the rules say about one request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decision {
    pub(crate) delay: Duration,
    pub(crate) action: Option<Action>,
}

/// The rules of a server.
#[derive(Default)]
pub(crate) struct Faults {
    rules: Mutex<(u64, Vec<Rule>)>,
}

impl Faults {
    pub(crate) fn add(&self, fault: Fault) -> FaultId {
        let mut rules = self.rules.lock();
        rules.0 += 1;
        let id = FaultId(rules.0);
        rules.1.push(Rule { id, fault, hits: 0 });
        id
    }

    pub(crate) fn remove(&self, id: FaultId) {
        self.rules.lock().1.retain(|rule| rule.id != id);
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().1.clear();
    }

    /// How often a rule struck; 0 when it was removed.
    pub(crate) fn hits(&self, id: FaultId) -> u64 {
        self.rules.lock().1.iter().find(|rule| rule.id == id).map_or(0, |rule| rule.hits)
    }

    /// Decides on a request and counts it.
    pub(crate) fn decide(&self, operation: Operation, key: &str) -> Decision {
        let mut decision = Decision::default();
        for rule in &mut self.rules.lock().1 {
            let fault = &mut rule.fault;
            let matches = (fault.operations.is_empty() || fault.operations.contains(&operation))
                && fault.key.as_ref().is_none_or(|part| key.contains(part.as_str()))
                && fault.times.is_none_or(|times| rule.hits < times);
            let delay = matches!(fault.action, Action::Delay(_));
            if !matches || (!delay && decision.action.is_some()) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            rule.hits += 1;
            match &fault.action {
                Action::Delay(time) => decision.delay += *time,
                action => decision.action = Some(action.clone()),
            }
        }
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_count_and_end() {
        let faults = Faults::default();
        let get = Operation::GetObject;
        let id = faults.add(Fault::new(Action::Error(500)).on(get).key("data").skip(1).times(2));
        let second = faults.add(Fault::new(Action::Hang).on(get));
        faults.add(Fault::new(Action::Delay(Duration::from_millis(5))));
        let mut actions = Vec::new();
        for _ in 0..4 {
            let decision = faults.decide(get, "some/data");
            assert_eq!(decision.delay, Duration::from_millis(5));
            actions.push(decision.action.expect("one of two"));
        }
        assert_eq!(actions, [Action::Hang, Action::Error(500), Action::Error(500), Action::Hang]);
        assert_eq!((faults.hits(id), faults.hits(second)), (2, 2));
        assert_eq!(faults.decide(Operation::HeadObject, "some/data").action, None);
        assert_eq!(faults.decide(get, "other").action, Some(Action::Hang));
        faults.remove(second);
        assert_eq!(faults.decide(get, "other").action, None);
        faults.clear();
        assert_eq!(faults.decide(get, "other"), Decision::default());
    }
}
