//! Google Cloud Storage (JSON), Azure Data Lake Storage (Gen2) and Aliyun OSS, as far as reading needs them.

use crate::{
    http::{Answer, Request, Server, decode},
    objects::{MODIFIED, MODIFIED_ISO, Object, Objects, Page},
};

/// Google's JSON interface, for the bucket `bkt`.
pub async fn google(objects: Objects) -> Server {
    Server::start(move |request| google_answer(&objects, request)).await
}

fn google_answer(objects: &Objects, request: &Request) -> Answer {
    let refuse = |status: u16, reason: &str| {
        let text = format!(
            r#"{{"error":{{"code":{status},"message":"{reason}","errors":[{{"domain":"global","reason":"{reason}","message":"{reason}"}}]}}}}"#
        );
        Answer::new(status, text)
    };
    let Some(path) = request.path.strip_prefix("/storage/v1/b/bkt/o") else { return refuse(404, "notFound") };
    if path.is_empty() {
        let page = objects.page(request.query("prefix"), request.query("delimiter") == "/", request.query("pageToken"));
        let items: Vec<String> = page.objects.iter().map(|(key, object)| google_object(key, object)).collect();
        let prefixes: Vec<String> = page.prefixes.iter().map(|prefix| format!("{prefix:?}")).collect();
        let next = page.next.map_or(String::new(), |next| format!(r#""nextPageToken":{next:?},"#));
        let text = format!(
            r#"{{"kind":"storage#objects",{next}"prefixes":[{}],"items":[{}]}}"#,
            prefixes.join(","),
            items.join(",")
        );
        return Answer::new(200, text).with("content-type", "application/json");
    }
    let key = decode(path.trim_start_matches('/'));
    let Some(object) = objects.get(&key) else { return refuse(404, "notFound") };
    if request.query("alt") == "media" {
        return object.answer(request, "").unwrap_or_else(|| refuse(412, "conditionNotMet"));
    }
    Answer::new(200, google_object(&key, &object)).with("content-type", "application/json")
}

fn google_object(key: &str, object: &Object) -> String {
    let (size, etag) = (object.bytes.len(), &object.etag);
    format!(
        r#"{{"kind":"storage#object","name":{key:?},"bucket":"bkt","generation":"1","size":"{size}","etag":"{etag}","updated":"{MODIFIED_ISO}","contentType":"application/octet-stream"}}"#
    )
}

/// Azure's interface for the account `acme` and its file system `c`; requests must carry what a shared key signs.
pub async fn azure(objects: Objects) -> Server {
    Server::start(move |request| azure_answer(&objects, request)).await
}

fn azure_answer(objects: &Objects, request: &Request) -> Answer {
    let refuse = |status: u16, code: &str| {
        let text = format!(r#"{{"error":{{"code":"{code}","message":"no"}}}}"#);
        Answer::new(status, text).with("x-ms-error-code", code)
    };
    let signed = request.header("authorization").is_some_and(|signature| signature.starts_with("SharedKey acme:"));
    if !signed || request.header("x-ms-date").is_none() || request.header("x-ms-version").is_none() {
        return refuse(403, "AuthenticationFailed");
    }
    let path = decode(&request.path);
    let Some(path) = path.strip_prefix("/c").filter(|path| path.is_empty() || path.starts_with('/')) else {
        return refuse(404, "FilesystemNotFound");
    };
    let path = path.trim_matches('/');
    if request.query("resource") == "filesystem" {
        let directory = request.query("directory").trim_matches('/');
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        if !prefix.is_empty() && !objects.any(&prefix) {
            return refuse(404, "PathNotFound");
        }
        let page = objects.page(&prefix, true, request.query("continuation"));
        let files = page.objects.iter().map(|(key, object)| {
            let (size, etag, modified) = (object.bytes.len(), &object.etag, MODIFIED.0);
            format!(r#"{{"contentLength":"{size}","etag":"{etag}","lastModified":"{modified}","name":{key:?}}}"#)
        });
        let directories = page.prefixes.iter().map(|prefix| {
            let (name, modified) = (prefix.trim_end_matches('/'), MODIFIED.0);
            format!(r#"{{"contentLength":"0","etag":"0xD","isDirectory":"true","lastModified":"{modified}","name":{name:?}}}"#)
        });
        let all: Vec<String> = files.chain(directories).collect();
        let answer = Answer::new(200, format!(r#"{{"paths":[{}]}}"#, all.join(",")));
        return match page.next {
            Some(next) => answer.with("x-ms-continuation", next),
            None => answer,
        };
    }
    match objects.get(path) {
        Some(object) => match object.answer(request, "\"") {
            Some(answer) => answer.with("x-ms-resource-type", "file"),
            None => refuse(412, "ConditionNotMet"),
        },
        None if path.is_empty() || objects.any(&format!("{path}/")) => {
            Answer::new(200, "").with("x-ms-resource-type", "directory").with("last-modified", MODIFIED.0)
        }
        None => refuse(404, "PathNotFound"),
    }
}

/// Aliyun's interface for the bucket `bkt`, in the path; requests must be signed with the access key `AK`.
pub async fn aliyun(objects: Objects) -> Server {
    Server::start(move |request| aliyun_answer(&objects, request)).await
}

fn aliyun_answer(objects: &Objects, request: &Request) -> Answer {
    let refuse = |status: u16, code: &str| {
        Answer::new(
            status,
            format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message><RequestId>1</RequestId><HostId>h</HostId></Error>"
            ),
        )
    };
    let signature = request.header("authorization").unwrap_or_default();
    if !(signature.starts_with("OSS AK:") || signature.contains("Credential=AK/")) {
        return refuse(403, "AccessDenied");
    }
    let path = decode(&request.path);
    let Some(key) = path.strip_prefix("/bkt").filter(|key| key.is_empty() || key.starts_with('/')) else {
        return refuse(404, "NoSuchBucket");
    };
    let key = key.trim_start_matches('/');
    if key.is_empty() && request.query("list-type") == "2" {
        let page = objects.page(
            request.query("prefix"),
            request.query("delimiter") == "/",
            request.query("continuation-token"),
        );
        return Answer::new(200, aliyun_page(&page)).with("content-type", "application/xml");
    }
    match objects.get(key) {
        Some(object) => object.answer(request, "\"").unwrap_or_else(|| refuse(412, "PreconditionFailed")),
        None => refuse(404, "NoSuchKey"),
    }
}

fn aliyun_page(page: &Page) -> String {
    let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let mut text =
        String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>bkt</Name><Prefix></Prefix>");
    text.push_str(&format!("<MaxKeys>10</MaxKeys><IsTruncated>{}</IsTruncated>", page.next.is_some()));
    if let Some(next) = &page.next {
        text.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", plain(next)));
    }
    for (key, object) in &page.objects {
        let (key, etag, size) = (plain(key), &object.etag, object.bytes.len());
        text.push_str(&format!("<Contents><Key>{key}</Key><LastModified>{MODIFIED_ISO}</LastModified><ETag>\"{etag}\"</ETag><Type>Normal</Type><Size>{size}</Size><StorageClass>Standard</StorageClass></Contents>"));
    }
    for prefix in &page.prefixes {
        text.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", plain(prefix)));
    }
    text + "</ListBucketResult>"
}
