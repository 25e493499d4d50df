//! A bare S3 client: what the network and the server allow, with nothing kept and nothing mounted.

use anyhow::{Context, Result, ensure};
use std::{collections::VecDeque, sync::Arc, time::Instant};
use tokio::{sync::Mutex, task::JoinSet};

/// The client; one runtime with two threads, as the daemons have.
pub struct Bare {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    endpoint: String,
}

impl Bare {
    /// A client of `endpoint`.
    pub fn new(endpoint: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // Nothing is encrypted here, but reqwest is built without a provider of its own and asks for one. An error only
        // says that there is one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { runtime, http, endpoint: endpoint.to_owned() })
    }

    /// Fetches an object with 16 ranges under way at a time, 8 MiB each; MB.
    pub fn get_ranges(&self, bucket: &str, key: &str, size: u64) -> Result<f64> {
        const RANGE: u64 = 8 << 20;
        let url = format!("{}/{bucket}/{key}", self.endpoint);
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            let mut next = 0;
            let mut total = 0u64;
            loop {
                while tasks.len() < 16 && next < size {
                    let last = (next + RANGE).min(size) - 1;
                    let request = self.http.get(&url).header("range", format!("bytes={next}-{last}"));
                    next = last + 1;
                    tasks.spawn(async move {
                        let mut response = request.send().await?.error_for_status()?;
                        let mut count = 0;
                        while let Some(chunk) = response.chunk().await? {
                            count += chunk.len() as u64;
                        }
                        Ok::<u64, reqwest::Error>(count)
                    });
                }
                match tasks.join_next().await {
                    Some(count) => total += count??,
                    None => break,
                }
            }
            ensure!(total == size, "{key}: {total} of {size} bytes");
            Ok(total as f64 / 1e6)
        })
    }

    /// Fetches objects one after the other; objects.
    pub fn get_each(&self, bucket: &str, keys: &[String]) -> Result<f64> {
        self.runtime.block_on(async {
            for key in keys {
                let url = format!("{}/{bucket}/{key}", self.endpoint);
                let body = self.http.get(&url).send().await?.error_for_status()?.bytes().await?;
                ensure!(!body.is_empty(), "{key} is empty");
            }
            Ok(keys.len() as f64)
        })
    }

    /// Milliseconds from the request to the first bytes of an object.
    pub fn first_byte(&self, bucket: &str, key: &str) -> Result<f64> {
        let url = format!("{}/{bucket}/{key}", self.endpoint);
        self.runtime.block_on(async {
            let start = Instant::now();
            let mut response = self.http.get(&url).send().await?.error_for_status()?;
            response.chunk().await?.context("an empty object")?;
            let took = start.elapsed().as_secs_f64() * 1e3;
            while response.chunk().await?.is_some() {}
            Ok(took)
        })
    }

    /// Lists a bucket directory by directory with a delimiter, 8 requests under way at a time; entries, of which there
    /// must be `expected`.
    pub fn list(&self, bucket: &str, expected: u64) -> Result<f64> {
        struct State {
            waiting: VecDeque<(String, Option<String>)>,
            under_way: usize,
            entries: u64,
        }
        let state =
            Arc::new(Mutex::new(State { waiting: VecDeque::from([(String::new(), None)]), under_way: 0, entries: 0 }));
        let changed = Arc::new(tokio::sync::Notify::new());
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..8 {
                let (state, changed, http) = (state.clone(), changed.clone(), self.http.clone());
                let url = format!("{}/{bucket}", self.endpoint);
                tasks.spawn(async move {
                    loop {
                        let woken = changed.notified();
                        let job = {
                            let mut state = state.lock().await;
                            let job = state.waiting.pop_front();
                            match job {
                                Some(_) => state.under_way += 1,
                                None if state.under_way == 0 => {
                                    changed.notify_waiters();
                                    return Ok::<(), anyhow::Error>(());
                                }
                                None => {}
                            }
                            job
                        };
                        let Some((prefix, token)) = job else {
                            let _ = tokio::time::timeout(std::time::Duration::from_millis(5), woken).await;
                            continue;
                        };
                        let mut full = format!("{url}?list-type=2&delimiter=%2F&prefix={}", prefix.replace('/', "%2F"));
                        if let Some(token) = &token {
                            full.push_str("&continuation-token=");
                            full.extend(token.bytes().map(|byte| format!("%{byte:02X}")));
                        }
                        let body = http.get(full).send().await?.error_for_status()?.text().await?;
                        let prefixes = between(&body, "<CommonPrefixes><Prefix>", "</Prefix>");
                        let keys = body.matches("<Contents>").count() as u64;
                        let next = between(&body, "<NextContinuationToken>", "</NextContinuationToken>").pop();
                        let mut state = state.lock().await;
                        state.entries += keys + prefixes.len() as u64;
                        state.waiting.extend(prefixes.into_iter().map(|prefix| (prefix, None)));
                        state.waiting.extend(next.map(|token| (prefix, Some(token))));
                        state.under_way -= 1;
                        changed.notify_waiters();
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            let entries = state.lock().await.entries;
            ensure!(entries == expected, "{bucket}: {entries} entries of {expected}");
            Ok(entries as f64)
        })
    }
}

fn between(text: &str, open: &str, close: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(open) {
        rest = &rest[at + open.len()..];
        let Some(end) = rest.find(close) else { break };
        found.push(rest[..end].replace("%2F", "/"));
        rest = &rest[end..];
    }
    found
}
