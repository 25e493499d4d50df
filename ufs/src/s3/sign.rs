//! AWS Signature Version 4.
//!
//! Signed are the host and every `x-amz-` header, among them the hash of the body, so that the signature holds over
//! plain HTTP as well. The request line is signed as it is sent: path and query come percent-encoded once, by [`encode`].

use super::credentials::Keys;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{fmt::Write, sync::Arc};

/// The SHA-256 of nothing.
pub const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Percent-encodes everything but letters, digits and `-._~`, and `/` when `slash` is left as it is.
pub fn encode(text: &str, slash: bool, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slash && byte == b'/') {
            into.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            into.push('%');
            into.push(char::from(DIGITS[usize::from(byte >> 4)]));
            into.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Signs requests; keeps the key that is derived for a day.
#[derive(Default)]
pub struct Signer {
    derived: Mutex<Option<Derived>>,
}

#[derive(Clone)]
struct Derived {
    keys: Arc<Keys>,
    date: String,
    region: String,
    key: [u8; 32],
}

impl Signer {
    /// The value of `Authorization` for a request.
    ///
    /// `time` is as in `x-amz-date` (`20130524T000000Z`), `path` and `query` as sent (the query sorted by name), `headers`
    /// those to sign, lower case and sorted, `hash` the SHA-256 of the body as in `x-amz-content-sha256`.
    #[allow(clippy::too_many_arguments)]
    pub fn authorization(
        &self,
        keys: &Arc<Keys>,
        region: &str,
        time: &str,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        hash: &str,
    ) -> String {
        let mut canonical = format!("{method}\n{path}\n{query}\n");
        let mut names = String::new();
        for (name, value) in headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
            if !names.is_empty() {
                names.push(';');
            }
            names.push_str(name);
        }
        let _ = write!(canonical, "\n{names}\n{hash}");
        let date = time.get(..8).unwrap_or(time);
        let scope = format!("{date}/{region}/s3/aws4_request");
        let hash = hex::encode(Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
        let signature = hex::encode(hmac(&self.key(keys, date, region), to_sign.as_bytes()));
        format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", keys.access_key())
    }

    fn key(&self, keys: &Arc<Keys>, date: &str, region: &str) -> [u8; 32] {
        if let Some(derived) = &*self.derived.lock()
            && Arc::ptr_eq(&derived.keys, keys)
            && derived.date == date
            && derived.region == region
        {
            return derived.key;
        }
        let mut key = hmac(format!("AWS4{}", keys.secret_key().reveal()).as_bytes(), date.as_bytes());
        for part in [region, "s3", "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        *self.derived.lock() = Some(Derived { keys: keys.clone(), date: date.into(), region: region.into(), key });
        key
    }
}

/// HMAC with SHA-256.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_gives_what_rfc_4231_says() {
        assert_eq!(
            hex::encode(hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex::encode(hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    /// The examples that Amazon publishes for S3 ("Signature Calculations for the Authorization Header").
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let keys = Arc::new(Keys::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None));
        let signer = Signer::default();
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let hash = ("x-amz-content-sha256", EMPTY_HASH);
        let date = ("x-amz-date", "20130524T000000Z");
        let sign = |path: &str, query: &str, headers: &[(&str, &str)]| {
            let value = signer.authorization(&keys, "us-east-1", date.1, "GET", path, query, headers, EMPTY_HASH);
            value.rsplit_once("Signature=").unwrap().1.to_owned()
        };
        assert_eq!(
            sign("/test.txt", "", &[host, ("range", "bytes=0-9"), hash, date]),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            sign("/", "lifecycle=", &[host, hash, date]),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            sign("/", "max-keys=2&prefix=J", &[host, hash, date]),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn keys_are_encoded_exactly() {
        let mut path = String::new();
        encode("a b/+~\u{e4}%2F*'()!", true, &mut path);
        assert_eq!(path, "a%20b/%2B~%C3%A4%252F%2A%27%28%29%21");
        let mut query = String::new();
        encode("a/b", false, &mut query);
        assert_eq!(query, "a%2Fb");
    }
}
