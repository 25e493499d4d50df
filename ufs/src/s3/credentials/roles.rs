//! Roles: the one that the options name, and the one that a profile of the AWS configuration file names.
//!
//! A profile with `role_arn` says whose keys ask for the role: those of another profile (`source_profile`, which may have
//! a role itself), of the environment, the container or the instance (`credential_source`), or an identity token
//! (`web_identity_token_file`). What is wrong with a profile is reported when its turn comes, not before: keys that are
//! found earlier do not need it.

use super::{Chain, Place};
use crate::environment::Environment;
use parking_lot::Mutex;
use reqsign::{
    Context, ProvideCredential, ProvideCredentialDyn, Signer,
    aws::{
        AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
        EnvCredentialProvider, IMDSv2CredentialProvider, ProcessCredentialProvider, ProfileCredentialProvider,
        RequestSigner, SSOCredentialProvider,
    },
};
use std::{path::PathBuf, sync::Arc};

/// The name of the place that is a profile's role. When it fails no other place is looked at: the user wants that role.
pub const ROLE: &str = "role of the profile";
/// How the sessions are called that nobody names.
const SESSION: &str = "alluxio";
/// Profiles that may follow each other.
const LONGEST: usize = 8;

/// Makes providers of roles.
pub struct Roles<'a> {
    /// Where profiles are found.
    pub environment: &'a Environment,
    /// Sends the requests to STS.
    pub context: &'a Context,
    /// The region whose STS is asked.
    pub region: &'a str,
}

impl Roles<'_> {
    /// The role `arn`, asked for with the keys of `base`.
    pub fn assume(&self, arn: &str, base: Vec<Place>) -> Assumed {
        let why = Arc::default();
        let keys = Asking { chain: Chain(base), why: Arc::clone(&why) };
        let signer = Signer::new(self.context.clone(), keys, RequestSigner::new("sts", self.region));
        let role = AssumeRoleCredentialProvider::new(arn.to_owned(), signer)
            .with_region(self.region.to_owned())
            .with_regional_sts_endpoint()
            .with_role_session_name(SESSION.to_owned());
        Assumed { role, why }
    }

    /// The role of a profile (none: `AWS_PROFILE`, else `default`), if it has one.
    pub fn of_profile(&self, profile: Option<&str>) -> Option<Place> {
        let profile = profile.or_else(|| self.environment.get("AWS_PROFILE")).unwrap_or("default");
        self.role(profile, &mut Vec::new())
    }

    fn role(&self, profile: &str, seen: &mut Vec<String>) -> Option<Place> {
        let setting = |name: &str| self.environment.profile_setting(Some(profile), name);
        let arn = setting("role_arn")?;
        let provider: Box<dyn ProvideCredentialDyn<Credential = Credential>> = match self.base(profile, seen) {
            Ok(Base::Places(base)) => {
                let Assumed { mut role, why } = self.assume(&arn, base);
                if let Some(name) = setting("role_session_name") {
                    role = role.with_role_session_name(name);
                }
                if let Some(id) = setting("external_id") {
                    role = role.with_external_id(id);
                }
                if let Some(seconds) = setting("duration_seconds").and_then(|seconds| seconds.parse().ok()) {
                    role = role.with_duration_seconds(seconds);
                }
                Box::new(Assumed { role, why })
            }
            Ok(Base::Token(file)) => Box::new(
                AssumeRoleWithWebIdentityCredentialProvider::new()
                    .with_role_arn(arn)
                    .with_web_identity_token_file(PathBuf::from(file))
                    .with_role_session_name(setting("role_session_name").unwrap_or_else(|| SESSION.to_owned())),
            ),
            Err(why) => Box::new(Wrong(format!("the profile {profile} {why}"))),
        };
        Some((ROLE, provider))
    }

    /// Whose keys ask for the role of `profile`.
    fn base(&self, profile: &str, seen: &mut Vec<String>) -> Result<Base, String> {
        let setting = |name: &str| self.environment.profile_setting(Some(profile), name);
        if seen.len() >= LONGEST || seen.iter().any(|before| before == profile) {
            return Err("is its own source; source_profile must lead to a profile with keys".to_owned());
        }
        seen.push(profile.to_owned());
        match (setting("source_profile"), setting("credential_source"), setting("web_identity_token_file")) {
            (Some(source), None, None) => Ok(Base::Places(self.keys_of(&source, profile, seen))),
            (None, Some(source), None) => Ok(Base::Places(vec![match source.as_str() {
                "Environment" => ("environment", Box::new(EnvCredentialProvider::new())),
                "EcsContainer" => ("container", Box::new(ECSCredentialProvider::new())),
                "Ec2InstanceMetadata" => ("instance metadata", Box::new(IMDSv2CredentialProvider::new())),
                _ => return Err(format!("has a credential_source that is not known ({source})")),
            }])),
            (None, None, Some(file)) => Ok(Base::Token(file)),
            (None, None, None) => Err("has a role_arn and no source_profile or credential_source".to_owned()),
            _ => Err("has more than one of source_profile, credential_source and web_identity_token_file".to_owned()),
        }
    }

    /// The keys of the profile `source`, for the role of `profile`.
    fn keys_of(&self, source: &str, profile: &str, seen: &mut Vec<String>) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        // A profile that is its own source has keys beside its role.
        if source != profile {
            places.extend(self.role(source, seen));
        }
        if places.is_empty() {
            places.push(("profile files", Box::new(ProfileCredentialProvider::new().with_profile(source))));
            places.push(("single sign-on", Box::new(SSOCredentialProvider::new().with_profile(source))));
            places.push(("command of the profile", Box::new(ProcessCredentialProvider::new().with_profile(source))));
        }
        places
    }
}

/// Keys to ask for a role with. Why there are none is kept: what signs the request does not tell.
#[derive(Debug)]
struct Asking {
    chain: Chain,
    why: Arc<Mutex<Option<String>>>,
}

impl ProvideCredential for Asking {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign::Result<Option<Credential>> {
        let found = self.chain.provide_credential(context).await;
        *self.why.lock() = found.as_ref().err().map(ToString::to_string);
        found
    }
}

/// A role.
#[derive(Debug)]
pub struct Assumed {
    role: AssumeRoleCredentialProvider,
    why: Arc<Mutex<Option<String>>>,
}

impl ProvideCredential for Assumed {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign::Result<Option<Credential>> {
        let found = self.role.provide_credential(context).await;
        let why = self.why.lock().take();
        match (found, why) {
            (Err(_), Some(why)) => Err(reqsign::Error::config_invalid(format!("no keys to ask for it with: {why}"))),
            (found, _) => found,
        }
    }
}

/// What a role is asked for with.
enum Base {
    Places(Vec<Place>),
    /// A file with an identity token.
    Token(String),
}

/// Says what is wrong with a profile.
#[derive(Debug)]
struct Wrong(String);

impl ProvideCredential for Wrong {
    type Credential = Credential;

    async fn provide_credential(&self, _context: &Context) -> reqsign::Result<Option<Credential>> {
        Err(reqsign::Error::config_invalid(self.0.clone()))
    }
}
