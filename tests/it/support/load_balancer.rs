//! Real load balancers in front of the webhook: HAProxy, which passes TCP or HTTP on, and nginx.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use tempfile::TempDir;

use super::debian;
use super::eventually;
use super::process::{Process, Stdout};

/// Which one, and how it says for whom it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP, with a PROXY protocol header of version 1.
    HaproxyTcpVersion1,
    /// TCP, with a PROXY protocol header of version 2.
    HaproxyTcpVersion2,
    /// HTTP, with `X-Forwarded-For`.
    HaproxyHttp,
    /// HTTP, with `X-Forwarded-For`.
    Nginx,
}

/// A load balancer of one test, with one bridge behind it.
pub(crate) struct LoadBalancer {
    /// Ends with this.
    _process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl LoadBalancer {
    /// Starts it; its health checks ask for `/healthz`.
    pub(crate) fn start(kind: Kind, bridge: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-balancer-").tempdir().unwrap();
        // It cannot say which port it was given, so it is given one that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
        let file = dir.path().join("configuration");
        let mut command = if kind == Kind::Nginx {
            fs::write(&file, nginx(address, bridge, &dir.path().display().to_string())).unwrap();
            let mut command = Command::new(debian::program("nginx", "nginx", "-v"));
            command.arg("-p").arg(dir.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
            command
        } else {
            fs::write(&file, haproxy(kind, address, bridge)).unwrap();
            let mut command = Command::new(debian::program("haproxy", "haproxy", "-v"));
            command.arg("-db").arg("-f").arg(&file);
            command
        };
        command.env_remove("LD_LIBRARY_PATH");
        let process = Process::start(command, Stdout::Read);
        eventually("the load balancer listens", || TcpStream::connect(address).is_ok());
        Self { _process: process, address, _dir: dir }
    }
}

fn haproxy(kind: Kind, address: SocketAddr, bridge: SocketAddr) -> String {
    let (mode, forwarded, header) = match kind {
        Kind::HaproxyTcpVersion1 => ("tcp", "", "send-proxy check-send-proxy"),
        Kind::HaproxyTcpVersion2 => ("tcp", "", "send-proxy-v2 check-send-proxy"),
        _ => ("http", "option forwardfor", ""),
    };
    format!(
        "defaults\n  mode {mode}\n  {forwarded}\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n\
         frontend webhook\n  bind {address}\n  default_backend bridge\n\
         backend bridge\n  option httpchk GET /healthz\n  http-check expect status 200\n  \
         server one {bridge} check inter 100ms fall 1 rise 1 {header}\n"
    )
}

fn nginx(address: SocketAddr, bridge: SocketAddr, dir: &str) -> String {
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {dir}/{name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nevents {{}}\nhttp {{\n  access_log off;\n{paths}  \
         upstream bridge {{ server {bridge}; keepalive 4; }}\n  \
         server {{\n    listen {address};\n    location / {{\n      proxy_pass http://bridge;\n      \
         proxy_http_version 1.1;\n      proxy_set_header Connection '';\n      \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n    }}\n  }}\n}}\n"
    )
}
