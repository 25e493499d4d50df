//! Who we are: keys from the options, or from where AWS tools look for them, kept fresh.
//!
//! Order: options; environment; the profile's role; profile files; SSO; web identity; the profile's command; container;
//! instance metadata. With what was found the role of the options is assumed, if they name one.
//! Keys that expire are fetched again before they do, by one caller while the others go on with the old ones; a failure
//! is remembered for some seconds, so a metadata service that is away is not asked by every read.

mod roles;

use self::roles::{ROLE, Roles};
use crate::{
    environment::Environment,
    options::{S3Options, Secret},
    tls,
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use reqsign::{
    Context, Env, HttpSend, ProvideCredential, ProvideCredentialDyn,
    aws::{
        AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider, EnvCredentialProvider,
        IMDSv2CredentialProvider, ProcessCredentialProvider, ProfileCredentialProvider, SSOCredentialProvider,
        StaticCredentialProvider,
    },
};
use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

/// Keys are renewed this long before they expire, if they live long enough.
const EARLY: Duration = Duration::from_secs(300);
/// A failure is not looked into again for this long.
const FAILURE_HOLDS: Duration = Duration::from_secs(3);
/// The longest that looking everywhere may take.
const LOOKING: Duration = Duration::from_secs(8);
/// The longest that one request for keys may take.
const ASKING: Duration = Duration::from_secs(4);
/// The most bytes of an answer to such a request.
const ANSWER: usize = 1 << 20;

/// An access key with its secret.
#[derive(Clone)]
pub struct Keys {
    access_key: String,
    secret_key: Secret,
    token: Option<Secret>,
    renew: Option<SystemTime>,
    expires: Option<SystemTime>,
}

impl Keys {
    /// Keys that do not expire.
    pub fn new(access_key: &str, secret_key: &str, token: Option<&str>) -> Self {
        Self {
            access_key: access_key.to_owned(),
            secret_key: Secret::new(secret_key),
            token: token.map(Secret::new),
            renew: None,
            expires: None,
        }
    }

    fn of(credential: &Credential) -> Self {
        let token = credential.session_token.as_deref().filter(|token| !token.is_empty());
        let mut keys = Self::new(&credential.access_key_id, &credential.secret_access_key, token);
        keys.expires = credential.expires_in.map(|at| at.as_system_time());
        keys.renew = keys.expires.map(|expires| {
            let life = expires.duration_since(SystemTime::now()).unwrap_or_default();
            expires - EARLY.min(life / 4)
        });
        keys
    }

    /// The public part.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret part.
    pub fn secret_key(&self) -> &Secret {
        &self.secret_key
    }

    /// The session token.
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    fn is_fresh(&self) -> bool {
        self.renew.is_none_or(|renew| SystemTime::now() < renew)
    }

    fn is_usable(&self) -> bool {
        self.expires.is_none_or(|expires| SystemTime::now() < expires)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

/// A place where keys may be, with its name.
type Place = (&'static str, Box<dyn ProvideCredentialDyn<Credential = Credential>>);

/// Where keys come from.
pub struct Credentials {
    anonymous: bool,
    providers: Vec<Place>,
    context: Context,
    keys: ArcSwapOption<Keys>,
    renewing: tokio::sync::Mutex<()>,
    failed: Mutex<Option<(Instant, Error)>>,
}

impl Credentials {
    /// The places to look at, as the options and the environment have them; nothing is looked at yet.
    pub fn new(options: &S3Options, environment: &Arc<Environment>, region: &str) -> Result<Self> {
        let context = Context::new()
            .with_file_read(reqsign_files::Files)
            .with_env(Injected(environment.clone()))
            .with_command_execute(reqsign_files::Commands)
            .with_http_send(Sender { environment: environment.clone(), clients: Arc::default() });
        let roles = Roles { environment, context: &context, region };
        let mut providers = providers(options, &roles)?;
        if let Some(role) = &options.role_arn {
            let base = std::mem::take(&mut providers);
            providers.push(("the role to assume", Box::new(roles.assume(role, base))));
        }
        Ok(Self {
            anonymous: options.anonymous,
            providers,
            context,
            keys: ArcSwapOption::empty(),
            renewing: tokio::sync::Mutex::new(()),
            failed: Mutex::new(None),
        })
    }

    /// The keys to sign with; none when requests are not to be signed.
    pub async fn keys(&self) -> Result<Option<Arc<Keys>>> {
        if self.anonymous {
            return Ok(None);
        }
        let known = self.keys.load_full();
        if let Some(keys) = &known
            && keys.is_fresh()
        {
            return Ok(known);
        }
        let usable = known.filter(|keys| keys.is_usable());
        let _turn = match (&usable, self.renewing.try_lock()) {
            (_, Ok(turn)) => turn,
            (Some(_), Err(_)) => return Ok(usable),
            (None, Err(_)) => self.renewing.lock().await,
        };
        if let Some(keys) = self.keys.load_full().filter(|keys| keys.is_fresh()) {
            return Ok(Some(keys));
        }
        if let Some((at, error)) = &*self.failed.lock()
            && at.elapsed() < FAILURE_HOLDS
        {
            return usable.map(Some).ok_or_else(|| error.clone());
        }
        let found = tokio::time::timeout(LOOKING, look(&self.providers, &self.context)).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::TimedOut, format!("no credentials for S3 were found within {LOOKING:?}")))
        });
        match found {
            Ok(credential) => {
                let keys = Arc::new(Keys::of(&credential));
                self.keys.store(Some(keys.clone()));
                Ok(Some(keys))
            }
            Err(error) => {
                *self.failed.lock() = Some((Instant::now(), error.clone()));
                match usable {
                    Some(keys) => {
                        tracing::warn!("going on with keys that expire soon: {error}");
                        Ok(Some(keys))
                    }
                    None => Err(error),
                }
            }
        }
    }

    /// Has the keys fetched again before the next request, because the service said that `stale` are no longer good.
    pub fn renew(&self, stale: &Arc<Keys>) {
        let current = self.keys.load();
        if let Some(current) = &*current
            && Arc::ptr_eq(current, stale)
        {
            self.keys.store(None);
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("anonymous", &self.anonymous).finish_non_exhaustive()
    }
}

fn providers(options: &S3Options, roles: &Roles<'_>) -> Result<Vec<Place>> {
    match (&options.access_key, &options.secret_key) {
        (Some(access), Some(secret)) => {
            let mut given = StaticCredentialProvider::new(access, secret.reveal());
            if let Some(token) = &options.session_token {
                given = given.with_session_token(token.reveal());
            }
            return Ok(vec![("the options", Box::new(given))]);
        }
        (None, None) => {}
        (Some(_), None) => return Err(half("s3a.accessKeyId", "s3a.secretKey")),
        (None, Some(_)) => return Err(half("s3a.secretKey", "s3a.accessKeyId")),
    }
    let mut profile = ProfileCredentialProvider::new();
    let mut sso = SSOCredentialProvider::new();
    let mut process = ProcessCredentialProvider::new();
    if let Some(name) = &options.profile {
        profile = profile.with_profile(name.clone());
        sso = sso.with_profile(name.clone());
        process = process.with_profile(name.clone());
    }
    let mut all: Vec<Place> = Vec::new();
    if options.profile.is_none() {
        all.push(("environment", Box::new(EnvCredentialProvider::new())));
    }
    all.extend(roles.of_profile(options.profile.as_deref()));
    all.push(("profile files", Box::new(profile)));
    all.push(("single sign-on", Box::new(sso)));
    all.push(("web identity", Box::new(AssumeRoleWithWebIdentityCredentialProvider::new())));
    all.push(("command of the profile", Box::new(process)));
    all.push(("container", Box::new(ECSCredentialProvider::new())));
    all.push(("instance metadata", Box::new(IMDSv2CredentialProvider::new())));
    Ok(all)
}

fn half(given: &str, missing: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("{given} is set and {missing} is not; set both or neither"))
}

