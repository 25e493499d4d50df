//! Receive buffers kept for reuse: fresh memory of this size would cost page faults each time.

use parking_lot::Mutex;

/// 16 MiB at most with the usual pieces.
const KEPT: usize = 16;
const LARGEST: usize = 1 << 20;
static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer of this length; what is in it is left over from other uses.
pub fn take(length: usize) -> Vec<u8> {
    let mut buffer = IDLE.lock().pop().unwrap_or_default();
    if buffer.len() < length {
        buffer.resize(length, 0);
    } else {
        buffer.truncate(length);
    }
    buffer
}

/// Takes one back.
pub fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() <= LARGEST && buffer.capacity() > 0 {
        let mut idle = IDLE.lock();
        if idle.len() < KEPT {
            idle.push(buffer);
        }
    }
}
