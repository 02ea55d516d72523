//! How often the disk can be told to keep what was appended: the floor of every answer that means stored.

use std::fs::{File, remove_file};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Result;

#[derive(clap::Args)]
pub struct Options {
    /// A directory on the disk.
    dir: PathBuf,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The bytes of a record.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Records that are written and synced together.
    #[arg(long, default_value_t = 1)]
    group: usize,
}

#[derive(Serialize)]
pub struct Report {
    bytes: usize,
    group: usize,
    syncs_per_s: f64,
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Appends and syncs to a file of its own, and removes it.
pub fn run(options: &Options) -> Result<Report> {
    let path = options.dir.join("fdatasync");
    let mut file = File::create(&path)?;
    let group = vec![b'x'; options.bytes * options.group];
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < options.seconds {
        let before = Instant::now();
        file.write_all(&group)?;
        file.sync_data()?;
        latencies.saturating_record(before.elapsed().as_micros() as u64);
    }
    let syncs_per_s = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    drop(file);
    remove_file(path)?;
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Report {
        bytes: options.bytes,
        group: options.group,
        syncs_per_s,
        per_s: syncs_per_s * options.group as f64,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        max_ms: latencies.max() as f64 / 1000.0,
    })
}
