//! A real forward proxy (tinyproxy) that asks for a name and a password, and writes down what was asked of it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use tempfile::TempDir;

use super::debian;
use super::eventually;
use super::process::{Process, Stdout};

const USER: &str = "bridge";
const PASSWORD: &str = "canary-proxy";

/// A proxy of one test.
pub(crate) struct ForwardProxy {
    /// Ends with this.
    _process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl ForwardProxy {
    /// Starts it; it passes on connections to any port.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-tinyproxy-").tempdir().unwrap();
        // It cannot say which port it was given, so it is given one that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
        let file = dir.path().join("tinyproxy.conf");
        let log = dir.path().join("log");
        fs::write(
            &file,
            format!(
                "Port {}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nAllow 127.0.0.1\nLogLevel Connect\nLogFile \"{}\"\n\
                 BasicAuth {USER} {PASSWORD}\n",
                address.port(),
                log.display()
            ),
        )
        .unwrap();
        let mut command = Command::new(debian::program("tinyproxy-bin", "tinyproxy", "-v"));
        command.arg("-d").arg("-c").arg(&file);
        let process = Process::start(command, Stdout::Read);
        eventually("the proxy listens", || std::net::TcpStream::connect(address).is_ok());
        Self { _process: process, address, dir }
    }

    /// Its URL, with the name and this password.
    pub(crate) fn url_with(&self, password: &str) -> String {
        format!("http://{USER}:{password}@{}", self.address)
    }

    /// Its URL, with the name and the password that it asks for.
    pub(crate) fn url(&self) -> String {
        self.url_with(PASSWORD)
    }

    /// How many connections it was asked for to this address.
    pub(crate) fn connects(&self, to: SocketAddr) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(&format!("CONNECT {to}"))).count()
    }
}
