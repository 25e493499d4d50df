//! The command line of `alluxio-csi`. Every flag can also be given by the environment variable named beside it.
//!
//! Every failure is one line on standard error and exit code 1; a command line that makes no sense is exit code 2.

mod doctor;

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::logging::{self, LogOptions};
use std::{path::PathBuf, process::ExitCode, time::Duration};

const EXAMPLES: &str = "\
Examples:
  alluxio-csi node --node-id $(hostname) --endpoint unix:///csi/csi.sock
  alluxio-csi controller --endpoint unix:///csi/csi.sock --volume-root s3://bucket/volumes
  alluxio-csi doctor
The node service hands FUSE connections to a mounter, which runs as an ordinary user:
  alluxio-fuse serve --fd-socket /var/lib/kubelet/plugins/alluxio/mounter/mounter.sock";

/// The CSI driver of Alluxio: volumes of Kubernetes on object stores and clusters.
#[derive(Debug, Parser)]
#[command(name = "alluxio-csi", version, about, after_help = EXAMPLES, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the node service: publish volumes on this host (needs root)
    #[command(args_override_self = true)]
    Node(NodeArgs),
    /// Serve the controller service: make and delete volumes
    #[command(args_override_self = true)]
    Controller(ControllerArgs),
    /// Show this node's mounts, targets and sessions, and what is wrong with them
    #[command(after_help = "\
Examples:
  alluxio-csi doctor
  alluxio-csi doctor --format json
Exit code: 0 all is well, 1 something is wrong.")]
    Doctor(DoctorArgs),
}

/// How logs are written.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log to standard error: off, error, warn, info, debug, trace, or directives such as info,csi=debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", env = "ALLUXIO_CSI_LOG_LEVEL")]
    pub log_level: String,
    /// One JSON object a line instead of text
    #[arg(long, global = true, env = "ALLUXIO_CSI_LOG_JSON")]
    pub log_json: bool,
}

/// What both services take.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Where to listen: unix:///path, or a path
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:///csi/csi.sock", env = "CSI_ENDPOINT")]
    pub endpoint: String,
    /// The name of the driver, as in the CSIDriver object and in StorageClasses
    #[arg(long, value_name = "NAME", default_value = "alluxio", env = "ALLUXIO_CSI_DRIVER_NAME", value_parser = driver_name)]
    pub driver_name: String,
}

/// Where the node service keeps things and whom it talks to.
#[derive(Debug, Clone, Args)]
pub struct PlacesArgs {
    /// Where records of mounts and targets are kept; must outlive the container (a directory of the host)
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/plugins/alluxio/state",
        env = "ALLUXIO_CSI_STATE_DIR"
    )]
    pub state_dir: PathBuf,
    /// Where file systems are mounted before they are bound to targets; needs mount propagation Bidirectional
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/plugins/alluxio/mounts",
        env = "ALLUXIO_CSI_MOUNT_DIR"
    )]
    pub mount_dir: PathBuf,
    /// The socket of the mounter (alluxio-fuse serve --fd-socket)
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/var/lib/kubelet/plugins/alluxio/mounter/mounter.sock",
        env = "ALLUXIO_CSI_MOUNTER_SOCKET"
    )]
    pub mounter_socket: PathBuf,
}

