//! Small servers from which clients fetch temporary keys: instance metadata, STS with web identity, container credentials.
//!
//! Each answers on a socket of its own what the real service answers, refuses what that refuses, and counts its requests.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::auth::Credentials;
use crate::body::{Body, Response};
use crate::connection::Connection;
use crate::dates::iso;
use crate::encoding::decode_query;
use crate::listener::{Handler, Listener, Settings};
use crate::request::header as text_header;
use crate::xml::Writer as Xml;

/// Which service is imitated.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The metadata service of an instance, version 2 (tokens required).
    Imds {
        /// Name of the instance's role.
        role: String,
        /// Region, told by `/latest/meta-data/placement/region`.
        region: String,
    },
    /// STS AssumeRoleWithWebIdentity.
    Sts {
        /// The role that must be asked for.
        role_arn: String,
        /// The identity token that must be presented.
        identity_token: String,
    },
    /// The credentials endpoint of a container.
    Container {
        /// The path to ask.
        path: String,
        /// The Authorization header that must be sent.
        authorization: Option<String>,
    },
}

struct State {
    kind: Kind,
    credentials: Mutex<Credentials>,
    failures: Mutex<Option<(u16, u64)>>,
    hang: std::sync::atomic::AtomicBool,
    /// Answers that carried keys.
    issued: AtomicU64,
    requests: AtomicUsize,
    tokens: Mutex<Vec<String>>,
}

/// A running server; dropping it stops it.
pub struct CredentialServer {
    state: Arc<State>,
    listener: Listener,
}

impl CredentialServer {
    /// Starts a server on a free port of 127.0.0.1. Keys without a time of expiry are said to last an hour.
    pub fn start(kind: Kind, credentials: Credentials) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            kind,
            credentials: Mutex::new(credentials),
            failures: Mutex::new(None),
            hang: std::sync::atomic::AtomicBool::new(false),
            issued: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            tokens: Mutex::default(),
        });
        let settings =
            Settings { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0, threads: 1, max_connections: 256, tls: None };
        let listener = Listener::start(settings, state.clone())?;
        Ok(CredentialServer { state, listener })
    }

    /// The endpoint, `http://127.0.0.1:port`; for a container with the path.
    pub fn url(&self) -> String {
        let base = format!("http://{}", self.listener.address());
        match &self.state.kind {
            Kind::Container { path, .. } => base + path,
            _ => base,
        }
    }

    /// Replaces the keys that are given out.
    pub fn set_credentials(&self, credentials: Credentials) {
        *self.state.credentials.lock() = credentials;
    }

    /// The next `times` requests are answered with this HTTP status.
    pub fn fail(&self, status: u16, times: u64) {
        *self.state.failures.lock() = Some((status, times));
    }

    /// Whether requests are left without an answer.
    pub fn hang(&self, hang: bool) {
        self.state.hang.store(hang, Ordering::Relaxed);
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Answers with keys so far.
    pub fn issued(&self) -> u64 {
        self.state.issued.load(Ordering::Relaxed)
    }
}

impl Handler for State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, _connection: Arc<Connection>) -> Response {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if let Some((status, left)) = self.failures.lock().as_mut()
            && *left > 0
        {
            *left -= 1;
            return text(
                StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                "text/plain",
                "fails on demand".into(),
            );
        }
        let (parts, body) = request.into_parts();
        match &self.kind {
            Kind::Imds { role, region } => self.imds(&parts, role, region),
            Kind::Container { path, authorization } => self.container(&parts, path, authorization.as_deref()),
            Kind::Sts { role_arn, identity_token } => {
                let Ok(body) = Limited::new(body, 1 << 20).collect().await else {
                    return text(StatusCode::BAD_REQUEST, "text/plain", "the body cannot be read".into());
                };
                let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                let query = format!("{}&{body}", parts.uri.query().unwrap_or_default());
                self.sts(&query, role_arn, identity_token)
            }
        }
    }
}

impl State {
    fn expiration(credentials: &Credentials) -> String {
        iso(credentials.expires.unwrap_or_else(|| SystemTime::now() + Duration::from_secs(3600)))
    }

    /// The keys as JSON, with fields before them.
    fn json(&self, first: &[(&str, &str)]) -> Response {
        let credentials = self.credentials.lock().clone();
        let expiration = Self::expiration(&credentials);
        let mut fields = first.to_vec();
        fields.extend([
            ("AccessKeyId", credentials.access_key.as_str()),
            ("SecretAccessKey", credentials.secret_key.as_str()),
            ("Token", credentials.session_token.as_deref().unwrap_or_default()),
            ("Expiration", expiration.as_str()),
        ]);
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let fields: Vec<String> =
            fields.iter().map(|(name, value)| format!("\"{name}\":\"{}\"", quote(value))).collect();
        self.issued.fetch_add(1, Ordering::Relaxed);
        text(StatusCode::OK, "application/json", format!("{{{}}}", fields.join(",")))
    }

