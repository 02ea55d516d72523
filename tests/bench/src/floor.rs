//! Floors: servers that do less than the bridge does, with the same HTTP library.
//!
//! `bare` reads the body and answers; `signature` checks the signature as well. `publish` checks it, publishes the body to a
//! broker and answers once the broker has acknowledged it: what one would write by hand, without a journal.

use std::net::SocketAddr;

use bytes::Bytes;
use ring::hmac::{HMAC_SHA256, Key, verify};
use serde::Deserialize;
use warp::http::StatusCode;
use warp::{Filter, Rejection};

use crate::Result;
use crate::delivery::TOKEN;
use crate::publish::{Destination, Publisher};

/// The largest body.
const LARGEST: u64 = 256 * 1024;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[command(subcommand)]
    floor: Floor,
}

#[derive(clap::Subcommand)]
enum Floor {
    /// Reads the body and answers 200.
    Bare,
    /// Checks the signature, and answers 200 or 401.
    Signature,
    /// Checks the signature, publishes the body, and answers 200 once the broker has acknowledged it.
    Publish(Destination),
}

pub async fn run(options: Options) -> Result<()> {
    match options.floor {
        Floor::Bare => warp::serve(body().map(|_body: Bytes| StatusCode::OK)).run(options.listen).await,
        Floor::Signature => {
            let filter =
                signed().map(|is_valid, _body: Bytes| if is_valid { StatusCode::OK } else { StatusCode::UNAUTHORIZED });
            warp::serve(filter).run(options.listen).await;
        }
        Floor::Publish(destination) => {
            let publisher = Publisher::connect(&destination, 4096).await?;
            let filter = signed().then(move |is_valid: bool, body: Bytes| {
                let publisher = publisher.clone();
                async move {
                    if !is_valid {
                        return StatusCode::UNAUTHORIZED;
                    }
                    match publish(&publisher, body).await {
                        Ok(()) => StatusCode::OK,
                        Err(error) => {
                            eprintln!("{error}");
                            StatusCode::SERVICE_UNAVAILABLE
                        }
                    }
                }
            });
            warp::serve(filter).run(options.listen).await;
        }
    }
    Ok(())
}

fn body() -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    #[expect(clippy::disallowed_methods, reason = "the length is limited by the filter before it")]
    let bytes = warp::body::bytes();
    warp::post().and(warp::path!("webhooks" / "sendbird")).and(warp::body::content_length_limit(LARGEST)).and(bytes)
}

/// The body, and whether its signature is right.
fn signed() -> impl Filter<Extract = (bool, Bytes), Error = Rejection> + Clone {
    let key = Key::new(HMAC_SHA256, TOKEN.as_bytes());
    let check = move |signature: String, body: Bytes| {
        let given = hex::decode(signature).unwrap_or_default();
        (verify(&key, &body, &given).is_ok(), body)
    };
    warp::header("x-sendbird-signature").and(body()).map(check).untuple_one()
}

async fn publish(publisher: &Publisher, body: Bytes) -> Result<()> {
    let delivery: Delivery = serde_json::from_slice(&body)?;
    publisher.publish(&delivery.direct_call.call_id, body).await?.await
}

#[derive(Deserialize)]
struct Delivery {
    direct_call: Call,
}

#[derive(Deserialize)]
struct Call {
    call_id: String,
}