async fn look(providers: &[Place], context: &Context) -> Result<Credential> {
    let mut failures = Vec::new();
    for (place, provider) in providers {
        match provider.provide_credential_dyn(context).await {
            Ok(Some(found)) if !found.access_key_id.is_empty() && !found.secret_access_key.is_empty() => {
                return Ok(found);
            }
            Ok(_) => {}
            // Only what happened, not the context lines: they may quote an answer.
            Err(error) => {
                failures.push(format!("{place}: {error}"));
                if *place == ROLE {
                    break;
                }
            }
        }
    }
    let seen = if failures.is_empty() { String::new() } else { format!(" ({})", failures.join("; ")) };
    Err(Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "no credentials for S3; set s3a.accessKeyId and s3a.secretKey, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
             a profile, or alluxio.underfs.s3.anonymous=true for a public bucket{seen}"
        ),
    ))
}

/// The providers as one, for what signs its own requests.
struct Chain(Vec<Place>);

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(place, _)| place)).finish()
    }
}

impl ProvideCredential for Chain {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign::Result<Option<Credential>> {
        look(&self.0, context).await.map(Some).map_err(|error| reqsign::Error::config_invalid(error.to_string()))
    }
}

/// The environment that was given instead of that of the process.
#[derive(Debug)]
struct Injected(Arc<Environment>);

