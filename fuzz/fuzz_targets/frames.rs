//! The decoder of the binary protocol against arbitrary bytes: it never panics, never asks for more than a frame may
//! have, and what it takes for a message is written back as the same bytes.
#![no_main]

use common::wire::{DATA_PREFIX, DataPrefix, HEADER, Header, Kind, MAX_DATA, MAX_MESSAGE, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Some((first, tail)) = rest.split_first_chunk::<HEADER>() {
        // The checksum is made right, or hardly any input would get past it.
        let mut bytes = *first;
        let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        let data = bytes[3] == Kind::Data as u8;
        let checked = if data { tail.get(..DATA_PREFIX) } else { tail.get(..length) };
        if let Some(checked) = checked {
            let checksum = crc(&bytes[..12], checked);
            bytes[12..].copy_from_slice(&checksum.to_le_bytes());
        }
        let Ok(header) = Header::decode(&bytes) else { return };
        let most = if data { DATA_PREFIX + MAX_DATA } else { MAX_MESSAGE };
        assert!(header.length as usize <= most);
        let Some(checked) = checked else { return };
        if data {
            let prefix: &[u8; DATA_PREFIX] = checked.try_into().expect("cut to its length");
            // Whatever the prefix says is a place in a file and a checksum: nothing to be wrong.
            DataPrefix::decode(&header, prefix).expect("a prefix with the right checksum");
        } else if let Ok(message) = Message::decode(&header, checked) {
            let again = message.encode(header.request).expect("it came in a frame");
            assert_eq!((&again[..HEADER], &again[HEADER..]), (&bytes[..], checked));
        }
        let Some(next) = tail.get(length..) else { return };
        rest = next;
    }
});

/// CRC32C of two pieces, bit by bit: few bytes, and no further dependency.
fn crc(one: &[u8], two: &[u8]) -> u32 {
    !one.iter().chain(two).fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
