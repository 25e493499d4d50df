//! The command line of `alluxio-fuse`: `mount`, `umount`, `status`, and the form in which mount(8) and fstab call it.
//!
//! Every failure is one line on standard error that begins with the program's name, and an exit code that is not 0:
//! 2 for a command line that makes no sense, 1 for the rest.

pub mod log_level;
mod mount;
mod serve;
mod status;
mod unmount;

use crate::session::process;
use clap::{Args, Parser, Subcommand, ValueEnum};
use common::conf::{Conf, ConfError, Role, Source, keys};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

const EXAMPLES: &str = "\
Examples:
  alluxio-fuse mount s3://bucket/prefix /mnt/data
  alluxio-fuse mount ./dataset /tmp/view
  alluxio-fuse status
  alluxio-fuse umount /mnt/data
In /etc/fstab:
  s3://bucket/prefix  /mnt/data  fuse.alluxio-fuse  ro,allow_other,_netdev  0 0";

/// Mounts buckets and directories.
#[derive(Debug, Parser)]
#[command(name = "alluxio-fuse", version, about = "Mounts a bucket or a directory", after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a bucket or a directory
    #[command(after_help = "\
Examples:
  alluxio-fuse mount s3://bucket/prefix /mnt/data -o ro,allow_other
  alluxio-fuse mount s3://bucket /mnt/data -o local_data_cache=/nvme/cache,local_data_cache_size=200GB
  alluxio-fuse mount s3://bucket /mnt/data -o alluxio.underfs.s3.endpoint=http://127.0.0.1:9000
  alluxio-fuse mount s3://bucket /mnt/data -o writeback
  alluxio-fuse mount -f -o passthrough=off /data /tmp/view
docs/CONFIGURATION.md lists all options.")]
    Mount(MountArgs),
    /// Unmount; a dead mount too
    #[command(
        visible_alias = "unmount",
        after_help = "\
Example:
  alluxio-fuse umount /mnt/data"
    )]
    Umount(UnmountArgs),
    /// Serve connections that the CSI node plugin hands over; needs no privilege
    #[command(after_help = "\
Examples:
  alluxio-fuse serve --fd-socket /mounter/mounter.sock
The configuration (alluxio-site.properties, ALLUXIO_JAVA_OPTS) holds for all sessions; the first signal waits until all are
unmounted, the second ends them.")]
    Serve(ServeArgs),
    /// Show the mounts and how they do
    #[command(after_help = "\
Examples:
  alluxio-fuse status
  alluxio-fuse status --format json")]
    Status(StatusArgs),
}

/// What `mount` takes.
#[derive(Debug, Args)]
struct MountArgs {
    /// Stay in the foreground; the end of the program ends the mount
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Options, separated by commas; may be given several times
    #[arg(short = 'o', value_name = "OPTION[,OPTION]", allow_hyphen_values = true)]
    options: Vec<String>,
    /// What to mount (s3://bucket/prefix, file:///dir, a path, ...), then where
    #[arg(value_name = "UFS_URI MOUNT_POINT", num_args = 0..=2)]
    names: Vec<OsString>,
    /// mount(8) passes these; they have no meaning here
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    #[arg(short = 't', hide = true, value_name = "TYPE")]
    fs_type: Option<String>,
}

/// What `serve` takes.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Where to listen for the plugin, in a directory that only it and this user may enter
    #[arg(long, value_name = "SOCKET", env = "ALLUXIO_FUSE_FD_SOCKET", required_unless_present = "session")]
    fd_socket: Option<PathBuf>,
    /// Serve one session, ordered over standard input
    #[arg(long, value_name = "KEY", hide = true)]
    session: Option<String>,
}

/// What `umount` takes.
#[derive(Debug, Args)]
struct UnmountArgs {
    /// Where it is mounted
    mount_point: PathBuf,
}