impl Env for Injected {
    fn var(&self, name: &str) -> Option<String> {
        self.0.get(name).map(str::to_owned)
    }

    fn vars(&self) -> HashMap<String, String> {
        self.0.variables().clone()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.0.home().cloned()
    }
}

/// Sends the requests for keys, with bounds on time and size.
#[derive(Debug)]
struct Sender {
    environment: Arc<Environment>,
    /// Clients with and without the proxies of the environment, made when first needed.
    clients: Arc<[OnceLock<reqwest::Client>; 2]>,
}

impl Sender {
    fn client(&self, host: &str) -> reqsign::Result<&reqwest::Client> {
        // Metadata services are on this host or next to it, never behind a proxy.
        let near = host.starts_with("169.254.")
            || host.starts_with("127.")
            || matches!(host, "localhost" | "[::1]" | "[fd00:ec2::254]" | "[fd00:ec2::23]");
        let slot = &self.clients[usize::from(near)];
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        tls::install_provider();
        let config = tls::client_config(None, &self.environment)
            .map_err(|error| reqsign::Error::unexpected(error.to_string()))?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .connect_timeout(Duration::from_secs(1))
            .timeout(ASKING)
            .redirect(reqwest::redirect::Policy::none());
        if near {
            builder = builder.no_proxy();
        }
        let client =
            builder.build().map_err(|error| reqsign::Error::unexpected("no HTTP client").with_source(error))?;
        Ok(slot.get_or_init(|| client))
    }

    /// The address of STS that the environment names instead of Amazon's.
    fn redirected(&self, uri: &http::Uri) -> String {
        let sts = uri.host().is_some_and(|host| host.starts_with("sts."));
        match self.environment.get("AWS_ENDPOINT_URL_STS").filter(|_| sts) {
            Some(other) => {
                let path = uri.path_and_query().map_or("/", |path| path.as_str());
                format!("{}{path}", other.trim_end_matches('/'))
            }
            None => uri.to_string(),
        }
    }
}

impl HttpSend for Sender {
    async fn http_send(&self, request: http::Request<Bytes>) -> reqsign::Result<http::Response<Bytes>> {
        let (parts, body) = request.into_parts();
        let url = self.redirected(&parts.uri);
        let away = |error: reqwest::Error| reqsign::Error::unexpected(format!("no answer: {}", error.without_url()));
        let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        let mut answer = self
            .client(&host)?
            .request(parts.method, url)
            .headers(parts.headers)
            .body(body)
            .send()
            .await
            .map_err(away)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            if bytes.len() + chunk.len() > ANSWER {
                return Err(reqsign::Error::unexpected("the answer is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let mut given = http::Response::new(Bytes::from(bytes));
        *given.status_mut() = answer.status();
        Ok(given)
    }
}

mod reqsign_files {
    //! Files and commands for the places that need them.

    use reqsign::{CommandExecute, CommandOutput, FileRead};

    /// Reads files of credentials.
    #[derive(Debug)]
    pub struct Files;

    impl FileRead for Files {
        async fn file_read(&self, path: &str) -> reqsign::Result<Vec<u8>> {
            tokio::fs::read(path).await.map_err(|error| reqsign::Error::config_invalid(format!("{path}: {error}")))
        }
    }

    /// Runs the command that a profile names.
    #[derive(Debug)]
    pub struct Commands;

    impl CommandExecute for Commands {
        async fn command_execute<'a>(
            &'a self,
            program: &'a str,
            args: &'a [&'a str],
        ) -> reqsign::Result<CommandOutput> {
            let run = tokio::process::Command::new(program)
                .args(args)
                .stdin(std::process::Stdio::null())
                .kill_on_drop(true)
                .output();
            let output = run.await.map_err(|error| reqsign::Error::config_invalid(format!("{program}: {error}")))?;
            Ok(CommandOutput {
                status: output.status.code().unwrap_or(-1),
                stdout: output.stdout,
                stderr: output.stderr,
            })
        }
    }
}
