//! What an operator does to a broker: configures it, takes places away, runs a cluster of it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

#[cfg(feature = "kafka")]
use super::kafka;
#[cfg(feature = "nats")]
use super::nats;
#[cfg(feature = "rabbitmq")]
use super::rabbitmq;
use super::{Kind, Own, Place, variable};

impl Own {
    /// Starts a broker with this added to its configuration.
    pub(crate) fn configured(kind: Kind, lines: &str) -> Self {
        let own = Self::stopped(kind);
        own.configure(lines);
        own.run("start");
        own
    }

    /// A broker that is started later; until then a port of its own for a listener with TLS can be asked for.
    pub(crate) fn to_be_secured(kind: Kind) -> Self {
        Self::stopped(kind)
    }

    /// The port of a listener with TLS: of a name that `tests/brokers/broker` knows.
    pub(crate) fn secure_port(&self, name: &str) -> String {
        operate(&self.program, "secure-port", name, self.dir.path(), &[]).trim().to_owned()
    }

    /// A directory that lives as long as the broker.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What is added to its configuration from its next start or reload on.
    pub(crate) fn configure(&self, lines: &str) {
        std::fs::write(self.dir.path().join(format!("{}.conf", self.kind.label())), lines).unwrap();
    }

    /// Runs `rabbitmqctl` on it.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        operate(&self.program, "ctl", self.kind.label(), self.dir.path(), arguments)
    }
}

impl Place {
    /// Takes away all that [`Place::make`] has made, and what is in it.
    pub(crate) fn remove(&self) {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => kafka::remove(self),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => rabbitmq::remove(self),
            #[cfg(feature = "nats")]
            Kind::Nats => nats::remove(self),
        }
    }
}

/// How many nodes a cluster has, and how often it keeps everything.
pub(crate) const NODES: u8 = 3;

/// Three nodes that belong to one test. Ended when dropped.
pub(crate) struct Cluster {
    kind: Kind,
    program: String,
    dir: TempDir,
}

impl Cluster {
    pub(crate) fn start(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-cluster-").tempdir().unwrap();
        let cluster = Self { kind, program: variable("TEST_BROKERS_BIN"), dir };
        operate(&cluster.program, "cluster", kind.label(), cluster.dir.path(), &[]);
        cluster
    }

    /// Runs a command of `tests/brokers/broker` on one node.
    pub(crate) fn run(&self, command: &str, node: u8) -> String {
        self.run_with(command, node, &[])
    }

    fn run_with(&self, command: &str, node: u8, arguments: &[&str]) -> String {
        let name = format!("{}-{node}", self.kind.label());
        operate(&self.program, command, &name, self.dir.path(), arguments).trim().to_owned()
    }

    /// Runs `rabbitmqctl` on one node.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn ctl(&self, node: u8, arguments: &[&str]) -> String {
        self.run_with("ctl", node, arguments)
    }

    /// The address of one node.
    pub(crate) fn address(&self, node: u8) -> String {
        self.run("address", node)
    }

    /// A place on it that every node keeps, reached through any of these nodes.
    pub(crate) fn place(&self, nodes: &[u8]) -> Place {
        let addresses: Vec<String> = nodes.iter().map(|&node| self.address(node)).collect();
        Place { replicas: NODES, ..Place::new(self.kind, addresses.join(",")) }
    }

    /// The node that has this port.
    pub(crate) fn node_of(&self, port: &str) -> u8 {
        let found = (1..=NODES).find(|&node| self.run("port", node) == port);
        found.unwrap_or_else(|| panic!("no node has the port {port}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=NODES {
            self.run("kill", node);
        }
    }
}

fn operate(program: &str, command: &str, name: &str, dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args([command, name]).arg(dir).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(output.status.success(), "{command} {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
