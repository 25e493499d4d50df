//! What frames say.

use super::frame::{DATA_PREFIX, HEADER, Header, Kind, MAX_DATA, MAX_MESSAGE, WireError};

/// A frame's body, except Data's, whose payload is moved apart from its [prefix](DataPrefix).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Opens a connection.
    Hello {
        /// Who asks, for the worker's logs.
        name: String,
    },
    /// Answers it.
    Welcome {
        /// The worker's identifier.
        worker: [u8; 16],
        /// Bytes of a page in the worker's store.
        page_size: u32,
        /// Requests that may be under way on this connection at once.
        in_flight: u32,
    },
    /// Asks for a handle on one version of a file.
    Open {
        /// The under storage's URI, as the mount table has it.
        storage: Vec<u8>,
        /// The path below it.
        path: Vec<u8>,
        /// The version.
        version: String,
        /// Its size.
        size: u64,
        /// Its time of change: seconds.
        mtime_sec: i64,
        /// And nanoseconds.
        mtime_nsec: u32,
    },
    /// Gives a handle.
    Opened {
        /// The handle, for this connection only.
        handle: u32,
    },
    /// Asks for a range, which lies within the file and is at most [`MAX_DATA`] long.
    Read {
        /// Of which file.
        handle: u32,
        /// From where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Asks for pages to be fetched ahead.
    Prefetch {
        /// Of which file.
        handle: u32,
        /// From which page.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Gives a handle up.
    Close {
        /// Which.
        handle: u32,
    },
    /// The request failed.
    Failure {
        /// Why, see [`super::error_of`].
        code: u16,
        /// Why, for people.
        message: String,
    },
    /// Asks for the file's descriptor.
    Export {
        /// Of which file.
        handle: u32,
    },
    /// Comes with the descriptor.
    Exported,
    /// Is anybody there?
    Ping,
    /// Yes.
    Pong,
}

/// What stands between the header of a Data frame and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPrefix {
    /// Where in the file the payload belongs.
    pub offset: u64,
    /// CRC32C of the payload.
    pub checksum: u32,
    /// Whether it is the last frame of the answer.
    pub last: bool,
}

impl DataPrefix {
    /// Header and prefix of a Data frame with a payload of `length` bytes ([`MAX_DATA`] at most).
    pub fn encode(&self, request: u32, length: usize) -> [u8; HEADER + DATA_PREFIX] {
        debug_assert!(length <= MAX_DATA);
        let mut prefix = [0; DATA_PREFIX];
        prefix[..8].copy_from_slice(&self.offset.to_le_bytes());
        prefix[8..12].copy_from_slice(&self.checksum.to_le_bytes());
        prefix[12] = u8::from(self.last);
        let header = Header::encode(Kind::Data, request, (DATA_PREFIX + length) as u32, &prefix);
        let mut bytes = [0; HEADER + DATA_PREFIX];
        bytes[..HEADER].copy_from_slice(&header);
        bytes[HEADER..].copy_from_slice(&prefix);
        bytes
    }

    /// Reads the prefix that follows `header`.
    pub fn decode(header: &Header, prefix: &[u8; DATA_PREFIX]) -> Result<Self, WireError> {
        header.verify(prefix)?;
        let mut body = Reader { kind: Kind::Data, rest: prefix };
        let decoded = Self { offset: body.u64()?, checksum: body.u32()?, last: body.u8()? != 0 };
        Ok(decoded)
    }
}

impl Message {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello { .. } => Kind::Hello,
            Message::Welcome { .. } => Kind::Welcome,
            Message::Open { .. } => Kind::Open,
            Message::Opened { .. } => Kind::Opened,
            Message::Read { .. } => Kind::Read,
            Message::Prefetch { .. } => Kind::Prefetch,
            Message::Close { .. } => Kind::Close,
            Message::Failure { .. } => Kind::Failure,
            Message::Export { .. } => Kind::Export,
            Message::Exported => Kind::Exported,
            Message::Ping => Kind::Ping,
            Message::Pong => Kind::Pong,
        }
    }

    /// The whole frame.
    ///
    /// # Errors
    /// `Length` when texts in it are longer than a message may be.
    pub fn encode(&self, request: u32) -> Result<Vec<u8>, WireError> {
        let mut frame = vec![0; HEADER];
        let out = &mut frame;
        match self {
            Message::Hello { name } => text(out, name.as_bytes()),
            Message::Welcome { worker, page_size, in_flight } => {
                out.extend_from_slice(worker);
                out.extend_from_slice(&page_size.to_le_bytes());
                out.extend_from_slice(&in_flight.to_le_bytes());
            }
            Message::Open { storage, path, version, size, mtime_sec, mtime_nsec } => {
                text(out, storage);
                text(out, path);
                text(out, version.as_bytes());
                out.extend_from_slice(&size.to_le_bytes());
                out.extend_from_slice(&mtime_sec.to_le_bytes());
                out.extend_from_slice(&mtime_nsec.to_le_bytes());
            }
            Message::Opened { handle } | Message::Close { handle } | Message::Export { handle } => {
                out.extend_from_slice(&handle.to_le_bytes());
            }
            Message::Read { handle, offset, length } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
            Message::Prefetch { handle, first, count } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
            }
            Message::Failure { code, message } => {
                out.extend_from_slice(&code.to_le_bytes());
                text(out, message.as_bytes());
            }
            Message::Exported | Message::Ping | Message::Pong => {}
        }
        let length = frame.len() - HEADER;
        if length > MAX_MESSAGE {
            return Err(WireError::Length { length: u32::try_from(length).unwrap_or(u32::MAX), limit: MAX_MESSAGE });
        }
        let header = Header::encode(self.kind(), request, length as u32, &frame[HEADER..]);
        frame[..HEADER].copy_from_slice(&header);
        Ok(frame)
    }

    /// Reads the body that follows `header` (not a Data frame's), checksum included.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, WireError> {
        header.verify(body)?;
        let mut body = Reader { kind: header.kind, rest: body };
        let message = match header.kind {
            Kind::Hello => Message::Hello { name: body.string()? },
            Kind::Welcome => {
                let mut worker = [0; 16];
                worker.copy_from_slice(body.take(16)?);
                Message::Welcome { worker, page_size: body.u32()?, in_flight: body.u32()? }
            }
            Kind::Open => Message::Open {
                storage: body.text()?.to_vec(),
                path: body.text()?.to_vec(),
                version: body.string()?,
                size: body.u64()?,
                mtime_sec: body.u64()? as i64,
                mtime_nsec: body.u32()?,
            },
            Kind::Opened => Message::Opened { handle: body.u32()? },
            Kind::Read => Message::Read { handle: body.u32()?, offset: body.u64()?, length: body.u32()? },
            Kind::Prefetch => Message::Prefetch { handle: body.u32()?, first: body.u64()?, count: body.u32()? },
            Kind::Close => Message::Close { handle: body.u32()? },
            Kind::Failure => {
                let code = body.take(2)?;
                Message::Failure { code: u16::from_le_bytes([code[0], code[1]]), message: body.string()? }
            }
            Kind::Export => Message::Export { handle: body.u32()? },
            Kind::Exported => Message::Exported,
            Kind::Ping => Message::Ping,
            Kind::Pong => Message::Pong,
            Kind::Data => return Err(WireError::Body(Kind::Data)),
        };
        if body.rest.is_empty() { Ok(message) } else { Err(WireError::Body(header.kind)) }
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

