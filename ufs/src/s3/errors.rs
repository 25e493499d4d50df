//! The one table from what S3 answers to what happened, with what to do about it.

use super::xml::Fault;
use common::{Error, ErrorKind};
use http::StatusCode;

/// A request that failed: the error, and what may be done about it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What the caller is told when nothing helps.
    pub error: Error,
    /// What may help.
    pub remedy: Remedy,
}

/// What may help after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    None,
    /// The same again, a little later.
    Again,
    /// The same again with new credentials.
    Credentials,
    /// The same again in this region.
    Region(String),
}

impl Failure {
    /// A failure that may pass.
    pub fn passing(error: Error) -> Self {
        Self { error, remedy: Remedy::Again }
    }

    /// A failure that stays.
    pub fn lasting(error: Error) -> Self {
        Self { error, remedy: Remedy::None }
    }
}

/// Kind, advice, and whether it may pass, for an S3 error code.
fn by_code(code: &str) -> Option<(ErrorKind, &'static str, bool)> {
    use ErrorKind::*;
    Some(match code {
        "NoSuchBucket" => (NotFound, "there is no such bucket; check its name, the endpoint and the region", false),
        "NoSuchKey" | "NoSuchVersion" => (NotFound, "there is no such object", false),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => (
            PermissionDenied,
            "access is denied; the credentials need s3:ListBucket and s3:GetObject here, to write also s3:PutObject and s3:DeleteObject",
            false,
        ),
        "InvalidAccessKeyId" => {
            (PermissionDenied, "the access key is not known there; check s3a.accessKeyId or AWS_ACCESS_KEY_ID", false)
        }
        "SignatureDoesNotMatch" => {
            (PermissionDenied, "the secret key is wrong; check s3a.secretKey or AWS_SECRET_ACCESS_KEY", false)
        }
        "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" => {
            (PermissionDenied, "the session token is expired or wrong; get new credentials", false)
        }
        "RequestTimeTooSkewed" => (PermissionDenied, "the clock of this host is wrong; set it", false),
        "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            (PermissionDenied, "the bucket lies in another region; set alluxio.underfs.s3.region", false)
        }
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" => {
            (Io, "the bucket lies elsewhere; set alluxio.underfs.s3.region or alluxio.underfs.s3.endpoint", false)
        }
        "InvalidBucketName" => (InvalidArgument, "this is no name of a bucket", false),
        "InvalidRange" => (Stale, "the object is shorter than it was", false),
        "PreconditionFailed" => (Stale, "the object changed meanwhile", false),
        "InvalidObjectState" => (PermissionDenied, "the object is archived; restore it first", false),
        "NoSuchUpload" => (NotFound, "the upload is gone; a rule of the bucket or another client aborted it", false),
        "EntityTooLarge" | "MaxMessageLengthExceeded" => (TooLarge, "the service takes no object of this size", false),
        "MetadataTooLarge" => (InvalidArgument, "the attributes of the object are too long for its metadata", false),
        "QuotaExceeded" | "QuotaExceededException" | "XMinioAdminBucketQuotaExceeded" => {
            (QuotaExceeded, "the quota of the bucket or of the account is used up", false)
        }
        "InsufficientStorage" | "XMinioStorageFull" | "StorageFull" => (NoSpace, "the storage is full", false),
        "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "IncompleteBody" => {
            (Unavailable, "the body arrived damaged", true)
        }
        "ConditionalRequestConflict" => (Unavailable, "another change was under way", true),
        "KeyTooLongError" => (NameTooLong, "the key is too long", false),
        "MethodNotAllowed" | "NotImplemented" => (Unsupported, "the service has no such operation", false),
        "SlowDown" | "ServiceUnavailable" | "RequestLimitExceeded" | "TooManyRequests" | "Busy" => {
            (Unavailable, "the service is overloaded", true)
        }
        "InternalError" | "OperationAborted" => (Unavailable, "the service failed", true),
        "RequestTimeout" => (TimedOut, "the service waited too long for this host", true),
        _ => return None,
    })
}

