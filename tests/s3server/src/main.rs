//! Runs the S3 server of the tests as a program, for benchmarks and by hand.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use s3server::{Credentials, Options, Server, Synthetic, TlsPem};

/// An S3 server for tests and benchmarks. Prints its endpoint on the first line and serves until it is killed or its standard input ends
/// (with --until-stdin-ends).
#[derive(Parser)]
struct Arguments {
    /// Directory for uploaded objects; without it they are kept in memory
    #[arg(long)]
    root: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port to listen on, 0 for a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Milliseconds added before each answer
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Key that requests must be signed with
    #[arg(long, requires = "secret_key")]
    access_key: Option<String>,
    /// Its secret
    #[arg(long, requires = "access_key")]
    secret_key: Option<String>,
    /// Session token that must come with the key
    #[arg(long, requires = "access_key")]
    session_token: Option<String>,
    /// Region that signatures must name
    #[arg(long)]
    region: Option<String>,
    /// Domain whose host names are buckets
    #[arg(long)]
    domain: Option<String>,
    /// Bucket to create (several times)
    #[arg(long = "bucket")]
    buckets: Vec<String>,
    /// BUCKET=DIR: every file below DIR is an object of the bucket, neither copied nor changed
    #[arg(long)]
    adopt: Vec<String>,
    /// BUCKET=PREFIX,COUNT,SIZE[,PER-DIRECTORY]: generated objects
    #[arg(long)]
    synthetic: Vec<String>,
    /// PEM file with the certificate for https
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// End when standard input ends, so that the server dies with its parent
    #[arg(long)]
    until_stdin_ends: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut options = Options {
        address: arguments.address,
        port: arguments.port,
        threads: arguments.threads,
        root: arguments.root,
        buckets: arguments.buckets,
        region: arguments.region,
        domain: arguments.domain,
        latency: Duration::from_millis(arguments.latency_ms),
        control: true,
        log_size: 0,
        ..Options::default()
    };
    if let (Some(access_key), Some(secret_key)) = (arguments.access_key, arguments.secret_key) {
        let mut credentials = Credentials::new(access_key, secret_key);
        credentials.session_token = arguments.session_token;
        options.credentials.push(credentials);
    }
    if let (Some(cert), Some(key)) = (arguments.tls_cert, arguments.tls_key) {
        let read =
            |path: PathBuf| std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
        options.tls = Some(TlsPem { cert: read(cert)?, key: read(key)? });
    }
    let server = Server::start(options)?;
    for adopt in &arguments.adopt {
        let (bucket, directory) =
            adopt.split_once('=').with_context(|| format!("--adopt {adopt}: expected BUCKET=DIR"))?;
        server.create_bucket(bucket)?;
        let adopted = server.adopt(bucket, directory)?;
        eprintln!("{bucket}: {} objects below {directory}, {} names skipped", adopted.objects, adopted.skipped);
    }
    for family in &arguments.synthetic {
        let (bucket, family) = parse_synthetic(family)
            .with_context(|| format!("--synthetic {family}: expected BUCKET=PREFIX,COUNT,SIZE[,PER-DIRECTORY]"))?;
        server.create_bucket(&bucket)?;
        server.synthetic(&bucket, family)?;
    }
    println!("{}", server.url());
    if arguments.until_stdin_ends {
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}

fn parse_synthetic(text: &str) -> Option<(String, Synthetic)> {
    let (bucket, family) = text.split_once('=')?;
    let fields: Vec<&str> = family.split(',').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let family = Synthetic::new(fields[0], number(1)?, number(2)?);
    let family = match fields.len() {
        3 => family,
        4 => family.per_directory(number(3)?),
        _ => return None,
    };
    Some((bucket.to_owned(), family))
}
