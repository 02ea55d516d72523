//! A disk that fails on demand, that ends the bridge in the middle of its work, and that remembers what it was asked to
//! make durable: `shim.c` between the bridge and its journal. And a wall clock that can be set.
//!
//! The shim is compiled when it is first needed, with the C compiler that the build needs anyway, and is loaded into
//! the bridge's process alone. It keeps a record of each write, truncation, creation, rename, deletion and fsync of the
//! files in the journal's directory, and of each fsync of the directory, in the order in which they happened;
//! [`Files::after`] plays that back with what a power cut would take left out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::bridge::Config;
use super::eventually;

pub(crate) const EIO: i64 = 5;
pub(crate) const ENOSPC: i64 = 28;
pub(crate) const EROFS: i64 = 30;

/// For as long as it is not healed.
pub(crate) const ALWAYS: i64 = -1;

/// The slots of the control file, as in `shim.c`.
const SLOTS: [&str; 15] = [
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
    "fail of",
    "kill of",
];

/// Which files a fault or a kill is about, as in `shim.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Anything = 0,
    /// The segments' logs, which answers wait for.
    Events,
    /// The state file with its write-ahead log.
    #[allow(dead_code, reason = "only tests with brokers kill there")]
    State,
}

/// Where the bridge is killed by `kill -9`, as in `shim.c`. A truncation, a creation, a rename and a deletion count as
/// writes, of which the kill comes before and not in the middle.
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

    /// Which files the faults that are asked for from now on are about; all of them unless this is called.
    pub(crate) fn only(&self, of: Of) {
        self.set("fail of", of as i64);
    }

    /// The next writes fail, and whatever else changes a file or the directory. Where there is no space, what needs none
    /// does not.
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
        self.kill_at(Of::Anything, step, nth);
    }

    /// The same of some of the files alone.
    pub(crate) fn kill_at(&self, of: Of, step: Step, nth: i64) {
        self.set("kill at", 0);
        self.set("kill of", of as i64);
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

    /// Waits until nothing is written any more, so that what comes next is what the test does.
    pub(crate) fn wait_until_idle(&self) {
        /// Longer than a tick of anything that writes: how far sinks have got is noted once a second.
        const IDLE: Duration = Duration::from_millis(1_300);
        let mut before = (0, Instant::now());
        eventually("the journal is idle", || {
            let now = self.recorded();
            if now != before.0 {
                before = (now, Instant::now());
            }
            before.1.elapsed() >= IDLE
        });
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
            let (op, name, offset, length) = (small(at), small(at + 4) as usize, large(at + 8), large(at + 16));
            at += 24;
            let mut take = |length: usize| {
                at += length;
                bytes[at - length..at].to_vec()
            };
            let text = |bytes| String::from_utf8(bytes).expect("a name in UTF-8");
            let name = text(take(name));
            let done = match op {
                0 => Done::Write { offset: offset as usize, data: take(length as usize) },
                1 => Done::Sync,
                2 => Done::Truncate(offset as usize),
                3 => Done::Unlink,
                4 => Done::SyncFailed,
                5 => Done::Create,
                6 => Done::Rename(text(take(length as usize))),
                7 => Done::Print { lines: take(length as usize).iter().filter(|byte| **byte == b'\n').count() },
                other => panic!("no operation {other}"),
            };
            operations.push(Operation { name, done, end: at as u64 });
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

/// One thing that happened to one of the journal's files, or was printed meanwhile.
#[derive(Debug)]
pub(crate) struct Operation {
    /// The file's name at that moment; that of the directory and of standard output is empty.
    pub(crate) name: String,
    pub(crate) done: Done,
    /// The length of the record up to and with it.
    pub(crate) end: u64,
}

#[derive(Debug)]
pub(crate) enum Done {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    Sync,
    Truncate(usize),
    Create,
    Rename(String),
    Unlink,
    /// As Linux has it: what was not yet durable is dropped, and a later fsync does not bring it back.
    SyncFailed,
    /// Something was written to standard output, which ended so many lines.
    Print {
        lines: usize,
    },
}

/// What a power cut does to what was not fsynced.
pub(crate) enum Loss<'a> {
    /// All of it is gone.
    Everything,
    /// Each sector of 512 bytes, each truncation, and each change of a name is there or not.
    Some(&'a mut fastrand::Rng),
}

/// A file, whatever its name is.
#[derive(Default)]
struct Inode<'a> {
    /// What is durable of it.
    content: Vec<u8>,
    /// What has been done since.
    waiting: Vec<&'a Done>,
}

/// A change of the directory that is not durable yet. The numbers are those of inodes.
enum Change {
    Made(String, usize),
    Renamed(String, String, usize),
    Removed(String, usize),
}

/// The journal's files as a disk holds them, by name.
pub(crate) struct Files(BTreeMap<String, Vec<u8>>);

/// The directory while the record is played back.
#[derive(Default)]
struct Disk<'a> {
    inodes: Vec<Inode<'a>>,
    /// The names as the bridge sees them.
    live: BTreeMap<String, usize>,
    /// The names that are durable.
    durable: BTreeMap<String, usize>,
    changes: Vec<Change>,
}

