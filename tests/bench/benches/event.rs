//! What each step from the body of a delivery to a message costs, for a `direct_call:end` of 1,024 bytes.
//!
//! `parse` redacts first, so it contains `redact`; `normalize` makes the id and writes the envelope, so it contains `identity`
//! and `encode`. `view` and the two messages are what a sink does with a stored event.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use delivery::{TOKEN, Template};
use sendbird_bridge::domain::envelope::{Envelope, Format, View};
use sendbird_bridge::domain::identity::EventId;
use sendbird_bridge::sendbird::delivery::parse;
use sendbird_bridge::sendbird::normalize::{Provenance, Settings, normalize};
use sendbird_bridge::sendbird::redact::redact;
use sendbird_bridge::sendbird::signature::{Keys, sign, verify};
use serde_json::value::RawValue;

#[path = "../src/delivery.rs"]
#[expect(dead_code, reason = "the load generator's deliveries, of which one is used here")]
#[allow(unused_imports, reason = "the module's tests run with the load generator's")]
mod delivery;

const RECEIVED_MS: i64 = 1_790_000_000_000;

fn event(criterion: &mut Criterion) {
    let template = Template::new(1024);
    let body = template.body(1);
    let call_id = template.call_id(&body);
    let text = std::str::from_utf8(&body).expect("text");
    let (keys, signature) = (Keys::new([TOKEN]), sign(TOKEN, &body));
    let (settings, delivery) = (Settings::default(), parse(&body).expect("a delivery"));
    let stored = Bytes::from(normalize(&delivery, Provenance::at(RECEIVED_MS), &settings).envelope);
    let envelope: Envelope<'_, &RawValue> = serde_json::from_slice(&stored).expect("an envelope");

    let mut group = criterion.benchmark_group("event");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("signature", |bencher| {
        bencher.iter(|| verify(&keys, black_box(&body), black_box(signature.as_bytes())).expect("a right signature"));
    });
    group.bench_function("redact", |bencher| bencher.iter(|| redact(black_box(text)).expect("JSON")));
    group.bench_function("parse", |bencher| bencher.iter(|| parse(black_box(&body)).expect("a delivery")));
    group.bench_function("identity", |bencher| {
        let parts = ["0A1B2C3D-1111-4222-8333-444455556666", "direct_call:end", call_id, "1790000000001"];
        bencher.iter(|| EventId::of_parts(black_box(parts).map(str::as_bytes)));
    });
    group.bench_function("normalize", |bencher| {
        bencher.iter(|| normalize(black_box(&delivery), Provenance::at(RECEIVED_MS), &settings));
    });
    group.bench_function("encode", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&envelope)).expect("JSON"));
    });
    group.bench_function("view", |bencher| {
        bencher.iter(|| View::parse(black_box(&stored)).map(|view| view.key().len()).expect("an envelope"));
    });
    let view = View::parse(&stored).expect("an envelope");
    for (name, format) in [("structured message", Format::Structured), ("binary message", Format::Binary)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let view = black_box(&view);
                let headers: Vec<(String, String)> =
                    view.headers(format).map(|(name, value)| (format!("ce_{name}"), value.to_owned())).collect();
                (headers, view.body(format))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, event);
criterion_main!(benches);
