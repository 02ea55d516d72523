//! Reloads files while the bridge runs: certificates, and the secrets that need no restart. The files that a sink's
//! client reads by itself are only checked: a change is logged, with when it takes effect.
//!
//! The files are polled, not watched: a Kubernetes volume replaces a symbolic link somewhere above them, which a watch
//! on a file does not report. A file that cannot be used changes nothing, and is logged once.

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

/// How often the files are checked.
const INTERVAL: Duration = Duration::from_secs(2);

/// The parts of the bridge that use a secret which can be replaced.
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
    /// `access.*` and `applications.*` as they are now.
    access: (access::Settings, access::Applications),
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

/// A file that a sink's client reads by itself.
struct ClientFileState {
    file: ClientFile,
    /// A digest of its content when a change was last logged; not the content, which may be a key.
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
                    tracing::error!(key, fault, "cannot read a file of a sink");
                }
                self.fault = Some(fault);
                return;
            }
        };
        let was_away = self.fault.take().is_some();
        if found == self.logged {
            if was_away {
                tracing::info!(key, "file of a sink is readable again and unchanged");
            }
            return;
        }
        self.logged = found;
        match self.file.reload {
            ReloadPolicy::NextConnection => {
                tracing::info!(key, "file of a sink has changed; the next connection uses it")
            }
            ReloadPolicy::Restart => {
                tracing::warn!(key, "file of a sink has changed; restart the bridge to use it");
            }
        }
    }
}

impl Reload {
    /// `files` are those of secrets and those of the sinks' clients.
    pub(super) fn new(
        certificates: Vec<(&'static str, Certificates)>,
        files: (Vec<SecretFile>, Vec<ClientFile>),
        access: (access::Settings, access::Applications),
        consumers: SecretConsumers,
    ) -> Self {
        // Not what is there now: what has changed since the configuration was read, as while a large journal was opened,
        // is a change like any other.
        let seen = |file: SecretFile| SecretFileState { found: Ok(file.held.clone()), used: file.held.clone(), file };
        let secrets = files.0.into_iter().map(seen).collect();
        let client_files = files.1.into_iter().map(ClientFileState::new).collect();
        Self { certificates, secrets, client_files, access, consumers }
    }

    /// Checks the files periodically; never returns.
    pub(super) async fn run(mut self) {
        loop {
            sleep(INTERVAL).await;
            let checked = spawn_blocking(move || {
                self.check();
                self
            });
            match checked.await {
                Ok(back) => self = back,
                Err(error) => return tracing::error!(%error, "cannot check for renewed files"),
            }
        }
    }

    fn check(&mut self) {
        for (section, certificates) in &mut self.certificates {
            match certificates.renew() {
                Ok(false) => {}
                Ok(true) => tracing::info!(section, "serving the renewed certificate"),
                Err(faults) => {
                    for (key, fault) in faults {
                        let key = format!("{section}.{key}");
                        tracing::error!(
                            key,
                            fault,
                            "cannot load the renewed certificate; still serving the previous one"
                        );
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
            return tracing::info!(key, "secret file holds the secret in use again");
        }
        match found.and_then(|secrets| Ok((self.renew(&key, &secrets)?, secrets))) {
            Ok((true, secrets)) => {
                self.secrets[index].used = secrets;
                tracing::info!(key, "using the renewed secret");
            }
            Ok((false, _)) => tracing::warn!(key, "secret file has changed; restart the bridge to use it"),
            Err(fault) => tracing::error!(key, fault, "cannot use the renewed secret; still using the previous one"),
        }
    }

    /// Replaces a secret in its consumers; `false` if it can only be replaced by a restart.
    fn renew(&mut self, key: &str, secrets: &[Secret]) -> Result<bool, String> {
        let Some(first) = secrets.first().cloned() else { return Ok(false) };
        let (mut access, mut applications) = self.access.clone();
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
            _ if applications.replace_tokens(key, secrets) => {}
            _ => return Ok(false),
        }
        let faults = access.check(&applications).into_iter().map(|(_, fault)| fault);
        if let Some(fault) =
            faults.chain(access.check_applications(&applications).into_iter().map(|(_, fault)| fault)).next()
        {
            return Err(fault);
        }
        self.consumers.intake.access.renew(&access, &applications);
        if let (Some(live), Some(secret)) = (&self.consumers.path_secret, &access.path_secret) {
            live.replace(secret.clone());
        }
        self.access = (access, applications);
        Ok(true)
    }
}
