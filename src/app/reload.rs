//! What is read anew while the bridge runs: certificates, and those secrets from files that need no restart. Of what the
//! clients of the sinks read by themselves it only says that it has changed, and when it is taken.
//!
//! The files are looked at, not watched: a volume of Kubernetes swaps a link somewhere above them, which no watch on a
//! file sees. What can't be used changes nothing and is told of once.

use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::access;
use crate::config::{ClientFile, SecretFile};
use crate::domain::secret::{RotatableSecret, Secret};
use crate::http::tls::Certificates;
use crate::pipeline::Intake;
use crate::sink::settings::{ReloadPolicy, read};

/// How long a change may stay unseen.
const INTERVAL: Duration = Duration::from_secs(2);

/// Who uses what is read anew.
pub(super) struct SecretConsumers {
    pub(super) intake: Arc<Intake>,
    pub(super) path_secret: Option<RotatableSecret>,
    pub(super) admin_token: Option<RotatableSecret>,
}

pub(super) struct Reload {
    /// By the section of the configuration that names them.
    certificates: Vec<(&'static str, Certificates)>,
    secrets: Vec<SecretFileState>,
    client_files: Vec<ClientFileState>,
    /// The locks as they are now.
    access: access::Settings,
    consumers: SecretConsumers,
}

/// A file of a secret.
struct SecretFileState {
    file: SecretFile,
    /// What was last found there.
    found: Result<Vec<Secret>, String>,
    /// What is in use.
    used: Vec<Secret>,
}

/// A file that is a client's.
struct ClientFileState {
    file: ClientFile,
    /// A digest of what it held when it was last told of; there may be a key in it.
    logged: Option<Vec<u8>>,
    /// Why it can't be read, if it can't.
    fault: Option<String>,
}

impl ClientFileState {
    fn new(file: ClientFile) -> Self {
        let logged = read(&file.path).ok().map(|bytes| digest(&SHA256, &bytes).as_ref().to_vec());
        Self { file, logged, fault: None }
    }

    fn check(&mut self) {
        let key = &self.file.key;
        let found = match read(&self.file.path) {
            Ok(bytes) => Some(digest(&SHA256, &bytes).as_ref().to_vec()),
            Err(error) => {
                let fault = error.to_string();
                if self.fault.as_ref() != Some(&fault) {
                    tracing::error!(key, fault, "a file of a sink can't be read");
                }
                self.fault = Some(fault);
                return;
            }
        };
        let was_away = self.fault.take().is_some();
        if found == self.logged {
            if was_away {
                tracing::info!(key, "a file of a sink can be read again, and is as it was");
            }
            return;
        }
        self.logged = found;
        match self.file.reload {
            ReloadPolicy::NextConnection => {
                tracing::info!(key, "a file of a sink has changed; its next connection reads it")
            }
            ReloadPolicy::Restart => {
                tracing::warn!(
                    key,
                    "a file of a sink has changed; a client that has connected takes it after a restart"
                );
            }
        }
    }
}

impl Reload {
    /// `files` are those of secrets and those of the sinks' clients.
    pub(super) fn new(
        certificates: Vec<(&'static str, Certificates)>,
        files: (Vec<SecretFile>, Vec<ClientFile>),
        access: access::Settings,
        consumers: SecretConsumers,
    ) -> Self {
        // Not what is there now: what has changed since the configuration was read, as while a large journal was opened,
        // is a change like any other.
        let seen = |file: SecretFile| SecretFileState { found: Ok(file.held.clone()), used: file.held.clone(), file };
        let secrets = files.0.into_iter().map(seen).collect();
        let client_files = files.1.into_iter().map(ClientFileState::new).collect();
        Self { certificates, secrets, client_files, access, consumers }
    }

    /// Looks every now and then, for ever.
    pub(super) async fn run(mut self) {
        loop {
            sleep(INTERVAL).await;
            let checked = spawn_blocking(move || {
                self.check();
                self
            });
            match checked.await {
                Ok(back) => self = back,
                Err(error) => return tracing::error!(%error, "cannot look for renewed files"),
            }
        }
    }

    fn check(&mut self) {
        for (section, certificates) in &mut self.certificates {
            match certificates.renew() {
                Ok(false) => {}
                Ok(true) => tracing::info!(section, "a renewed certificate is shown from now on"),
                Err(faults) => {
                    for (key, fault) in faults {
                        let key = format!("{section}.{key}");
                        tracing::error!(key, fault, "a renewed certificate can't be used; the one before is shown on");
                    }
                }
            }
        }
        for index in 0..self.secrets.len() {
            self.check_secret(index);
        }
        self.client_files.iter_mut().for_each(ClientFileState::check);
    }

    fn check_secret(&mut self, index: usize) {
        let seen = &mut self.secrets[index];
        let found = seen.file.read();
        if found == seen.found {
            return;
        }
        seen.found = found.clone();
        let key = seen.file.key.clone();
        if found.as_ref() == Ok(&seen.used) {
            return tracing::info!(key, "a secret is again the one in use");
        }
        match found.and_then(|secrets| Ok((self.renew(&key, &secrets)?, secrets))) {
            Ok((true, secrets)) => {
                self.secrets[index].used = secrets;
                tracing::info!(key, "a renewed secret is in use");
            }
            Ok((false, _)) => tracing::warn!(key, "a secret has changed and is used after a restart"),
            Err(fault) => tracing::error!(key, fault, "a renewed secret can't be used; the one before still holds"),
        }
    }

    /// Hands a secret to its users; `false` if they take none while they run.
    fn renew(&mut self, key: &str, secrets: &[Secret]) -> Result<bool, String> {
        let Some(first) = secrets.first().cloned() else { return Ok(false) };
        let mut access = self.access.clone();
        match (key, &mut access.header) {
            ("admin.token", _) => {
                if let Some(token) = &self.consumers.admin_token {
                    token.replace(first);
                }
                return Ok(true);
            }
            ("access.api_tokens", _) => access.api_tokens = secrets.to_vec(),
            ("access.path_secret", _) => access.path_secret = Some(first),
            ("access.header.value", Some(header)) => header.value = first,
            _ => return Ok(false),
        }
        if let Some((_, fault)) = access.check().into_iter().next() {
            return Err(fault);
        }
        self.consumers.intake.access.renew(&access);
        if let (Some(live), Some(secret)) = (&self.consumers.path_secret, &access.path_secret) {
            live.replace(secret.clone());
        }
        self.access = access;
        Ok(true)
    }
}
