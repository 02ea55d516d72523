//! Making spans: whose trace it is, whether there is a span, and what is known of it at its end.
//!
//! The first branch of each function is whether traces are configured at all. Past it, a span is a box that is put into a
//! bounded queue; what does not fit is dropped and counted.

use std::sync::Arc;

use prometheus::IntCounter;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Answer, Destination, End};
use crate::domain::clock::Clock;
use crate::domain::envelope::View;
use crate::domain::identity::EventId;
use crate::domain::trace::TraceParent;

/// A span that has ended.
#[derive(Debug)]
pub(super) enum Span {
    /// Of a delivery.
    Delivery(Box<DeliverySpan>),
    /// Of an event at a sink.
    Publish(Box<PublishSpan>),
}

/// Whose child a span is, and what it is called itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    pub(super) parent: Option<[u8; 8]>,
}

/// From when to when, in Unix nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) begun_ns: u64,
    pub(super) ended_ns: u64,
}

#[derive(Debug)]
pub(super) struct DeliverySpan {
    pub(super) ids: Ids,
    pub(super) times: Times,
    /// `None` for what was no event.
    pub(super) event: Option<(EventId, &'static str)>,
    /// `None` where the sender hung up.
    pub(super) answer: Option<Answer>,
}

#[derive(Debug)]
pub(super) struct PublishSpan {
    pub(super) ids: Ids,
    pub(super) times: Times,
    pub(super) event: Arc<str>,
    pub(super) end: End,
    pub(super) destination: Arc<Destination>,
}

/// Makes spans, where traces are configured.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

/// Makes the spans of one sink.
#[derive(Clone, Debug, Default)]
pub struct Publisher(Option<(Arc<Recorder>, Arc<Destination>)>);

/// The span of a delivery. It ends with its answer, or when it is dropped because the sender hung up.
#[derive(Debug)]
pub struct Delivery<'a> {
    recorder: Option<&'a Recorder>,
    begun: Instant,
    span: Option<Box<DeliverySpan>>,
}

/// What the span of a publish will need of its event; nothing where there is to be none.
#[derive(Debug)]
pub struct Publish(Option<Box<Context>>);

/// The event's trace, the span that it is from, and its id.
#[derive(Debug)]
struct Context {
    trace: TraceParent,
    event: Arc<str>,
}

/// Where spans are made and go.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) queue: mpsc::Sender<Span>,
    /// Counts what does not fit into the queue.
    pub(super) overflowed: IntCounter,
    /// Which part of new traces is recorded.
    pub(super) sample: f64,
    pub(super) random: SystemRandom,
    pub(super) clock: Clock,
}

impl Recorder {
    fn send(&self, span: Span) {
        // Never waits: who makes spans has something to answer or to publish.
        if self.queue.try_send(span).is_err() {
            self.overflowed.inc();
        }
    }

    /// By the clock at the end, so that steps of it make no span of a negative length.
    fn times(&self, begun: Instant) -> Times {
        let ended_ns = self.clock.now_ns();
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Times { begun_ns: ended_ns.saturating_sub(took), ended_ns }
    }

    /// Random bytes; `None` if the system has none, and then there is no span.
    fn random<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).ok().map(|()| bytes)
    }

    /// Whether there is to be a span of a delivery, and which.
    fn join(&self, given: Option<TraceParent>) -> Option<Ids> {
        let (trace, parent) = match given {
            Some(given) if given.is_sampled() => (given.trace_id(), Some(given.span_id())),
            Some(_) => return None,
            None => (self.random().filter(|trace| is_in(*trace, self.sample))?, None),
        };
        Some(Ids { trace, span: self.random()?, parent })
    }
}

/// Whether a new trace is in the part that is recorded. By its id, as OpenTelemetry's sampler does it, so that all who ask
/// with the same ratio agree.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1")]
fn is_in(trace: [u8; 16], sample: f64) -> bool {
    const ALL: u64 = 1 << 63;
    let [.., a, b, c, d, e, f, g, h] = trace;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < (sample * ALL as f64) as u64
}

impl Tracer {
    /// Makes spans for a recorder.
    pub(super) fn new(recorder: Recorder) -> Self {
        Self(Some(Arc::new(recorder)))
    }

    /// A delivery whose head came at `begun`. There is no span before [`Delivery::join`].
    pub fn delivery(&self, begun: Instant) -> Delivery<'_> {
        Delivery { recorder: self.0.as_deref(), begun, span: None }
    }

    /// For what is published to one destination.
    pub fn publisher(&self, destination: Destination) -> Publisher {
        Publisher(self.0.clone().map(|recorder| (recorder, Arc::new(destination))))
    }
}

impl Delivery<'_> {
    /// It is authenticated, and its sender gave this trace. What its event is to name is the span, if there is one;
    /// otherwise what was given goes on.
    pub fn join(&mut self, given: Option<TraceParent>) -> Option<TraceParent> {
        let Some(recorder) = self.recorder else { return given };
        let Some(ids) = recorder.join(given) else { return given };
        let Some(own) = TraceParent::of(ids.trace, ids.span, true) else { return given };
        let times = Times::default();
        self.span = Some(Box::new(DeliverySpan { ids, times, event: None, answer: None }));
        Some(own)
    }

    /// It is this event, of a category from the closed set.
    pub fn is_of(&mut self, id: EventId, category: &'static str) {
        if let Some(span) = &mut self.span {
            span.event = Some((id, category));
        }
    }

    /// It is answered.
    pub fn answered(mut self, answer: Answer) {
        if let Some(span) = &mut self.span {
            span.answer = Some(answer);
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if let (Some(recorder), Some(mut span)) = (self.recorder, self.span.take()) {
            span.times = recorder.times(self.begun);
            recorder.send(Span::Delivery(span));
        }
    }
}