impl<'a> Disk<'a> {
    /// The file of this name; a name that is new is one of a new file.
    fn inode(&mut self, name: &str) -> usize {
        if let Some(known) = self.live.get(name) {
            return *known;
        }
        let new = self.inodes.len();
        self.inodes.push(Inode::default());
        self.live.insert(name.to_owned(), new);
        self.changes.push(Change::Made(name.to_owned(), new));
        new
    }

    fn apply_change(&mut self, change: Change) {
        match change {
            Change::Made(name, inode) => drop(self.durable.insert(name, inode)),
            Change::Renamed(from, to, inode) => {
                self.remove(&from, inode);
                self.durable.insert(to, inode);
            }
            Change::Removed(name, inode) => self.remove(&name, inode),
        }
    }

    /// Removes a name, unless it is another file's by now.
    fn remove(&mut self, name: &str, inode: usize) {
        if self.durable.get(name) == Some(&inode) {
            self.durable.remove(name);
        }
    }

    /// An fsync of a file: its content is durable, and so is the name under which it was made.
    fn sync_file(&mut self, inode: usize) {
        let Inode { content, waiting } = &mut self.inodes[inode];
        waiting.drain(..).for_each(|done| apply(content, done, |_| true));
        let is_made = |change: &Change| matches!(change, Change::Made(_, made) if *made == inode);
        if let Some(at) = self.changes.iter().position(is_made) {
            let made = self.changes.remove(at);
            self.apply_change(made);
        }
    }

    fn sync_directory(&mut self) {
        std::mem::take(&mut self.changes).into_iter().for_each(|change| self.apply_change(change));
    }

    fn play(&mut self, operation: &'a Operation, is_honest: bool) {
        let name = &operation.name;
        match &operation.done {
            Done::Print { .. } => {}
            Done::Sync if !is_honest => {}
            Done::Sync if name.is_empty() => self.sync_directory(),
            Done::Sync => {
                let inode = self.inode(name);
                self.sync_file(inode);
            }
            // The names of files that were made are not written again by a later fsync of the directory either.
            Done::SyncFailed if name.is_empty() => self.changes.retain(|change| matches!(change, Change::Made(..))),
            Done::SyncFailed => {
                let inode = self.inode(name);
                self.inodes[inode].waiting.clear();
            }
            Done::Create => drop(self.inode(name)),
            Done::Rename(to) => {
                let inode = self.inode(name);
                self.live.remove(name);
                self.live.insert(to.clone(), inode);
                self.changes.push(Change::Renamed(name.clone(), to.clone(), inode));
            }
            Done::Unlink => {
                let inode = self.inode(name);
                self.live.remove(name);
                self.changes.push(Change::Removed(name.clone(), inode));
            }
            done => {
                let inode = self.inode(name);
                self.inodes[inode].waiting.push(done);
            }
        }
    }
}

