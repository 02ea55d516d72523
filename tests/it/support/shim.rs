//! A disk that fails on demand, that ends the bridge in the middle of its work, and that remembers what it was told to
//! make durable: `shim.c` between the bridge and its journal. And a wall clock that can be set.
//!
//! The shim is compiled when it is first needed, with the C compiler that the build needs anyway, and is loaded into
//! the bridge's process alone. It keeps a record of each write, truncation, deletion and fsync of the journal's files
//! in the order in which they happened; [`Files::after`] plays that back with what a power cut would take left out.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::bridge::Config;

pub(crate) const EIO: i64 = 5;
pub(crate) const ENOSPC: i64 = 28;
pub(crate) const EROFS: i64 = 30;

/// For as long as it is not healed.
pub(crate) const ALWAYS: i64 = -1;

/// The slots of the control file, as in `shim.c`.
const SLOTS: [&str; 13] = [
    "write error",
    "writes left",
    "sync error",
    "syncs left",
    "space limited",
    "space left",
    "failed",
    "seen",
    "sync delay",
    "kill at",
    "kill left",
    "killed",
    "clock ahead ms",
];

/// Where the bridge is killed by `kill -9`, as in `shim.c`. A truncation and a deletion count as writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    BeforeWrite = 1,
    /// Half of it is in the file.
    InWrite,
    BeforeSync,
    AfterSync,
}

/// The disk under one configuration's journal.
pub(crate) struct Shim {
    control: File,
    log: PathBuf,
}

impl Shim {
    /// Puts a shim under the journal; the configuration that comes back starts the bridge with it.
    pub(crate) fn under(config: Config) -> (Self, Config) {
        let dir = config.dir().canonicalize().unwrap();
        let (path, log) = (dir.join("shim.control"), dir.join("shim.log"));
        fs::write(&path, [0; SLOTS.len() * 8]).unwrap();
        let control = File::options().read(true).write(true).open(&path).unwrap();
        let config = config
            .variable("LD_PRELOAD", library().to_str().unwrap())
            .variable("SHIM_DIR", dir.join("journal").to_str().unwrap())
            .variable("SHIM_CONTROL", path.to_str().unwrap())
            .variable("SHIM_LOG", log.to_str().unwrap());
        (Self { control, log }, config)
    }

    fn set(&self, slot: &str, value: i64) {
        let index = SLOTS.iter().position(|known| *known == slot).unwrap();
        self.control.write_all_at(&value.to_ne_bytes(), index as u64 * 8).unwrap();
    }

    fn get(&self, slot: &str) -> i64 {
        let index = SLOTS.iter().position(|known| *known == slot).unwrap();
        let mut value = [0; 8];
        self.control.read_exact_at(&mut value, index as u64 * 8).unwrap();
        i64::from_ne_bytes(value)
    }

    /// The next writes and truncations fail.
    pub(crate) fn fail_writes(&self, error: i64, times: i64) {
        self.set("write error", error);
        self.set("writes left", times);
    }

    /// The next fsyncs fail, and what they should have made durable is lost at a power cut.
    pub(crate) fn fail_syncs(&self, error: i64, times: i64) {
        self.set("sync error", error);
        self.set("syncs left", times);
    }

    /// Each fsync takes so much longer, until the disk is healed.
    pub(crate) fn delay_syncs(&self, delay: Duration) {
        self.set("sync delay", delay.as_micros().try_into().unwrap());
    }

    /// The files may grow by so many bytes.
    pub(crate) fn leave_space(&self, bytes: i64) {
        self.set("space left", bytes);
        self.set("space limited", 1);
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        ["writes left", "syncs left", "space limited", "sync delay"].into_iter().for_each(|slot| self.set(slot, 0));
    }

    /// The bridge is killed at the `nth` write or fsync of the journal's files from now on.
    pub(crate) fn kill(&self, step: Step, nth: i64) {
        self.set("kill at", 0);
        self.set("kill left", nth);
        self.set("kill at", step as i64);
    }

    /// It is not killed any more, by nobody but the test.
    pub(crate) fn spare(&self) {
        self.set("kill at", 0);
    }

    /// Whether it was, since this was last asked.
    pub(crate) fn has_killed(&self) -> bool {
        let killed = self.get("killed");
        self.set("killed", 0);
        killed > 0
    }

    /// The bridge's wall clock is ahead of the machine's by so much, from now on.
    pub(crate) fn set_clock_ahead(&self, ms: i64) {
        self.set("clock ahead ms", ms);
    }

    /// How many operations were made to fail.
    pub(crate) fn failed(&self) -> i64 {
        self.get("failed")
    }

