//! Authentication of deliveries: signature, path secret, secret header, allowed networks and applications.
//!
//! Sendbird documents signatures for its chat product and not for Calls. So the methods can be used alone or
//! together, and the bridge starts only with at least one. Anything ambiguous (an address that cannot be read, a
//! header that is not text) is rejected.
//!
//! A delivery passes in two steps that the types keep in order: [`Access::admit`] looks at the head
//! before a byte of the body is read, [`Access::verify`] at the signature over the raw body.

mod applications;
mod rate;
mod settings;

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use warp::http::{HeaderMap, HeaderName};

use self::applications::Tokens;
pub use self::applications::{Application, Applications};
use self::rate::{Rate, RateLimiter};
pub use self::settings::{Network, SecretHeader, Settings, SignatureMode};
use crate::domain::secret::RotatableSecret;

/// Where proxies write whom they speak for.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Why a delivery is rejected before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its source address is in none of the networks.
    Network,
    /// Its source address sends too many.
    TooMany,
    /// The secret header is missing or wrong.
    Header,
    /// No signature header.
    SignatureMissing,
    /// No key makes this signature of this body.
    SignatureWrong,
    /// Its application is not allowed.
    Application,
    /// The token that has signed it does not sign for its application.
    ApplicationToken,
    /// Its application sends too many.
    ApplicationRate,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address: that of the socket, or the one that a trusted proxy has given.
    pub address: IpAddr,
    /// Where the address was found, in words.
    pub found: &'static str,
}

impl Peer {
    /// The peer of a socket.
    pub fn of_socket(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), found: "peer" }
    }
}

/// The proxies that are trusted.
#[derive(Clone, Debug)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Those of `access.trusted_proxies`.
    pub fn new(settings: &Settings) -> Self {
        Self(settings.trusted_proxies.iter().map(Network::net).collect())
    }

    /// Whose connection this is, once it has begun with a PROXY protocol header that names `client`.
    pub fn introduce(&self, peer: Peer, client: Option<IpAddr>) -> Peer {
        match client {
            Some(client) if self.contains(peer.address) => {
                Peer { address: client.to_canonical(), found: "PROXY protocol" }
            }
            Some(_) => {
                let found = "peer; it is not in access.trusted_proxies, so its PROXY protocol header does not count";
                Peer { found, ..peer }
            }
            None => peer,
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        contains(&self.0, address)
    }
}

/// The head of a delivery that passed; proof that the body may be read.
#[derive(Debug)]
pub struct Admitted {
    signature: Signature,
}

#[derive(Debug)]
enum Signature {
    Unchecked,
    /// All values of all signature headers; one must be right.
    ToVerify(Vec<Bytes>),
}

/// The raw body of a delivery that passed every check except that of its application.
pub struct Verified {
    body: Bytes,
    /// Those that it was verified with, and which of them has signed it, if any has.
    tokens: Arc<Tokens>,
    signer: Option<usize>,
}

impl Verified {
    /// The bytes as they came.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// The configured checks, ready to use.
pub struct Access {
    mode: SignatureMode,
    tokens: ArcSwap<Tokens>,
    signature_headers: Vec<HeaderName>,
    header: Option<(HeaderName, RotatableSecret)>,
    networks: Vec<IpNet>,
    trusted_proxies: TrustedProxies,
    applications: Vec<String>,
    rate: Option<RateLimiter>,
    application_rates: Vec<(String, Rate)>,
}

impl Access {
    /// Builds the checks from settings that [`Settings::check`] and [`Settings::check_applications`] found no fault with;
    /// header names that are none are left out.
    pub fn new(settings: &Settings, applications: &Applications) -> Self {
        let unsigned = settings.open && !settings.has_tokens(applications);
        let now = Instant::now();
        let parse = |name: &String| HeaderName::from_str(name).ok();
        Self {
            mode: if unsigned { SignatureMode::Off } else { settings.signature },
            tokens: ArcSwap::from_pointee(Tokens::new(&settings.api_tokens, applications)),
            signature_headers: settings.signature_headers.iter().filter_map(parse).collect(),
            header: settings
                .header
                .as_ref()
                .and_then(|header| Some((parse(&header.name)?, RotatableSecret::new(header.value.clone())))),
            networks: settings.networks.iter().map(Network::net).collect(),
            trusted_proxies: TrustedProxies::new(settings),
            applications: settings.applications.clone(),
            rate: settings.rate_per_source.map(|rate| RateLimiter::new(rate, now)),
            application_rates: applications.rates().map(|(id, rate)| (id.clone(), Rate::new(rate, now))).collect(),
        }
    }