impl Files {
    /// What is left after these operations and a cut. `honest` says of each fsync whether the disk kept its word.
    pub(crate) fn after(operations: &[Operation], mut loss: Loss<'_>, honest: impl Fn(&Operation) -> bool) -> Self {
        let mut disk = Disk::default();
        operations.iter().for_each(|operation| disk.play(operation, honest(operation)));
        if let Loss::Some(random) = &mut loss {
            for change in std::mem::take(&mut disk.changes) {
                if random.bool() {
                    disk.apply_change(change);
                }
            }
            for Inode { content, waiting } in &mut disk.inodes {
                waiting.drain(..).for_each(|done| apply(content, done, |_| random.bool()));
            }
        }
        let Disk { inodes, durable, .. } = disk;
        Self(durable.into_iter().map(|(name, inode)| (name, inodes[inode].content.clone())).collect())
    }

    /// Puts them where a bridge with this configuration looks for them.
    pub(crate) fn write(&self, config: &Config) {
        let dir = config.dir().join("journal");
        fs::create_dir(&dir).unwrap();
        for (name, content) in &self.0 {
            fs::write(dir.join(name), content).unwrap();
        }
    }
}

/// Does to a file what was done, sector by sector where it is to be kept.
fn apply(content: &mut Vec<u8>, done: &Done, mut keep: impl FnMut(usize) -> bool) {
    const SECTOR: usize = 512;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str, done: Done) -> Operation {
        Operation { name: name.into(), done, end: 0 }
    }

    fn write(name: &str, text: &str) -> Operation {
        operation(name, Done::Write { offset: 0, data: text.as_bytes().to_vec() })
    }

    fn sync(name: &str) -> Operation {
        operation(name, Done::Sync)
    }

    /// What is left of the operations, each name with its content.
    fn left(operations: &[Operation]) -> Vec<(String, String)> {
        let Files(files) = Files::after(operations, Loss::Everything, |_| true);
        files.into_iter().map(|(name, content)| (name, String::from_utf8(content).unwrap())).collect()
    }

    fn files(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
    }

    #[test]
    fn content_and_new_name_are_durable_with_the_fsync_of_the_file() {
        let operations =
            [operation("a", Done::Create), write("a", "one"), sync("a"), write("a", "two"), write("b", "x")];
        assert_eq!(left(&operations[..2]), files(&[]));
        assert_eq!(left(&operations), files(&[("a", "one")]));
    }

    #[test]
    fn renames_and_deletions_are_durable_after_a_directory_fsync() {
        let operations = [
            write("a", "one"),
            sync("a"),
            write("b", "two"),
            sync("b"),
            operation("a", Done::Rename("c".into())),
            operation("b", Done::Unlink),
            write("c", "new"),
            sync("c"),
            sync(""),
        ];
        assert_eq!(left(&operations[..6]), files(&[("a", "one"), ("b", "two")]));
        assert_eq!(left(&operations[..8]), files(&[("a", "new"), ("b", "two")]));
        assert_eq!(left(&operations), files(&[("c", "new")]));
    }

    #[test]
    fn a_file_that_takes_the_place_of_another_has_its_own_content() {
        let operations = [
            write("a", "old"),
            sync("a"),
            operation("a", Done::Unlink),
            write("a", "new"),
            sync(""),
            sync("a"),
            write("b", "other"),
            sync("b"),
            operation("b", Done::Rename("a".into())),
            sync(""),
        ];
        assert_eq!(left(&operations[..4]), files(&[("a", "old")]));
        assert_eq!(left(&operations[..5]), files(&[("a", "")]));
        assert_eq!(left(&operations[..9]), files(&[("a", "new"), ("b", "other")]));
        assert_eq!(left(&operations), files(&[("a", "other")]));
    }

    #[test]
    fn what_a_failed_fsync_has_dropped_does_not_come_back() {
        let failed = operation("a", Done::SyncFailed);
        let operations = [write("a", "one"), sync("a"), write("a", "two"), failed, sync("a"), sync("")];
        assert_eq!(left(&operations), files(&[("a", "one")]));
    }
}