struct Reader<'b> {
    kind: Kind,
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::Body(self.kind))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<&'b [u8], WireError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn string(&mut self) -> Result<String, WireError> {
        String::from_utf8(self.text()?.to_vec()).map_err(|_| WireError::Body(self.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(frame: &[u8]) -> Result<(u32, Message), WireError> {
        let header = Header::decode(frame[..HEADER].try_into().unwrap())?;
        let body = frame.get(HEADER..HEADER + header.length as usize).ok_or(WireError::Checksum)?;
        Ok((header.request, Message::decode(&header, body)?))
    }

    fn messages() -> impl Strategy<Value = Message> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
        prop_oneof![
            ".*".prop_map(|name| Message::Hello { name }),
            (any::<[u8; 16]>(), any::<u32>(), any::<u32>())
                .prop_map(|(worker, page_size, in_flight)| Message::Welcome { worker, page_size, in_flight }),
            (bytes(), bytes(), ".*", any::<u64>(), any::<i64>(), any::<u32>()).prop_map(
                |(storage, path, version, size, mtime_sec, mtime_nsec)| Message::Open {
                    storage,
                    path,
                    version,
                    size,
                    mtime_sec,
                    mtime_nsec
                }
            ),
            any::<u32>().prop_map(|handle| Message::Opened { handle }),
            (any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(handle, offset, length)| Message::Read {
                handle,
                offset,
                length
            }),
            (any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(handle, first, count)| Message::Prefetch {
                handle,
                first,
                count
            }),
            any::<u32>().prop_map(|handle| Message::Close { handle }),
            (any::<u16>(), ".*").prop_map(|(code, message)| Message::Failure { code, message }),
            any::<u32>().prop_map(|handle| Message::Export { handle }),
            Just(Message::Exported),
            Just(Message::Ping),
            Just(Message::Pong),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(message in messages(), request in any::<u32>()) {
            let frame = message.encode(request).unwrap();
            prop_assert_eq!(decode(&frame).unwrap(), (request, message));
        }

        #[test]
        fn a_changed_bit_is_noticed(message in messages(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut frame = message.encode(7).unwrap();
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            prop_assert!(decode(&frame).is_err());
        }

        #[test]
        fn random_bytes_are_an_error_and_never_a_panic(mut frame in proptest::collection::vec(any::<u8>(), HEADER..400), real in any::<bool>()) {
            if real {
                let kind = frame[3] % 16;
                frame[..4].copy_from_slice(&[0xA1, 0xD5, super::super::VERSION, kind]);
            }
            prop_assert!(decode(&frame).is_err());
        }
    }

    #[test]
    fn data_has_its_own_limits() {
        let prefix = DataPrefix { offset: 1 << 40, checksum: 5, last: true };
        let bytes = prefix.encode(3, 1000);
        let header = Header::decode(bytes[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!((header.kind, header.request, header.length), (Kind::Data, 3, 1016));
        assert_eq!(DataPrefix::decode(&header, bytes[HEADER..].try_into().unwrap()).unwrap(), prefix);

        let long = Header::encode(Kind::Data, 0, (DATA_PREFIX + MAX_DATA + 1) as u32, &[]);
        assert!(matches!(Header::decode(&long), Err(WireError::Length { .. })));
        let short = Header::encode(Kind::Data, 0, 3, &[]);
        assert_eq!(Header::decode(&short), Err(WireError::Body(Kind::Data)));
        let long = Message::Hello { name: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(long.encode(0), Err(WireError::Length { .. })));
    }
}