    /// Takes the tokens and the header's value of these settings for its own, from the next delivery on. Nothing else of
    /// them counts.
    pub fn renew(&self, settings: &Settings, applications: &Applications) {
        self.tokens.store(Arc::new(Tokens::new(&settings.api_tokens, applications)));
        if let (Some((_, secret)), Some(header)) = (&self.header, &settings.header) {
            secret.replace(header.value.clone());
        }
    }

    /// Whether the head carries a signature, right or wrong; for the metric that tells an operator
    /// whether his deliveries are signed.
    pub fn is_signed(&self, headers: &HeaderMap) -> bool {
        self.signature_headers.iter().any(|name| headers.contains_key(name))
    }

    /// Checks what can be checked before the body: network, rate, secret header, presence of a signature.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn admit(&self, peer: IpAddr, headers: &HeaderMap) -> Result<Admitted, Denied> {
        if !self.networks.is_empty() || self.rate.is_some() {
            let (source, _) = self.source(peer, headers);
            if !self.networks.is_empty() && !source.is_some_and(|source| contains(&self.networks, source)) {
                return Err(Denied::Network);
            }
            let within = |rate: &RateLimiter| rate.allows(source.unwrap_or(peer), Instant::now());
            if !self.rate.as_ref().is_none_or(within) {
                return Err(Denied::TooMany);
            }
        }
        if let Some((name, secret)) = &self.header
            && !headers.get_all(name).iter().any(|value| secret.equals(value.as_bytes()))
        {
            return Err(Denied::Header);
        }
        if self.mode == SignatureMode::Off {
            return Ok(Admitted { signature: Signature::Unchecked });
        }
        let values: Vec<Bytes> = self
            .signature_headers
            .iter()
            .flat_map(|name| headers.get_all(name))
            .map(|value| Bytes::copy_from_slice(value.as_bytes()))
            .collect();
        match (values.is_empty(), self.mode) {
            (true, SignatureMode::Required) => Err(Denied::SignatureMissing),
            (true, _) => Ok(Admitted { signature: Signature::Unchecked }),
            (false, _) => Ok(Admitted { signature: Signature::ToVerify(values) }),
        }
    }

    /// Checks the signature over the raw bytes, before anything looks into them.
    ///
    /// # Errors
    /// [`Denied::SignatureWrong`].
    pub fn verify(&self, admitted: Admitted, body: Bytes) -> Result<Verified, Denied> {
        let tokens = self.tokens.load_full();
        let signer = match admitted.signature {
            Signature::Unchecked => None,
            Signature::ToVerify(values) => {
                let signer = values.iter().find_map(|value| tokens.signer(&body, value));
                Some(signer.ok_or(Denied::SignatureWrong)?)
            }
        };
        Ok(Verified { body, tokens, signer })
    }

