//! Certificates for the tests: a new authority each time, and what it signs, as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// A certificate authority that only the tests trust; its files lie in one directory.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its certificate.
    pub(crate) ca_file: PathBuf,
}

/// A certificate and its key (PKCS #8, not encrypted).
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The certificate.
    pub(crate) cert_file: PathBuf,
    /// The key.
    pub(crate) key_file: PathBuf,
}

impl Authority {
    /// Makes the directory, and in it `ca.pem`.
    pub(crate) fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory of the certificates");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two authorities of one name would make a client try the wrong one's key.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", fastrand::u64(..)));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, certificate.pem()).expect("the authority's certificate");
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), ca_file }
    }

    /// A certificate for servers and clients alike, for one name or address, which is also its common name; valid
    /// for years around today.
    pub(crate) fn issue(&self, name: &str) -> Files {
        self.issue_for(&[name])
    }

    /// The same for several, of which the first is the common name.
    pub(crate) fn issue_for(&self, names: &[&str]) -> Files {
        self.sign(names, names[0], (2020, 2120))
    }

    /// The same, but no longer valid.
    pub(crate) fn issue_expired(&self, name: &str) -> Files {
        self.sign(&[name], &format!("{name}-expired"), (2020, 2021))
    }

    fn sign(&self, names: &[&str], file: &str, years: (i32, i32)) -> Files {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        let files =
            Files { cert_file: self.dir.join(format!("{file}.pem")), key_file: self.dir.join(format!("{file}.key")) };
        std::fs::write(&files.cert_file, certificate.pem()).expect("the certificate");
        std::fs::write(&files.key_file, key.serialize_pem()).expect("the key");
        files
    }
}