    fn imds(&self, parts: &Parts, role: &str, region: &str) -> Response {
        const ROLES: &str = "/latest/meta-data/iam/security-credentials";
        let path = parts.uri.path();
        if path == "/latest/api/token" {
            let lasts = text_header(&parts.headers, "x-aws-ec2-metadata-token-ttl-seconds")
                .and_then(|text| text.parse::<u32>().ok());
            let Some(lasts) = lasts.filter(|lasts| (1..=21_600).contains(lasts) && parts.method == Method::PUT) else {
                return text(StatusCode::BAD_REQUEST, "text/plain", "a token needs PUT and a time to live".into());
            };
            let mut tokens = self.tokens.lock();
            let token = format!("imds-token-{}", tokens.len());
            tokens.push(token.clone());
            let mut response = text(StatusCode::OK, "text/plain", token);
            response.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from(lasts));
            return response;
        }
        let token = text_header(&parts.headers, "x-aws-ec2-metadata-token");
        if !token.is_some_and(|token| self.tokens.lock().iter().any(|known| known == token)) {
            return text(StatusCode::UNAUTHORIZED, "text/plain", "a token is required".into());
        }
        match path.strip_prefix(ROLES) {
            Some("" | "/") => text(StatusCode::OK, "text/plain", role.to_owned()),
            Some(asked) if asked.strip_prefix('/') == Some(role) => {
                let now = iso(SystemTime::now());
                self.json(&[("Code", "Success"), ("LastUpdated", now.as_str()), ("Type", "AWS-HMAC")])
            }
            None if path == "/latest/meta-data/placement/region" => {
                text(StatusCode::OK, "text/plain", region.to_owned())
            }
            None if path == "/latest/meta-data/placement/availability-zone" => {
                text(StatusCode::OK, "text/plain", format!("{region}a"))
            }
            _ => text(StatusCode::NOT_FOUND, "text/plain", "not found".into()),
        }
    }

    fn container(&self, parts: &Parts, path: &str, authorization: Option<&str>) -> Response {
        if parts.uri.path() != path {
            return text(StatusCode::NOT_FOUND, "application/json", "{\"message\":\"not found\"}".into());
        }
        if authorization.is_some() && text_header(&parts.headers, "authorization") != authorization {
            return text(
                StatusCode::UNAUTHORIZED,
                "application/json",
                "{\"message\":\"the authorization is wrong\"}".into(),
            );
        }
        self.json(&[("RoleArn", "arn:aws:iam::123456789012:role/container")])
    }

    fn sts(&self, query: &str, role_arn: &str, identity_token: &str) -> Response {
        let pairs = decode_query(query).unwrap_or_default();
        let find = |name: &str| pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let refuse = |code: &str, message: &str| {
            let mut xml = Xml::document();
            xml.open("ErrorResponse");
            xml.open("Error");
            xml.text("Type", "Sender");
            xml.text("Code", code);
            xml.text("Message", message);
            xml.close("Error");
            xml.close("ErrorResponse");
            let status = if code == "AccessDenied" { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
            text(status, "text/xml", xml.finish())
        };
        if find("Action") != Some("AssumeRoleWithWebIdentity") {
            return refuse("InvalidAction", "only AssumeRoleWithWebIdentity is known");
        }
        if find("WebIdentityToken").map(str::trim) != Some(identity_token) {
            return refuse("InvalidIdentityToken", "the identity token is missing or wrong");
        }
        let Some(session) = find("RoleSessionName").filter(|name| !name.is_empty()) else {
            return refuse("ValidationError", "RoleSessionName is missing");
        };
        if find("RoleArn") != Some(role_arn) {
            return refuse("AccessDenied", "not allowed to take this role");
        }
        let credentials = self.credentials.lock().clone();
        let mut xml = Xml::document();
        xml.open("AssumeRoleWithWebIdentityResponse");
        xml.open("AssumeRoleWithWebIdentityResult");
        xml.open("Credentials");
        xml.text("AccessKeyId", &credentials.access_key);
        xml.text("SecretAccessKey", &credentials.secret_key);
        xml.text("SessionToken", credentials.session_token.as_deref().unwrap_or_default());
        xml.text("Expiration", &Self::expiration(&credentials));
        xml.close("Credentials");
        xml.open("AssumedRoleUser");
        xml.text("Arn", &format!("{role_arn}/{session}"));
        xml.text("AssumedRoleId", &format!("AROAEXAMPLE:{session}"));
        xml.close("AssumedRoleUser");
        xml.close("AssumeRoleWithWebIdentityResult");
        xml.close("AssumeRoleWithWebIdentityResponse");
        self.issued.fetch_add(1, Ordering::Relaxed);
        text(StatusCode::OK, "text/xml", xml.finish())
    }
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
