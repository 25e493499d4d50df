//! The operations of S3 that the server knows, the unit of counters and fault rules.

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Operation {
    GetObject,
    HeadObject,
    PutObject,
    DeleteObject,
    DeleteObjects,
    CopyObject,
    ListObjectsV2,
    ListObjects,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    ListMultipartUploads,
    HeadBucket,
    CreateBucket,
    DeleteBucket,
    ListBuckets,
    GetBucketLocation,
    /// Anything the server does not know, answered with 501 NotImplemented or 405.
    Unknown,
}

impl Operation {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Operation; 21] = [
        Operation::GetObject,
        Operation::HeadObject,
        Operation::PutObject,
        Operation::DeleteObject,
        Operation::DeleteObjects,
        Operation::CopyObject,
        Operation::ListObjectsV2,
        Operation::ListObjects,
        Operation::CreateMultipartUpload,
        Operation::UploadPart,
        Operation::UploadPartCopy,
        Operation::CompleteMultipartUpload,
        Operation::AbortMultipartUpload,
        Operation::ListParts,
        Operation::ListMultipartUploads,
        Operation::HeadBucket,
        Operation::CreateBucket,
        Operation::DeleteBucket,
        Operation::ListBuckets,
        Operation::GetBucketLocation,
        Operation::Unknown,
    ];

    /// The operation of a request. `has` tells whether the query or, for names that begin with `x-`, the headers contain a name.
    pub(crate) fn of(
        method: &http::Method,
        bucket: bool,
        key: bool,
        has: impl Fn(&str) -> bool,
        list_v2: bool,
    ) -> Self {
        use Operation::*;
        // Sub-resources that are not served must not be taken for the object or listing they belong to.
        const OTHERS: [&str; 22] = [
            "acl",
            "accelerate",
            "analytics",
            "attributes",
            "cors",
            "encryption",
            "inventory",
            "legal-hold",
            "lifecycle",
            "logging",
            "metrics",
            "notification",
            "object-lock",
            "ownershipControls",
            "policy",
            "publicAccessBlock",
            "replication",
            "requestPayment",
            "retention",
            "tagging",
            "versioning",
            "website",
        ];
        if OTHERS.iter().any(|name| has(name)) || has("versions") {
            return Unknown;
        }
        match (method.as_str(), bucket, key) {
            ("GET", false, _) => ListBuckets,
            ("GET", true, false) if has("location") => GetBucketLocation,
            ("GET", true, false) if has("uploads") => ListMultipartUploads,
            ("GET", true, false) if list_v2 => ListObjectsV2,
            ("GET", true, false) => ListObjects,
            ("HEAD", true, false) => HeadBucket,
            ("PUT", true, false) => CreateBucket,
            ("DELETE", true, false) => DeleteBucket,
            ("POST", true, false) if has("delete") => DeleteObjects,
            ("GET", true, true) if has("uploadId") => ListParts,
            ("GET", true, true) => GetObject,
            ("HEAD", true, true) => HeadObject,
            ("PUT", true, true) if has("uploadId") && has("x-amz-copy-source") => UploadPartCopy,
            ("PUT", true, true) if has("uploadId") => UploadPart,
            ("PUT", true, true) if has("x-amz-copy-source") => CopyObject,
            ("PUT", true, true) => PutObject,
            ("DELETE", true, true) if has("uploadId") => AbortMultipartUpload,
            ("DELETE", true, true) => DeleteObject,
            ("POST", true, true) if has("uploads") => CreateMultipartUpload,
            ("POST", true, true) if has("uploadId") => CompleteMultipartUpload,
            _ => Unknown,
        }
    }
}
