//! The two XML documents that reading needs: a page of a listing, and an error.

mod scan;

use common::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;

/// A page of ListObjectsV2.
#[derive(Debug, Deserialize, Default)]
#[serde(rename = "ListBucketResult")]
pub struct Page {
    #[serde(rename = "IsTruncated", default)]
    pub truncated: bool,
    #[serde(rename = "NextContinuationToken")]
    pub next: Option<String>,
    #[serde(rename = "EncodingType")]
    encoding: Option<String>,
    #[serde(rename = "Contents", default)]
    pub objects: Vec<Object>,
    #[serde(rename = "CommonPrefixes", default)]
    pub prefixes: Vec<Prefix>,
}

/// An object on a page.
#[derive(Debug, Deserialize)]
pub struct Object {
    #[serde(rename = "Key")]
    pub key: String,
    #[serde(rename = "LastModified", default)]
    pub modified: String,
    #[serde(rename = "ETag", default)]
    pub etag: String,
    #[serde(rename = "Size", default)]
    pub size: u64,
}

/// A common prefix on a page.
#[derive(Debug, Deserialize)]
pub struct Prefix {
    #[serde(rename = "Prefix")]
    pub prefix: String,
}

/// An error.
#[derive(Debug, Deserialize, Default)]
#[serde(rename = "Error")]
pub struct Fault {
    #[serde(rename = "Code", default)]
    pub code: String,
    #[serde(rename = "Message", default)]
    pub message: String,
    #[serde(rename = "Region")]
    pub region: Option<String>,
}

impl Page {
    /// Reads a page; keys come out as they are in the bucket. The error says what is wrong with the document.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut page: Page = match scan::page(text) {
            Some(page) => page,
            None => quick_xml::de::from_str(text).map_err(|error| error.to_string())?,
        };
        if page.encoding.as_deref().is_some_and(|encoding| encoding.eq_ignore_ascii_case("url")) {
            let keys = page.objects.iter_mut().map(|object| &mut object.key);
            for key in keys.chain(page.prefixes.iter_mut().map(|prefix| &mut prefix.prefix)) {
                if let Cow::Owned(decoded) = decode(key)? {
                    *key = decoded;
                }
            }
        }
        Ok(page)
    }
}

/// Undoes the encoding of forms: `+` is a space, `%XX` a byte.
fn decode(text: &str) -> Result<Cow<'_, str>, String> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Ok(Cow::Borrowed(text));
    }
    let spaced = text.replace('+', " ");
    match percent_encoding::percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Ok(Cow::Owned(decoded.into_owned())),
        Err(_) => Err(format!("the key {text} is no UTF-8")),
    }
}

/// Reads an error document; none when it is something else.
pub fn parse_fault(text: &str) -> Option<Fault> {
    quick_xml::de::from_str(text).ok().filter(|fault: &Fault| !fault.code.is_empty())
}

/// Reads `2024-01-31T12:00:00.000Z`, in whole seconds as HTTP has them, so that a listing and a HEAD agree.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 of the proleptic Gregorian calendar, with years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(Timestamp { sec: days * 86_400 + hour * 3600 + minute * 60 + second, nsec: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_keys_as_they_are() {
        let page = Page::parse(
            r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>
            <EncodingType>url</EncodingType><KeyCount>3</KeyCount><IsTruncated>true</IsTruncated>
            <Contents><Key>a+b%2B%C3%A4%00</Key><LastModified>2024-01-31T12:00:00.500Z</LastModified>
              <ETag>&quot;abc&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
            <CommonPrefixes><Prefix>d%2F/</Prefix></CommonPrefixes>
            <Contents><Key>z</Key><LastModified>x</LastModified><ETag>"q"</ETag><Size>0</Size></Contents>
            <NextContinuationToken>to/ken==</NextContinuationToken></ListBucketResult>"#,
        );
        // Contents after CommonPrefixes are allowed by quick-xml's overlapped lists only; S3 groups them.
        if let Ok(page) = page {
            assert_eq!(page.objects[0].key, "a b+\u{e4}\0");
            assert_eq!(page.objects[0].etag, "\"abc\"");
            assert_eq!(page.prefixes[0].prefix, "d//");
            assert!(page.truncated && page.next.as_deref() == Some("to/ken=="));
        } else {
            panic!("{page:?}");
        }
    }

    #[test]
    fn the_quick_way_reads_what_the_thorough_way_reads() {
        let documents = [
            r#"<ListBucketResult/>"#,
            r#"<ListBucketResult></ListBucketResult>"#,
            r#"<?xml version="1.0"?><ListBucketResult xmlns="x"><Name>b</Name><IsTruncated>false</IsTruncated>
               <Contents><Key>a&amp;b</Key><Size>12</Size><Owner><ID>1</ID><DisplayName/></Owner></Contents>
               <Contents><ETag>&quot;e&quot;</ETag><Key>c</Key><LastModified>t</LastModified></Contents>
               <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListBucketResult>"#,
            r#"<ListBucketResult><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType><Prefix></Prefix>
               <Contents><Key>&lt;&#38;&#x41;</Key><ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Size>1</Size></Contents>
               <NextContinuationToken>n&amp;</NextContinuationToken></ListBucketResult>"#,
            r#"<ListBucketResult><Contents><Key><![CDATA[a<b]]></Key></Contents></ListBucketResult>"#,
            r#"<ListBucketResult><!-- none --><Contents><Key>a</Key></Contents></ListBucketResult>"#,
            r#"<s3:ListBucketResult xmlns:s3="x"><s3:Contents><s3:Key>a</s3:Key></s3:Contents></s3:ListBucketResult>"#,
            r#"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>"#,
            r#"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>"#,
            r#"<ListBucketResult><Contents><Key>a</Key></Contents>"#,
            r#"<ListBucketResult><Contents><Key>a</Contents></ListBucketResult>"#,
            r#"<ListBucketResult><Contents><Key>&nope;</Key></Contents></ListBucketResult>"#,
            r#"<Error><Code>x</Code></Error>"#,
            "",
        ];
        let mut quick = 0;
        for document in documents {
            let thorough: Result<Page, _> = quick_xml::de::from_str(document);
            if let Some(page) = scan::page(document) {
                quick += 1;
                assert_eq!(format!("{page:?}"), format!("{:?}", thorough.unwrap()), "{document}");
            }
        }
        assert_eq!(quick, 2, "the usual form takes the quick way");
    }

    #[test]
    fn what_is_no_page_is_an_error() {
        assert!(Page::parse("<html>").is_err());
        assert!(parse_fault("not xml").is_none());
        let fault = parse_fault("<Error><Code>NoSuchKey</Code><Message>m</Message><Key>k</Key></Error>").unwrap();
        assert_eq!((fault.code.as_str(), fault.message.as_str()), ("NoSuchKey", "m"));
    }

    #[test]
    fn times_are_seconds_since_1970() {
        let at = |text: &str| parse_time(text).map(|time| time.sec);
        assert_eq!(at("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(at("2024-02-29T12:34:56.789Z"), Some(1_709_210_096));
        assert_eq!(at("2000-03-01T00:00:00.000Z"), Some(951_868_800));
        assert_eq!(at("2024-13-01T00:00:00Z"), None);
        assert_eq!(at("soon"), None);
    }
}