    /// Checks the application that a verified delivery names: whether the token that has signed it signs for this one,
    /// whether it is allowed, and its rate. IDs are compared ignoring case.
    ///
    /// # Errors
    /// [`Denied::ApplicationToken`]; [`Denied::SignatureMissing`], where an application has tokens and nobody has signed;
    /// [`Denied::Application`], also when there is a list and the delivery names none; [`Denied::ApplicationRate`].
    pub fn check_application(&self, verified: &Verified, application_id: Option<&str>) -> Result<(), Denied> {
        verified.tokens.check_signer(verified.signer, application_id)?;
        let is_named = |id: &String| application_id.is_some_and(|named| id.eq_ignore_ascii_case(named));
        if !self.applications.is_empty() && !self.applications.iter().any(is_named) {
            return Err(Denied::Application);
        }
        let rate = self.application_rates.iter().find(|(id, _)| is_named(id));
        if rate.is_some_and(|(_, rate)| !rate.allows(Instant::now())) {
            return Err(Denied::ApplicationRate);
        }
        Ok(())
    }

    /// The address that a delivery is judged by, and where it was found, for the log.
    pub fn describe_source(&self, peer: Peer, headers: &HeaderMap) -> (Option<IpAddr>, String) {
        let (source, hop) = self.source(peer.address, headers);
        let found = match (source, hop) {
            (None, hop) => format!("{FORWARDED_FOR}: entry {hop} from the end, which is no address"),
            (Some(address), 0) if headers.contains_key(FORWARDED_FOR) && !self.trusted_proxies.contains(address) => {
                format!("{}; it is not in access.trusted_proxies, so its {FORWARDED_FOR} does not count", peer.found)
            }
            (Some(_), 0) => peer.found.into(),
            (Some(_), hop) => format!("{FORWARDED_FOR}: entry {hop} from the end"),
        };
        (source, found)
    }

