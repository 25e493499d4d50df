//! The aws-chunked form of bodies: `length[;chunk-signature=…]\r\n bytes \r\n`, an empty chunk, trailers.

use sha2::{Digest as _, Sha256};

use crate::auth::ChunkSigner;
use crate::error::{Code, S3Error};

/// The longest line before a chunk, and the longest trailers.
const LINE_LIMIT: usize = 8 << 10;

enum State {
    /// Before a chunk.
    Line,
    /// Within a chunk, so many bytes are left.
    Bytes(u64),
    /// Behind a chunk, so many bytes of the line end are left.
    LineEnd(usize),
    /// Behind the last chunk.
    Trailers,
    Done,
}

/// Takes the frame off the chunks as bytes arrive.
pub(crate) struct ChunkDecoder {
    state: State,
    line: Vec<u8>,
    signer: Option<ChunkSigner>,
    signature: String,
    hash: Sha256,
}

impl ChunkDecoder {
    pub(crate) fn new(signer: Option<ChunkSigner>) -> Self {
        ChunkDecoder { state: State::Line, line: Vec::new(), signer, signature: String::new(), hash: Sha256::new() }
    }

    /// Decodes what arrived; the object's bytes go to `take`.
    pub(crate) fn feed(
        &mut self,
        mut input: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), S3Error>,
    ) -> Result<(), S3Error> {
        while let Some(&first) = input.first() {
            match &mut self.state {
                State::Line | State::Trailers => {
                    self.line.push(first);
                    input = &input[1..];
                    if self.line.len() > LINE_LIMIT {
                        return Err(malformed("a line of the chunked body is too long"));
                    }
                    if self.line.ends_with(b"\r\n") {
                        self.line_ended()?;
                    }
                }
                State::Bytes(left) => {
                    let length = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let (bytes, rest) = input.split_at(length);
                    input = rest;
                    *left -= length as u64;
                    let ended = *left == 0;
                    if self.signer.is_some() {
                        self.hash.update(bytes);
                    }
                    take(bytes)?;
                    if ended {
                        self.state = State::LineEnd(2);
                        self.check_signature()?;
                    }
                }
                State::LineEnd(left) => {
                    if first != if *left == 2 { b'\r' } else { b'\n' } {
                        return Err(malformed("a chunk is not followed by a line end"));
                    }
                    input = &input[1..];
                    *left -= 1;
                    if *left == 0 {
                        self.state = State::Line;
                    }
                }
                State::Done => return Err(malformed("bytes follow the end of the chunked body")),
            }
        }
        Ok(())
    }

    fn line_ended(&mut self) -> Result<(), S3Error> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line[..line.len() - 2])
            .map_err(|_| malformed("a line of the chunked body is not text"))?;
        if matches!(self.state, State::Trailers) {
            // Trailers carry checksums of the client; only the empty line that ends them matters here.
            if line.is_empty() {
                self.state = State::Done;
            }
            return Ok(());
        }
        let (length, extension) = line.split_once(';').unwrap_or((line, ""));
        let length = u64::from_str_radix(length.trim(), 16)
            .map_err(|_| malformed("the length of a chunk is not a hexadecimal number"))?;
        self.signature = extension.strip_prefix("chunk-signature=").unwrap_or_default().to_owned();
        if length == 0 {
            self.state = State::Trailers;
            self.check_signature()
        } else {
            self.state = State::Bytes(length);
            Ok(())
        }
    }

    fn check_signature(&mut self) -> Result<(), S3Error> {
        let Some(signer) = &mut self.signer else { return Ok(()) };
        let hash = std::mem::take(&mut self.hash).finalize().into();
        if signer.sign(&hash) == self.signature {
            Ok(())
        } else {
            Err(S3Error::new(
                Code::SignatureDoesNotMatch,
                "the signature of a chunk is not the one the server computes",
            ))
        }
    }

    /// Whether the body came to its end. Clients may leave out the empty line that ends the trailers.
    pub(crate) fn finish(&self) -> Result<(), S3Error> {
        match self.state {
            State::Done => Ok(()),
            State::Trailers if self.line.is_empty() => Ok(()),
            _ => Err(S3Error::new(Code::IncompleteBody, "the chunked body ends too early")),
        }
    }
}

fn malformed(message: &str) -> S3Error {
    S3Error::new(Code::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut ChunkDecoder, input: &[u8], step: usize) -> Result<Vec<u8>, S3Error> {
        let mut out = Vec::new();
        for piece in input.chunks(step) {
            decoder.feed(piece, |bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        decoder.finish().map(|()| out)
    }

    #[test]
    fn decodes_in_pieces_of_any_size() {
        let input = b"5\r\nhello\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nx-amz-checksum-crc32: AAAA\r\n\r\n";
        for step in 1..input.len() {
            let out = decode(&mut ChunkDecoder::new(None), input, step).expect("valid");
            assert_eq!(out, b"helloabcdefghijklmnopqrstuvwxyz");
        }
    }

    #[test]
    fn refuses_what_is_broken() {
        for (input, code) in [
            (&b"5\r\nhel"[..], "IncompleteBody"),
            (b"5\r\nhello\r\n", "IncompleteBody"),
            (b"5\r\nhelloo", "InvalidRequest"),
            (b"q\r\n", "InvalidRequest"),
            (b"0\r\n\r\nx", "InvalidRequest"),
        ] {
            let error = decode(&mut ChunkDecoder::new(None), input, 3).expect_err("broken");
            assert_eq!(error.code(), code, "{}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn checks_the_signatures_of_the_documented_example() {
        let body = |change: bool| {
            let mut body = Vec::new();
            for (length, signature) in crate::auth::tests::documented_chunks().1 {
                body.extend_from_slice(format!("{length:x};chunk-signature={signature}\r\n").as_bytes());
                body.extend_from_slice(&vec![b'a'; length]);
                body.extend_from_slice(b"\r\n");
            }
            if change {
                body[60_000] = b'b';
            }
            body
        };
        let decoder = || ChunkDecoder::new(Some(crate::auth::tests::documented_chunks().0));
        assert_eq!(decode(&mut decoder(), &body(false), 10_000).expect("signed").len(), 66_560);
        assert_eq!(decode(&mut decoder(), &body(true), 10_000).expect_err("changed").code(), "SignatureDoesNotMatch");
    }
}