impl Publish {
    /// Whether there is to be a span.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }
}

impl Publisher {
    /// An event is about to be sent. There is a span only where its trace is recorded.
    pub fn begin(&self, event: &View<'_>) -> Publish {
        if self.0.is_none() {
            return Publish(None);
        }
        let trace = event.trace().and_then(|trace| TraceParent::parse(trace.as_bytes()));
        let trace = trace.filter(TraceParent::is_sampled);
        Publish(trace.map(|trace| Box::new(Context { trace, event: Arc::from(&*event.envelope().id) })))
    }

    /// The sink is done with it.
    pub fn end(&self, publish: &Publish, end: End) {
        let (Some((recorder, destination)), Some(context)) = (&self.0, &publish.0) else { return };
        let Some(span) = recorder.random() else { return };
        let ids = Ids { trace: context.trace.trace_id(), span, parent: Some(context.trace.span_id()) };
        recorder.send(Span::Publish(Box::new(PublishSpan {
            ids,
            times: recorder.times(end.begun),
            event: Arc::clone(&context.event),
            end,
            destination: Arc::clone(destination),
        })));
    }
}

/// What a tracer has made, for tests.
#[cfg(test)]
pub(crate) struct RecordedSpans(mpsc::Receiver<Span>);

#[cfg(test)]
impl RecordedSpans {
    /// The spans of publishes since the last look: whose, what became of it, and how long it took.
    pub(crate) fn publishes(&mut self) -> Vec<(String, End, std::time::Duration)> {
        let spans = std::iter::from_fn(|| self.0.try_recv().ok());
        let publishes = spans.filter_map(|span| match span {
            Span::Publish(span) => Some(span),
            Span::Delivery(_) => None,
        });
        let took = |times: &Times| std::time::Duration::from_nanos(times.ended_ns - times.begun_ns);
        publishes.map(|span| (span.event.to_string(), span.end, took(&span.times))).collect()
    }
}

#[cfg(test)]
impl Tracer {
    /// One that records everything, with room for a hundred spans.
    pub(crate) fn recording() -> (Self, RecordedSpans) {
        let (queue, spans) = mpsc::channel(100);
        let overflowed = IntCounter::new("overflowed", "spans that did not fit").unwrap();
        let recorder = Recorder { queue, overflowed, sample: 1.0, random: SystemRandom::new(), clock: Clock::system() };
        (Self::new(recorder), RecordedSpans(spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::Outcome;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sample: f64, room: usize) -> (Tracer, mpsc::Receiver<Span>, IntCounter) {
        let (queue, spans) = mpsc::channel(room);
        let overflowed = IntCounter::new("overflowed", "overflowed").unwrap();
        let random = SystemRandom::new();
        let recorder = Recorder { queue, overflowed: overflowed.clone(), sample, random, clock: Clock::fixed(1_000) };
        (Tracer::new(recorder), spans, overflowed)
    }

    fn given(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn a_part_of_new_traces_is_recorded_and_every_given_one_decides_by_itself() {
        for (sample, least, most) in [(0.0, 0, 0), (0.25, 150, 350), (1.0, 1000, 1000)] {
            let (tracer, ..) = tracer(sample, 1);
            let begin = |given| tracer.delivery(Instant::now()).join(given);
            let begun = (0..1000).filter(|_| begin(None).is_some()).count();
            assert!((least..=most).contains(&begun), "{begun} of 1000 at {sample}");
            let own = begin(given(GIVEN)).unwrap();
            assert_eq!(own.trace_id(), given(GIVEN).unwrap().trace_id());
            assert_ne!(own, given(GIVEN).unwrap());
            let unsampled = given(&GIVEN.replace("-01", "-00"));
            assert_eq!(begin(unsampled), unsampled);
        }
    }

    #[test]
    fn the_ratio_is_that_of_opentelemetry() {
        let low = |low: u64| u128::from(low).to_be_bytes();
        assert!(is_in(low(u64::MAX), 1.0) && !is_in(low(0), 0.0));
        assert!(is_in(low(u64::MAX / 2 - 1), 0.5) && !is_in(low(u64::MAX / 2 + 2), 0.5));
    }

    #[test]
    fn without_traces_there_is_nothing() {
        let tracer = Tracer::default();
        let mut delivery = tracer.delivery(Instant::now());
        assert_eq!(delivery.join(None), None);
        assert_eq!(delivery.join(given(GIVEN)), given(GIVEN));
        assert!(delivery.span.is_none());
        let destination = Destination { sink: "s".into(), system: "stdout", template: None };
        assert!(tracer.publisher(destination).0.is_none());
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_a_delivery_that_ends_early_has_its_span() {
        let (tracer, mut spans, overflowed) = tracer(1.0, 1);
        for _ in 0..3 {
            tracer.delivery(Instant::now()).join(None);
        }
        assert_eq!(overflowed.get(), 2);
        let Ok(Span::Delivery(span)) = spans.try_recv() else { panic!("no span") };
        assert!(span.answer.is_none() && span.ids.parent.is_none());
        assert_eq!(span.times.ended_ns, 1_000_000_000);
        // Who is not let in has none at all.
        tracer.delivery(Instant::now()).answered(Answer { status: 401, outcome: Outcome::Refused("signature_wrong") });
        assert!(spans.try_recv().is_err());
    }
}
