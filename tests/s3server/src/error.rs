//! The errors of S3: a code, its status, and the XML body.

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::body::{Body, Response};
use crate::xml::Writer;

macro_rules! codes {
    ($($name:ident = $status:literal,)*) => {
        /// The codes this server answers with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $(#[doc = stringify!($name)] $name,)* }

        impl Code {
            /// The code as it stands in the XML.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)* }
            }

            /// The HTTP status that goes with it.
            pub(crate) fn status(self) -> StatusCode {
                let status = match self { $(Code::$name => $status,)* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    };
}

codes! {
    AccessDenied = 403,
    AuthorizationHeaderMalformed = 400,
    BadDigest = 400,
    BucketAlreadyOwnedByYou = 409,
    BucketNotEmpty = 409,
    EntityTooLarge = 400,
    EntityTooSmall = 400,
    ExpiredToken = 400,
    IncompleteBody = 400,
    InternalError = 500,
    InvalidAccessKeyId = 403,
    InvalidArgument = 400,
    InvalidBucketName = 400,
    InvalidDigest = 400,
    InvalidPart = 400,
    InvalidPartOrder = 400,
    InvalidRange = 416,
    InvalidRequest = 400,
    InvalidToken = 400,
    InvalidURI = 400,
    KeyTooLongError = 400,
    MalformedXML = 400,
    MetadataTooLarge = 400,
    MethodNotAllowed = 405,
    NoSuchBucket = 404,
    NoSuchKey = 404,
    NoSuchUpload = 404,
    NotImplemented = 501,
    NotModified = 304,
    PermanentRedirect = 301,
    PreconditionFailed = 412,
    RequestTimeTooSkewed = 403,
    SignatureDoesNotMatch = 403,
    SlowDown = 503,
    TemporaryRedirect = 307,
    XAmzContentSHA256Mismatch = 400,
}

/// An answer other than success.
#[derive(Clone, Debug)]
pub(crate) struct S3Error(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    elements: Vec<(&'static str, String)>,
}

impl S3Error {
    /// An error with the status of its code.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        S3Error(Box::new(Parts {
            status: code.status(),
            code: code.name(),
            message: message.into(),
            headers: Vec::new(),
            elements: Vec::new(),
        }))
    }

    /// The error for a bare status, with the code S3 uses most for it.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let code = match status.as_u16() {
            301 => Code::PermanentRedirect,
            304 => Code::NotModified,
            307 => Code::TemporaryRedirect,
            400 => Code::InvalidRequest,
            401 | 403 => Code::AccessDenied,
            404 => Code::NoSuchKey,
            405 => Code::MethodNotAllowed,
            412 => Code::PreconditionFailed,
            416 => Code::InvalidRange,
            501 => Code::NotImplemented,
            503 => Code::SlowDown,
            _ => Code::InternalError,
        };
        let mut error = Self::new(code, format!("answered by a fault rule with status {status}"));
        error.0.status = status;
        error
    }

    /// An error with a code that this server does not give by itself.
    pub(crate) fn named(status: StatusCode, code: &'static str) -> Self {
        let mut error = Self::of_status(status);
        error.0.code = code;
        error
    }

    /// An I/O error of the backend.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Self::new(Code::InternalError, format!("{what}: {error}"))
    }

    /// Adds a header to the answer.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Adds an element to the XML body.
    pub(crate) fn element(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.0.elements.push((name, value.into()));
        self
    }

    /// The code, as in the XML.
    pub(crate) fn code(&self) -> &'static str {
        self.0.code
    }

    /// The sentence for people.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// The whole answer. `resource` is the path asked for; a HEAD request gets no body.
    pub(crate) fn response(self, resource: &str, request_id: &str, head: bool) -> Response {
        let parts = *self.0;
        let mut response = if head || parts.status == StatusCode::NOT_MODIFIED {
            Response::new(Body::empty())
        } else {
            let mut xml = Writer::document();
            xml.open("Error");
            xml.text("Code", parts.code);
            xml.text("Message", &parts.message);
            for (name, value) in &parts.elements {
                xml.text(name, value);
            }
            xml.text("Resource", resource);
            xml.text("RequestId", request_id);
            xml.close("Error");
            let mut response = Response::new(Body::from(xml.finish()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            response
        };
        *response.status_mut() = parts.status;
        response.headers_mut().extend(parts.headers);
        response
    }
}
