//! From a request to its answer: counting, faults, authentication, dispatch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::RwLock;

use crate::auth::{Credentials, Payload, verify};
use crate::body::{Bend, Body, Response};
use crate::bucket::{Buckets, valid};
use crate::connection::{Connection, End};
use crate::counters::{Counters, Record};
use crate::dates::iso;
use crate::error::{Code, S3Error};
use crate::faults::{Action, Faults};
use crate::listener::Handler;
use crate::multipart::Uploads;
use crate::operation::Operation;
use crate::request::{Target, header as text_header};
use crate::xml::Writer as Xml;
use crate::{control, copy, list, object};

const REGION_HEADER: HeaderName = HeaderName::from_static("x-amz-bucket-region");
const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Everything the connections share.
pub(crate) struct Service {
    pub(crate) buckets: Buckets,
    pub(crate) uploads: Uploads,
    pub(crate) counters: Arc<Counters>,
    pub(crate) faults: Faults,
    pub(crate) credentials: RwLock<Arc<Vec<Credentials>>>,
    /// Checked against signatures when set.
    pub(crate) region: Option<String>,
    pub(crate) domain: Option<String>,
    pub(crate) page_limit: usize,
    /// Microseconds added to each answer.
    pub(crate) latency: AtomicU64,
    /// Whether requests below `/-/` are for [`control`].
    pub(crate) control: bool,
    pub(crate) requests: AtomicU64,
}

impl Handler for Service {
    fn connected(&self) {
        self.counters.connection();
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, connection: Arc<Connection>) -> Response {
        let (parts, mut body) = request.into_parts();
        if self.control
            && let Some(command) = parts.uri.path().strip_prefix("/-/")
        {
            return control::answer(&self, command, parts.uri.query().unwrap_or_default());
        }
        let id = format!("{:016X}", self.requests.fetch_add(1, Ordering::Relaxed));
        let target = Target::of(&parts, &self.buckets, self.domain.as_deref());
        let operation = target.as_ref().map_or(Operation::Unknown, |target| target.operation);
        let active = self.counters.begin(operation, || Record {
            operation,
            method: parts.method.to_string(),
            bucket: target.as_ref().map_or_else(|_| String::new(), |target| target.bucket.clone()),
            key: target.as_ref().map_or_else(|_| parts.uri.path().to_owned(), |target| target.subject().to_owned()),
            range: text_header(&parts.headers, "range").map(str::to_owned),
        });
        let decision = self.faults.decide(operation, target.as_ref().map_or("", |target| target.subject()));
        let action = decision.action;
        match &action {
            Some(Action::Hang) => std::future::pending().await,
            Some(Action::Drop) => {
                connection.abort();
                std::future::pending().await
            }
            _ => {}
        }
        if let Some(Action::ResetRequestAfter(bytes)) = &action
            && crate::upload::expected_length(&parts.headers).is_some_and(|length| length > *bytes)
        {
            swallow(&mut body, *bytes).await;
            connection.abort();
            std::future::pending().await
        }
        let result = match (target, &action) {
            (_, Some(action)) if refusal(action).is_some() => {
                Err(refusal(action).unwrap_or_else(|| S3Error::of_status(StatusCode::INTERNAL_SERVER_ERROR)))
            }
            (Err(error), _) => Err(error),
            (Ok(target), action) => self.dispatch(&target, &parts, body, action.as_ref()).await,
        };
        let result = match (result, &action) {
            (Ok(_), Some(Action::ActThenError(status))) => {
                Err(S3Error::of_status(StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)))
            }
            (Ok(_), Some(Action::ActThenDrop)) => {
                connection.abort();
                std::future::pending().await
            }
            (result, _) => result,
        };
        let wait = Duration::from_micros(self.latency.load(Ordering::Relaxed)) + decision.delay;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let head = parts.method == http::Method::HEAD;
        let mut response = result.unwrap_or_else(|error| error.response(parts.uri.path(), &id, head));
        self.counters.status(response.status().as_u16());
        response.body_mut().count(self.counters.clone());
        if let Some((bend, limit)) = action.as_ref().and_then(bend)
            && limit.is_none_or(|limit| limit < response.body().remaining())
        {
            response.body_mut().bend(bend, connection);
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_HEADER, id);
        }
        response.headers_mut().insert(header::SERVER, HeaderValue::from_static("s3server"));
        drop(active);
        response
    }
}

/// Takes so many bytes of a body.
async fn swallow(body: &mut Incoming, bytes: u64) {
    let mut taken = 0;
    while taken < bytes
        && let Some(Ok(frame)) = body.frame().await
    {
        taken += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

/// The error that an action answers with.
fn refusal(action: &Action) -> Option<S3Error> {
    match action {
        Action::Error(status) => {
            Some(S3Error::of_status(StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)))
        }
        Action::Code(status, code) => {
            Some(S3Error::named(StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), code))
        }
        Action::Redirect { status, region, location } => {
            let code = if *status == 307 { Code::TemporaryRedirect } else { Code::PermanentRedirect };
            let mut error = S3Error::new(code, "the bucket is in another region").element("Region", region.as_str());
            if let Ok(value) = HeaderValue::from_str(region) {
                error = error.header(REGION_HEADER, value);
            }
            if let Some(location) = location {
                error = error.element("Endpoint", location.as_str());
                if let Ok(value) = HeaderValue::from_str(location) {
                    error = error.header(header::LOCATION, value);
                }
            }
            Some(error)
        }
        _ => None,
    }
}