/// What `node` takes.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name and endpoint.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Directories and the mounter.
    #[command(flatten)]
    pub places: PlacesArgs,
    /// The name of this node in the cluster
    #[arg(long, value_name = "NAME", env = "NODE_ID", value_parser = node_id)]
    pub node_id: String,
    /// Refuse target paths outside of this directory of kubelet; empty: any absolute path will do
    #[arg(long, value_name = "DIR", default_value = "", env = "ALLUXIO_CSI_KUBELET_DIR", value_parser = any_path)]
    pub kubelet_dir: PathBuf,
    /// The most volumes on this node, as told to the scheduler; 0: no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 0, env = "ALLUXIO_CSI_MAX_VOLUMES", value_parser = clap::value_parser!(i64).range(0..=100_000))]
    pub max_volumes: i64,
    /// The most sessions (daemons) on this node; one more is RESOURCE_EXHAUSTED
    #[arg(long, value_name = "NUMBER", default_value_t = 256, env = "ALLUXIO_CSI_MAX_SESSIONS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_sessions: u32,
    /// How long a session without targets is kept for the next pod
    #[arg(long, value_name = "DURATION", default_value = "60s", env = "ALLUXIO_CSI_IDLE_TIMEOUT", value_parser = duration)]
    pub idle_timeout: Duration,
    /// How often mounts are checked and mended
    #[arg(long, value_name = "DURATION", default_value = "5s", env = "ALLUXIO_CSI_CHECK_INTERVAL", value_parser = interval)]
    pub check_interval: Duration,
    /// How long an unpublish waits for uploads of what was written, before it is answered with an error and repeated by kubelet
    #[arg(long, value_name = "DURATION", default_value = "60s", env = "ALLUXIO_CSI_UPLOAD_TIMEOUT", value_parser = interval)]
    pub upload_timeout: Duration,
    /// How long the start of a session may take
    #[arg(long, value_name = "DURATION", default_value = "30s", env = "ALLUXIO_CSI_START_TIMEOUT", value_parser = interval)]
    pub start_timeout: Duration,
}

/// What `controller` takes.
#[derive(Debug, Clone, Args)]
pub struct ControllerArgs {
    /// Name and endpoint.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// A directory or prefix that holds volumes, as in a class's `ufs`; listed, purged and measured also when no call names
    /// it. May be given several times, or separated by commas
    #[arg(long, value_name = "URI", env = "ALLUXIO_CSI_VOLUME_ROOTS", value_delimiter = ',')]
    pub volume_root: Vec<String>,
    /// How long a deleted volume stays in the trash before its data is removed
    #[arg(long, value_name = "DURATION", default_value = "24h", env = "ALLUXIO_CSI_TRASH_RETENTION", value_parser = duration)]
    pub trash_retention: Duration,
}

/// What `doctor` takes.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Directories and the mounter.
    #[command(flatten)]
    pub places: PlacesArgs,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How to show something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = LogOptions { filter: cli.log.log_level, file: None, json: cli.log.log_json };
    let done = match cli.command {
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Node(arguments) => service(&log, crate::node::serve(arguments)),
        Command::Controller(arguments) => service(&log, crate::controller::serve(arguments)),
    };
    match done {
        Ok(code) => code,
        Err(line) => {
            eprintln!("alluxio-csi: {}", line.replace(['\n', '\r'], " "));
            ExitCode::FAILURE
        }
    }
}

fn service(log: &LogOptions, serve: impl Future<Output = Result<(), String>>) -> Result<ExitCode, String> {
    logging::init(log).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(256)
        .thread_name("alluxio-csi")
        .enable_all()
        .build()
        .map_err(|error| format!("the threads of the driver: {error}"))?;
    let done = runtime.block_on(serve);
    // A call that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

fn duration(text: &str) -> Result<Duration, String> {
    <Duration as common::conf::ConfValue>::parse(text.trim())
}

/// A path, or none.
fn any_path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < Duration::from_millis(50) => Err("at least 50ms".into()),
        long => Ok(long),
    }
}

fn node_id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty; give the name of this node, as in spec.nodeName".into()),
        long if long.len() > 192 => Err("has more than 192 bytes".into()),
        name => Ok(name.to_owned()),
    }
}

/// As the specification wants it: a domain name of at most 63 characters.
fn driver_name(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if fine { Ok(text.to_owned()) } else { Err("is no name of a driver: letters, digits, - and ., 63 at most".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        assert!(node_id(" ").is_err());
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert!(interval("0").is_err());
        assert!(duration("soon").is_err());
        assert!(driver_name("alluxio").is_ok() && driver_name("csi.alluxio.com").is_ok());
        assert!(driver_name("").is_err() && driver_name("-x").is_err() && driver_name("a b").is_err());
    }
}
