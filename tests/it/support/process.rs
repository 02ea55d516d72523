//! A running program: its output, its end, its signals. Killed when dropped.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;

/// Lines as they come out of a pipe.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let filling = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n') {
                let Ok(line) = line else { return };
                filling.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        (lines, reader)
    }

    /// What came so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// How many lines came so far.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// What becomes of the program's standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// It is read as it comes.
    #[default]
    Read,
    /// It is a pipe that nobody reads, until [`Process::read_stdout`].
    Held,
    /// It is a pipe whose reader has gone.
    Closed,
}

/// A running program.
pub(crate) struct Process {
    child: Child,
    stderr: Lines,
    stdout: Lines,
    held: Option<ChildStdout>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

/// A program that has ended, and all that it said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.join("\n")
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.join("\n")
    }
}

/// The program under test: the one that cargo has built, or what `TEST_BRIDGE` names instead.
fn path() -> OsString {
    std::env::var_os("TEST_BRIDGE").unwrap_or_else(|| env!("CARGO_BIN_EXE_sendbird-bridge").into())
}

/// It, with nothing of the environment but what a process needs.
pub(crate) fn program() -> Command {
    bare(Command::new(path()))
}

/// The same, under a limit that a shell sets.
pub(crate) fn limited(limit: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\"")]).arg(path());
    bare(command)
}

/// The same, after a `mount` command that only this process sees, and that goes with it. Needs no privilege where
/// users may make namespaces; where neither is allowed, the program does not start.
pub(crate) fn mounted(mount: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")]);
    command.arg(path());
    bare(command)
}

fn bare(mut command: Command) -> Command {
    command.env_clear();
    for name in ["PATH", "TMPDIR", "HOME"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// Runs the program with arguments to its end.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    let mut command = program();
    command.args(arguments);
    Process::start(command, Stdout::Read).wait()
}

impl Process {
    pub(crate) fn start(mut command: Command, stdout: Stdout) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (stderr, reader) = Lines::read(child.stderr.take().unwrap());
        let held = child.stdout.take();
        let mut process = Self { child, stderr, stdout: Lines::default(), held, readers: vec![reader], ended: None };
        match stdout {
            Stdout::Read => process.read_stdout(),
            Stdout::Held => {}
            Stdout::Closed => process.held = None,
        }
        process
    }

    /// Begins to read standard output, if that was held.
    pub(crate) fn read_stdout(&mut self) {
        if let Some(pipe) = self.held.take() {
            let (lines, reader) = Lines::read(pipe);
            self.stdout = lines;
            self.readers.push(reader);
        }
    }

    pub(crate) fn stdout(&self) -> Lines {
        self.stdout.clone()
    }

    pub(crate) fn stderr(&self) -> Lines {
        self.stderr.clone()
    }

    /// A path as the process sees it.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.child.id(), path.display()))
    }

    /// What the kernel tells of it under this name.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Ends it as a fault of the program would.
    pub(crate) fn abort(self) -> Ended {
        kill_process(Pid::from_child(&self.child), Signal::ABORT).expect("a process to abort");
        self.wait()
    }

    /// Asks it to end, as a service manager does.
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a process to signal");
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a process to interrupt");
    }

    /// The most that it had in memory so far, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The processor time that it has used, in seconds; counted in hundredths.
    #[cfg(feature = "nats")]
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold anything, the 12th and 13th are user and system time.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
    }

    /// Takes the processor away from it, until [`Process::thaw`].
    pub(crate) fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("a process to freeze");
    }

    pub(crate) fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("a process to thaw");
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().unwrap().is_none()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill_9(mut self) -> Ended {
        self.child.kill().expect("a process to kill");
        self.wait()
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Ended {
        self.wait_within(PATIENCE * 2)
    }

    pub(crate) fn wait_within(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the process has not ended within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.ended = Some(status);
        self.held = None;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ended { status, stdout: self.stdout.so_far(), stderr: self.stderr.so_far() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            let lines = self.stderr.so_far();
            let last = lines.len().saturating_sub(40);
            eprintln!("---- standard error of the process, its last lines ----\n{}", lines[last..].join("\n"));
        }
    }
}
