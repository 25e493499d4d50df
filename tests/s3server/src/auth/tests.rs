//! The examples that the documentation of S3 gives with their signatures.

use super::*;

fn keys() -> Vec<Credentials> {
    vec![Credentials::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")]
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(uri).header("host", "examplebucket.s3.amazonaws.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("valid").into_parts().0
}

fn then() -> SystemTime {
    parse_basic("20130524T000000Z").expect("valid")
}

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn get(signature: &str) -> Parts {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature={signature}"
    );
    request(
        "GET",
        "/test.txt",
        &[
            ("authorization", &authorization),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", EMPTY),
            ("x-amz-date", "20130524T000000Z"),
        ],
    )
}

const GET: &str = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";

fn code(result: Result<Payload, S3Error>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "accepted")
}

#[test]
fn accepts_the_documented_signature_and_no_other() {
    assert!(matches!(verify(&get(GET), &keys(), Some("us-east-1"), then()), Ok(Payload::Hashed(_))));
    assert_eq!(code(verify(&get(&GET.replace('f', "e")), &keys(), None, then())), "SignatureDoesNotMatch");
    assert_eq!(code(verify(&get(GET), &keys(), Some("eu-west-1"), then())), "AuthorizationHeaderMalformed");
    assert_eq!(code(verify(&get(GET), &keys(), None, then() + Duration::from_secs(901))), "RequestTimeTooSkewed");
    assert_eq!(code(verify(&get(GET), &[Credentials::new("other", "x")], None, then())), "InvalidAccessKeyId");
    let with_token = vec![keys().remove(0).token("t")];
    assert_eq!(code(verify(&get(GET), &with_token, None, then())), "InvalidToken");
    let expired = vec![keys().remove(0).expires(then())];
    assert_eq!(code(verify(&get(GET), &expired, None, then())), "ExpiredToken");
    assert_eq!(code(verify(&request("GET", "/", &[]), &keys(), None, then())), "AccessDenied");
    assert_eq!(code(verify(&request("GET", "/", &[]), &[], None, then())), "accepted");
}

#[test]
fn refuses_headers_that_are_not_signed() {
    let mut parts = get(GET);
    parts.headers.insert("x-amz-meta-added", "later".parse().expect("valid"));
    assert_eq!(code(verify(&parts, &keys(), None, then())), "AccessDenied");
}

#[test]
fn accepts_the_documented_presigned_request() {
    let uri = |signature: &str| {
        format!(
            "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
        )
    };
    let good = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let parts = request("GET", &uri(good), &[]);
    assert_eq!(code(verify(&parts, &keys(), None, then() + Duration::from_secs(86_400))), "accepted");
    assert_eq!(code(verify(&parts, &keys(), None, then() + Duration::from_secs(86_401))), "AccessDenied");
    let parts = request("GET", &uri(&good.replace('a', "b")), &[]);
    assert_eq!(code(verify(&parts, &keys(), None, then())), "SignatureDoesNotMatch");
}

/// The documented upload in chunks: 64 KiB and 1 KiB of the letter a.
pub(crate) fn documented_chunks() -> (ChunkSigner, [(usize, &'static str); 3]) {
    let authorization = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
        SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class,\
        Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    let mut parts = request(
        "PUT",
        "/examplebucket/chunkObject.txt",
        &[
            ("authorization", authorization),
            ("content-encoding", "aws-chunked"),
            ("content-length", "66824"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ],
    );
    parts.headers.insert("host", "s3.amazonaws.com".parse().expect("valid"));
    match verify(&parts, &keys(), None, then()) {
        Ok(Payload::Chunked(Some(signer))) => (
            signer,
            [
                (65_536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
                (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
                (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
            ],
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn signs_the_documented_chunks() {
    let (mut signer, chunks) = documented_chunks();
    for (length, signature) in chunks {
        assert_eq!(signer.sign(&Sha256::digest(vec![b'a'; length]).into()), signature);
    }
}