    /// Whether the shim sees the bridge's writes at all.
    pub(crate) fn seen(&self) -> i64 {
        self.get("seen")
    }

    /// How long the record is by now.
    pub(crate) fn recorded(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |found| found.len())
    }

    /// The whole record.
    pub(crate) fn record(&self) -> Vec<Operation> {
        let bytes = fs::read(&self.log).unwrap();
        let mut operations = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let small = |from: usize| u32::from_ne_bytes(bytes[from..from + 4].try_into().unwrap());
            let large = |from: usize| u64::from_ne_bytes(bytes[from..from + 8].try_into().unwrap());
            let (op, file, offset, length) = (small(at), small(at + 4), large(at + 8), large(at + 16));
            at += 24;
            let done = match op {
                0 => {
                    let data = bytes[at..at + length as usize].to_vec();
                    at += data.len();
                    Done::Write { offset: offset as usize, data }
                }
                1 => Done::Sync,
                2 => Done::Truncate(offset as usize),
                3 => Done::Unlink,
                4 => Done::SyncFailed,
                other => panic!("no operation {other}"),
            };
            operations.push(Operation { file: file as usize, done, end: at as u64 });
        }
        operations
    }
}

/// Builds the shim once in each run of the tests.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{}.so", std::process::id()));
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]);
        let built = compiler.arg(&library).arg(source).output().expect("a C compiler named cc");
        assert!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        library
    })
}

/// One thing that happened to one of the journal's files.
pub(crate) struct Operation {
    pub(crate) file: usize,
    pub(crate) done: Done,
    /// The length of the record up to and with it.
    pub(crate) end: u64,
}

pub(crate) enum Done {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    Sync,
    Truncate(usize),
    Unlink,
    /// As Linux has it: what was not yet durable is dropped, and a later fsync does not bring it back.
    SyncFailed,
}

/// What a power cut does to what was not fsynced.
pub(crate) enum Loss<'a> {
    /// All of it is gone.
    Everything,
    /// Each sector of 512 bytes, and each truncation, is there or not.
    Some(&'a mut fastrand::Rng),
}

/// The journal's files as a disk holds them.
pub(crate) struct Files([Option<Vec<u8>>; 3]);

const NAMES: [&str; 3] = ["journal.db", "journal.db-wal", "journal.db-journal"];
pub(crate) const DATABASE: usize = 0;

impl Files {
    /// What is left after these operations and a cut. `honest` says of each fsync whether the disk kept its word.
    pub(crate) fn after(operations: &[Operation], mut loss: Loss<'_>, honest: impl Fn(&Operation) -> bool) -> Self {
        let mut files = Self([const { None }; 3]);
        let mut pending: [Vec<&Done>; 3] = [const { Vec::new() }; 3];
        for operation in operations.iter().filter(|operation| operation.file < 3) {
            let (file, waiting) = (&mut files.0[operation.file], &mut pending[operation.file]);
            match &operation.done {
                Done::Sync if honest(operation) => waiting.drain(..).for_each(|done| apply(file, done, |_| true)),
                Done::Sync => {}
                Done::SyncFailed => waiting.clear(),
                Done::Unlink => {
                    waiting.clear();
                    *file = None;
                }
                done => waiting.push(done),
            }
        }
        if let Loss::Some(random) = &mut loss {
            for (file, waiting) in files.0.iter_mut().zip(&pending) {
                waiting.iter().for_each(|done| apply(file, done, |_| random.bool()));
            }
        }
        files
    }

    /// Puts them where a bridge with this configuration looks for them.
    pub(crate) fn write(&self, config: &Config) {
        let dir = config.dir().join("journal");
        fs::create_dir(&dir).unwrap();
        for (content, name) in self.0.iter().zip(NAMES) {
            if let Some(content) = content {
                fs::write(dir.join(name), content).unwrap();
            }
        }
    }
}

/// Does to a file what was done, sector by sector where it is to be kept.
fn apply(file: &mut Option<Vec<u8>>, done: &Done, mut keep: impl FnMut(usize) -> bool) {
    const SECTOR: usize = 512;
    let content = file.get_or_insert_default();
    match done {
        Done::Truncate(length) if keep(*length) => content.resize(*length, 0),
        Done::Write { offset, data } => {
            let mut from = 0;
            while from < data.len() {
                let at = offset + from;
                let to = data.len().min(from + SECTOR - at % SECTOR);
                if keep(at) {
                    content.resize(content.len().max(offset + to), 0);
                    content[at..offset + to].copy_from_slice(&data[from..to]);
                }
                from = to;
            }
        }
        _ => {}
    }
}