/// Kind, advice, and whether it may pass, for an HTTP status without a code that is known.
fn by_status(status: StatusCode) -> (ErrorKind, &'static str, bool) {
    use ErrorKind::*;
    match status.as_u16() {
        404 | 410 => (NotFound, "there is no such object or bucket", false),
        401 | 403 => (PermissionDenied, "access is denied; check credentials, region and permissions", false),
        400 => (InvalidArgument, "the request was refused; check region, endpoint and credentials", false),
        405 | 501 => (Unsupported, "the service has no such operation; check the endpoint", false),
        408 => (TimedOut, "the service waited too long for this host", true),
        409 => (Unavailable, "another change was under way", true),
        413 => (TooLarge, "the service takes no object of this size", false),
        507 => (NoSpace, "the storage is full", false),
        412 | 416 => (Stale, "the object changed meanwhile", false),
        429 | 503 => (Unavailable, "the service is overloaded", true),
        500..=599 => (Unavailable, "the service failed", true),
        300..=399 => {
            (Io, "the bucket lies elsewhere; set alluxio.underfs.s3.region or alluxio.underfs.s3.endpoint", false)
        }
        _ => (Io, "the answer makes no sense; check the endpoint", false),
    }
}

/// The failure that an answer with this status means. `region` is the one that the answer names.
pub fn failure(what: &str, status: StatusCode, fault: Option<&Fault>, region: Option<&str>) -> Failure {
    let code = fault.map_or("", |fault| fault.code.as_str());
    let (kind, advice, passes) = by_code(code).unwrap_or_else(|| by_status(status));
    let shown = if code.is_empty() { format!("HTTP {}", status.as_u16()) } else { code.to_owned() };
    // A code that the table lacks is explained by the service alone.
    let said = match fault {
        Some(fault) if by_code(code).is_none() && !fault.message.is_empty() => {
            format!(" ({})", one_line(&fault.message))
        }
        _ => String::new(),
    };
    let error = Error::new(kind, format!("{what}: {advice} [{shown}]{said}"));
    let elsewhere = status.is_redirection() || status == StatusCode::BAD_REQUEST || status == StatusCode::FORBIDDEN;
    let remedy = match (code, region.filter(|_| elsewhere)) {
        ("ExpiredToken" | "TokenRefreshRequired", _) => Remedy::Credentials,
        (_, Some(region)) => Remedy::Region(region.to_owned()),
        _ if passes => Remedy::Again,
        _ => Remedy::None,
    };
    Failure { error, remedy }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: &str) -> Fault {
        Fault { code: code.into(), message: "why\nnot".into(), region: None }
    }

    #[test]
    fn codes_win_over_the_status() {
        for (code, status, kind, remedy) in [
            ("NoSuchBucket", 404, ErrorKind::NotFound, Remedy::None),
            ("SignatureDoesNotMatch", 403, ErrorKind::PermissionDenied, Remedy::None),
            ("ExpiredToken", 400, ErrorKind::PermissionDenied, Remedy::Credentials),
            ("QuotaExceeded", 403, ErrorKind::QuotaExceeded, Remedy::None),
            ("EntityTooLarge", 400, ErrorKind::TooLarge, Remedy::None),
            ("Odd", 507, ErrorKind::NoSpace, Remedy::None),
            ("IncompleteBody", 400, ErrorKind::Unavailable, Remedy::Again),
            ("SlowDown", 503, ErrorKind::Unavailable, Remedy::Again),
            ("PreconditionFailed", 412, ErrorKind::Stale, Remedy::None),
            ("RequestTimeout", 400, ErrorKind::TimedOut, Remedy::Again),
        ] {
            let failure = failure("get x", StatusCode::from_u16(status).unwrap(), Some(&fault(code)), None);
            assert_eq!((failure.error.kind(), failure.remedy), (kind, remedy), "{code}");
            assert!(!failure.error.message().contains('\n'));
        }
    }

    #[test]
    fn the_region_that_is_named_is_tried() {
        let moved = failure("x", StatusCode::MOVED_PERMANENTLY, None, Some("eu-west-1"));
        assert_eq!(moved.remedy, Remedy::Region("eu-west-1".into()));
        let missing = failure("x", StatusCode::NOT_FOUND, None, Some("eu-west-1"));
        assert_eq!(missing.remedy, Remedy::None);
    }

    #[test]
    fn unknown_codes_show_what_the_service_says_on_one_line() {
        let failure = failure("get x", StatusCode::IM_A_TEAPOT, Some(&fault("Odd")), None);
        assert!(failure.error.message().ends_with("[Odd] (why not)"), "{}", failure.error);
    }
}
