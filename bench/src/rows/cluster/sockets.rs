//! What the loopback allows: blocking threads with nothing between them and their sockets.

use crate::data::BLOCK;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::Instant,
};

/// A connected pair.
fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((server, client))
}

/// Sends each file by sendfile over a connection of its own to a thread that reads blocks of 1 MiB; MB.
pub fn sequential(files: &[PathBuf]) -> Result<f64> {
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for path in files {
            let (server, client) = pair()?;
            threads.push(scope.spawn(move || send(File::open(path)?, server)));
            threads.push(scope.spawn(move || receive(client)));
        }
        let mut total = 0;
        for thread in threads {
            total += thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))??;
        }
        Ok(total as f64 / 1e6)
    })
}

fn send(mut file: File, mut socket: TcpStream) -> Result<u64> {
    // From a file to a socket this is sendfile(2), with as many bytes at a time as the kernel takes.
    std::io::copy(&mut file, &mut socket).context("sendfile")?;
    // Counted by who receives it.
    Ok(0)
}

fn receive(mut socket: TcpStream) -> Result<u64> {
    let mut block = vec![0; BLOCK];
    let (mut total, mut filled) = (0, 0);
    loop {
        let count = socket.read(&mut block[filled..])?;
        total += count as u64;
        filled += count;
        if filled == BLOCK {
            ensure!(block[..8] == (total - BLOCK as u64).to_le_bytes(), "wrong bytes before {total}");
            filled = 0;
        }
        if count == 0 {
            return Ok(total);
        }
    }
}

/// Microseconds of a request of 32 bytes and its answer of 4 KiB.
pub fn ping_pong(count: u32) -> Result<f64> {
    thread::scope(|scope| {
        let (mut server, mut client) = pair()?;
        let answering = scope.spawn(move || -> Result<()> {
            let (mut request, answer) = ([0; 32], [7; 4096]);
            for _ in 0..count {
                server.read_exact(&mut request)?;
                server.write_all(&answer)?;
            }
            Ok(())
        });
        let (request, mut answer) = ([1; 32], [0; 4096]);
        let start = Instant::now();
        for _ in 0..count {
            client.write_all(&request)?;
            client.read_exact(&mut answer)?;
        }
        let took = start.elapsed();
        answering.join().map_err(|_| anyhow::anyhow!("a thread failed"))??;
        Ok(took.as_secs_f64() * 1e6 / f64::from(count))
    })
}