    /// The address that the delivery comes from: the peer's, or, behind trusted proxies, the last one in
    /// X-Forwarded-For that none of them wrote about itself. `None` when that can't be read. With it, which entry of
    /// that header it is, counted from the end; 0 for the peer.
    fn source(&self, peer: IpAddr, headers: &HeaderMap) -> (Option<IpAddr>, usize) {
        let (mut source, mut hop) = (peer.to_canonical(), 0);
        if !self.trusted_proxies.contains(source) {
            return (Some(source), hop);
        }
        // Several headers are one list in the order in which they stand.
        let lists = headers.get_all(FORWARDED_FOR).iter().rev().map(|value| value.to_str().unwrap_or("?"));
        let entries = lists.flat_map(|list| list.rsplit(',')).map(str::trim);
        // RFC 9110, 5.6.1: empty elements of a list do not count.
        for entry in entries.filter(|entry| !entry.is_empty()) {
            hop += 1;
            let Some(address) = address(entry) else { return (None, hop) };
            source = address;
            if !self.trusted_proxies.contains(source) {
                break;
            }
        }
        (Some(source), hop)
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// An address as proxies write it: bare, with a port, or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let parsed = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<std::net::SocketAddr>().map(|socket| socket.ip()))
        .or_else(|_| text.trim_start_matches('[').trim_end_matches(']').parse());
    parsed.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sendbird::signature::sign;
    use warp::http::HeaderValue;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn access(toml: &str) -> Access {
        use figment::providers::{Format, Toml};
        let settings = figment::Figment::from(Toml::string(toml)).extract().unwrap();
        Access::new(&settings, &Applications::default())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn deliver(access: &Access, headers: &HeaderMap, body: &'static str) -> Result<(), Denied> {
        let admitted = access.admit(PEER, headers)?;
        access.verify(admitted, Bytes::from_static(body.as_bytes())).map(drop)
    }

    #[test]
    fn any_of_several_tokens_and_headers_is_accepted() {
        let access = access("api_tokens = ['new', 'old']\nsignature_headers = ['x-a', 'X-B']");
        for token in ["new", "old"] {
            let signature = sign(token, b"body");
            for name in ["x-a", "x-b"] {
                assert_eq!(deliver(&access, &headers(&[(name, &signature)]), "body"), Ok(()));
            }
            assert_eq!(deliver(&access, &headers(&[("x-a", &signature)]), "Body"), Err(Denied::SignatureWrong));
            assert_eq!(deliver(&access, &headers(&[("x-c", &signature)]), "body"), Err(Denied::SignatureMissing));
        }
        let stranger = sign("stranger", b"body");
        assert_eq!(deliver(&access, &headers(&[("x-a", &stranger)]), "body"), Err(Denied::SignatureWrong));
        assert_eq!(deliver(&access, &headers(&[("x-a", "")]), "body"), Err(Denied::SignatureWrong));
    }

    #[test]
    fn if_present_refuses_only_wrong_ones() {
        let access = access("signature = 'if-present'\napi_tokens = ['t']\npath_secret = 's'");
        assert_eq!(deliver(&access, &headers(&[]), "body"), Ok(()));
        let wrong = headers(&[("x-sendbird-signature", "00")]);
        assert_eq!(deliver(&access, &wrong, "body"), Err(Denied::SignatureWrong));
    }

    #[test]
    fn the_secret_header_must_be_right() {
        let access = access("signature = 'off'\nheader = { name = 'X-Key', value = 'k' }");
        assert_eq!(deliver(&access, &headers(&[("x-key", "k")]), ""), Ok(()));
        assert_eq!(deliver(&access, &headers(&[("x-key", "K")]), ""), Err(Denied::Header));
        assert_eq!(deliver(&access, &headers(&[]), ""), Err(Denied::Header));
    }

    #[test]
    fn the_source_is_found_behind_trusted_proxies_only() {
        let of = |networks: &str, forwarded: &[&str]| {
            let toml = format!("signature = 'off'\nnetworks = ['203.0.113.0/24', '2001:db8::/32']\n{networks}");
            let pairs: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
            deliver(&access(&toml), &headers(&pairs), "")
        };
        let trusting = "trusted_proxies = ['10.0.0.0/8']";
        assert_eq!(of("", &["203.0.113.9"]), Err(Denied::Network), "a stranger's header is not trusted");
        assert_eq!(of(trusting, &["203.0.113.9"]), Ok(()));
        assert_eq!(of(trusting, &["203.0.113.9:5000, 10.2.3.4"]), Ok(()));
        assert_eq!(of(trusting, &["198.51.100.1", "[2001:db8::1]:443"]), Ok(()));
        assert_eq!(of(trusting, &["203.0.113.9, 198.51.100.1"]), Err(Denied::Network), "the last hop counts");
        assert_eq!(of(trusting, &["203.0.113.9, nonsense"]), Err(Denied::Network));
        assert_eq!(of(trusting, &[]), Err(Denied::Network));
        assert_eq!(of(trusting, &["::ffff:203.0.113.9"]), Ok(()), "a mapped address is the same address");
    }

    #[test]
    fn applications_are_compared_ignoring_case() {
        let access = access("signature = 'off'\napplications = ['ABC']");
        let check = |application| {
            let admitted = access.admit(PEER, &headers(&[]))?;
            access.check_application(&access.verify(admitted, Bytes::new())?, application)
        };
        assert_eq!(check(Some("abc")), Ok(()));
        assert_eq!(check(Some("abd")), Err(Denied::Application));
        assert_eq!(check(None), Err(Denied::Application));
    }

    #[test]
    fn a_source_that_sends_too_many_is_told_so() {
        let access = access("signature = 'off'\nrate_per_source = 3");
        let results: Vec<_> = (0..5).map(|_| deliver(&access, &headers(&[]), "")).collect();
        assert_eq!(results[..3], [Ok(()); 3]);
        assert_eq!(results[4], Err(Denied::TooMany));
        assert!(access.admit("10.0.0.2".parse().unwrap(), &headers(&[])).is_ok(), "others are not held up");
    }

    #[test]
    fn a_sender_with_an_ipv6_network_is_one_source() {
        let access = access("signature = 'off'\nrate_per_source = 3");
        let from = |host: u16| access.admit(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]), &headers(&[])).is_ok();
        assert_eq!((0..50).filter(|host| from(*host)).count(), 3);
    }
}
