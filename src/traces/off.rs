//! No spans: what is left of them in a build without the feature `otlp`.
//!
//! The types have no size and each function gives back what it was given or does nothing.

use std::marker::PhantomData;

use tokio::time::Instant;

use super::{Answer, Destination, End};
use crate::domain::envelope::View;
use crate::domain::identity::EventId;
use crate::domain::trace::TraceParent;

/// Makes no spans.
#[derive(Clone, Debug, Default)]
pub struct Tracer(());

/// Makes no spans of a sink.
#[derive(Clone, Debug, Default)]
pub struct Publisher(());

/// Not the span of a delivery.
#[derive(Debug)]
pub struct Delivery<'a>(PhantomData<&'a Tracer>);

/// Not the span of a publish.
#[derive(Debug)]
pub struct Publish;

impl Tracer {
    /// Nothing.
    #[inline]
    pub fn delivery(&self, _begun: Instant) -> Delivery<'_> {
        Delivery(PhantomData)
    }

    /// Nothing.
    #[inline]
    pub fn publisher(&self, _destination: Destination) -> Publisher {
        Publisher(())
    }
}

impl Delivery<'_> {
    /// What was given goes on.
    #[inline]
    pub fn join(&mut self, given: Option<TraceParent>) -> Option<TraceParent> {
        given
    }

    /// Nothing.
    #[inline]
    pub fn is_of(&mut self, _id: EventId, _category: &'static str) {}

    /// Nothing.
    #[inline]
    pub fn answered(self, _answer: Answer) {}
}

impl Publish {
    /// There is none.
    #[inline]
    pub fn is_recorded(&self) -> bool {
        false
    }
}

impl Publisher {
    /// Nothing.
    #[inline]
    pub fn begin(&self, _event: &View<'_>) -> Publish {
        Publish
    }

    /// Nothing.
    #[inline]
    pub fn end(&self, _publish: &Publish, _end: End) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_carried_about() {
        assert_eq!(size_of::<(Tracer, Publisher, Delivery<'_>, Publish)>(), 0);
    }
}