/// How an action bends the body, and how long a body must be for that.
fn bend(action: &Action) -> Option<(Bend, Option<u64>)> {
    match *action {
        Action::ResetAfter(bytes) => Some((Bend::After(bytes, Some(End::Reset)), Some(bytes))),
        Action::CloseAfter(bytes) => Some((Bend::After(bytes, Some(End::Close)), Some(bytes))),
        Action::StallAfter(bytes) => Some((Bend::After(bytes, None), Some(bytes))),
        Action::Slow(rate) => Some((Bend::Slow(rate), None)),
        Action::Corrupt(at) => Some((Bend::Corrupt(at), Some(at))),
        _ => None,
    }
}

impl Service {
    /// The region that the server says it is in.
    fn region(&self) -> &str {
        self.region.as_deref().unwrap_or("us-east-1")
    }

    async fn dispatch(
        &self,
        target: &Target,
        parts: &Parts,
        body: Incoming,
        action: Option<&Action>,
    ) -> Result<Response, S3Error> {
        let credentials = self.credentials.read().clone();
        let payload = verify(parts, &credentials, self.region.as_deref(), SystemTime::now())?;
        let headers = &parts.headers;
        match target.operation {
            Operation::ListBuckets => return Ok(self.list_buckets()),
            Operation::CreateBucket => return self.create_bucket(target),
            Operation::DeleteBucket => {
                self.buckets.remove(&target.bucket)?;
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                return Ok(response);
            }
            Operation::Unknown => {
                return Err(S3Error::new(
                    Code::NotImplemented,
                    format!("{} {} is not implemented", parts.method, parts.uri),
                ));
            }
            _ => {}
        }
        let bucket = self.buckets.find(&target.bucket)?;
        let key = target.key.as_str();
        match target.operation {
            Operation::GetObject | Operation::HeadObject => {
                let head = target.operation == Operation::HeadObject;
                let object = bucket.find(key)?;
                object::get(&object, headers, head, action)
            }
            Operation::PutObject => object::put(&bucket, key, headers, body, payload, &self.counters).await,
            Operation::DeleteObject => object::delete(&bucket, key, headers),
            Operation::DeleteObjects => object::delete_many(&bucket, headers, body, payload, &self.counters).await,
            Operation::CopyObject => copy::copy(&self.buckets, &bucket, key, headers),
            Operation::ListObjectsV2 => list::list(bucket.index.read(), target, self.page_limit, true),
            Operation::ListObjects => list::list(bucket.index.read(), target, self.page_limit, false),
            Operation::HeadBucket => Ok(self.head_bucket()),
            Operation::GetBucketLocation => Ok(self.location()),
            _ => self.dispatch_upload(target, &bucket, parts, body, payload).await,
        }
    }

    async fn dispatch_upload(
        &self,
        target: &Target,
        bucket: &crate::bucket::Bucket,
        parts: &Parts,
        body: Incoming,
        payload: Payload,
    ) -> Result<Response, S3Error> {
        let (uploads, headers, counters) = (&self.uploads, &parts.headers, &*self.counters);
        match target.operation {
            Operation::CreateMultipartUpload => uploads.create(target, headers),
            Operation::UploadPart => uploads.part(bucket, target, headers, body, payload, counters).await,
            Operation::UploadPartCopy => uploads.part_copy(&self.buckets, bucket, target, headers),
            Operation::CompleteMultipartUpload => {
                uploads.complete(bucket, target, headers, body, payload, counters).await
            }
            Operation::AbortMultipartUpload => uploads.abort(target),
            Operation::ListParts => uploads.list_parts(target),
            Operation::ListMultipartUploads => uploads.list(target),
            _ => Err(S3Error::new(Code::MethodNotAllowed, format!("{} is not possible here", parts.method))),
        }
    }

    fn list_buckets(&self) -> Response {
        let mut xml = Xml::document();
        xml.open_root("ListAllMyBucketsResult");
        list::owner_element(&mut xml, "Owner");
        xml.open("Buckets");
        for bucket in self.buckets.all() {
            xml.open("Bucket");
            xml.text("Name", &bucket.name);
            xml.text("CreationDate", &iso(bucket.created));
            xml.close("Bucket");
        }
        xml.close("Buckets");
        xml.close("ListAllMyBucketsResult");
        list::answer(xml)
    }

    fn create_bucket(&self, target: &Target) -> Result<Response, S3Error> {
        if !valid(&target.bucket) {
            return Err(S3Error::new(Code::InvalidBucketName, "the name of the bucket is not valid")
                .element("BucketName", &*target.bucket));
        }
        let (_, created) =
            self.buckets.create(&target.bucket).map_err(|error| S3Error::io("cannot create the bucket", &error))?;
        if !created {
            return Err(
                S3Error::new(Code::BucketAlreadyOwnedByYou, "the bucket exists").element("BucketName", &*target.bucket)
            );
        }
        let mut response = Response::new(Body::empty());
        if let Ok(location) = HeaderValue::from_str(&format!("/{}", target.bucket)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        Ok(response)
    }

    fn head_bucket(&self) -> Response {
        let mut response = Response::new(Body::empty());
        if let Ok(region) = HeaderValue::from_str(self.region()) {
            response.headers_mut().insert(REGION_HEADER, region);
        }
        response
    }

    fn location(&self) -> Response {
        let mut xml = Xml::document();
        xml.open_root("LocationConstraint");
        let mut text = xml.finish();
        // us-east-1 is the region without a name.
        text.push_str(if self.region() == "us-east-1" { "" } else { self.region() });
        text.push_str("</LocationConstraint>");
        let mut response = Response::new(Body::from(text));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        response
    }
}