/// What `status` takes.
#[derive(Debug, Args)]
struct StatusArgs {
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Why a command failed, for people.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Session(#[from] crate::session::SessionError),
    #[error("{0}")]
    Conf(#[from] ConfError),
    #[error("{0}")]
    Line(String),
}

/// Runs the program and ends it.
pub fn main() -> ! {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let helper = arguments.first().is_some_and(|name| is_helper_name(name));
    let cli = match Cli::try_parse_from(normalize(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal cannot be told anything.
            let _ = error.print();
            process::exit_now(error.exit_code());
        }
    };
    let code = match cli.command {
        Command::Mount(arguments) => mount::mount(arguments, helper),
        Command::Umount(arguments) => unmount::unmount(&arguments.mount_point),
        Command::Serve(arguments) => serve::serve(&arguments),
        Command::Status(arguments) => status::status(arguments.format == Format::Json),
    };
    process::exit_now(code.unwrap_or_else(|failure| {
        complain(&failure.to_string());
        1
    }))
}

/// One line for people, on standard error.
fn complain(line: &str) {
    use std::io::Write;
    let line = line.replace(['\n', '\r'], " ");
    // A closed terminal cannot be told anything.
    let _ = writeln!(std::io::stderr(), "alluxio-fuse: {line}");
}

/// Whether mount(8) calls us as the helper of our type.
fn is_helper_name(name: &OsStr) -> bool {
    Path::new(name).file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mount."))
}

/// Puts the word `mount` into the form that fstab uses: `alluxio-fuse <uri> <mount point> -o ...`.
fn normalize(mut arguments: Vec<OsString>) -> Vec<OsString> {
    const WORDS: [&str; 10] =
        ["mount", "umount", "unmount", "serve", "status", "help", "--help", "-h", "--version", "-V"];
    let Some(first) = arguments.get(1) else { return arguments };
    let known = WORDS.iter().any(|word| first == word);
    // A word that is no path and stands alone is a mistyped command, and is reported as such.
    let place = |argument: &OsString| argument.as_encoded_bytes().contains(&b'/');
    if !known && arguments[1..].iter().any(place) {
        arguments.insert(1, "mount".into());
    }
    arguments
}

/// The configuration of the daemon: with these options, and with the state directory that the environment names.
fn configuration(options: Option<&common::conf::MountOptions>) -> Result<Conf, ConfError> {
    let mut builder = Conf::builder().process(Role::Fuse);
    if let Ok(directory) = std::env::var("ALLUXIO_FUSE_RUNTIME_DIR")
        && !directory.is_empty()
    {
        let source = Source::Environment("ALLUXIO_FUSE_RUNTIME_DIR".into());
        builder = builder.set(keys::fuse::STATE_DIR.name(), &directory, source);
    }
    if let Some(options) = options {
        builder = builder.mount_options(options);
    }
    builder.load()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(normalize(line.split(' ').map(OsString::from).collect()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_form_of_mount_is_the_same() {
        for line in [
            "alluxio-fuse mount s3://b /m -o ro -o allow_other",
            "alluxio-fuse mount -o ro -o allow_other s3://b /m",
            "alluxio-fuse s3://b /m -o ro -o allow_other",
            "mount.fuse.alluxio-fuse s3://b /m -n -s -v -o ro -o allow_other",
            "/sbin/mount.alluxio -o ro -o allow_other s3://b /m",
        ] {
            let Command::Mount(arguments) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!(arguments.names, ["s3://b", "/m"], "{line}");
            assert_eq!(arguments.options, ["ro", "allow_other"], "{line}");
        }
    }

    #[test]
    fn a_mistyped_command_is_no_path() {
        assert!(parse("alluxio-fuse moutn").unwrap_err().to_string().contains("unrecognized subcommand"));
        assert!(parse("alluxio-fuse umount").is_err());
        assert!(parse("alluxio-fuse mount a /b c").is_err());
        assert!(matches!(parse("alluxio-fuse unmount /m").unwrap().command, Command::Umount(_)));
    }

    #[test]
    fn the_helper_of_mount_is_known_by_its_name() {
        assert!(is_helper_name(OsStr::new("/sbin/mount.fuse.alluxio-fuse")));
        assert!(!is_helper_name(OsStr::new("/usr/bin/alluxio-fuse")));
    }
}
