//! `fs stat` and `fs test`: what is known of a place.

use super::place::Place;
use super::{Undecided, format};
use common::conf::Conf;
use common::{Attr, Error, ErrorKind};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct StatArgs {
    /// What to print: %N name, %z size in bytes, %b 512-byte blocks, %u owner, %g group, %a permissions in octal,
    /// %F kind, %y time of the last change, %Y the same in milliseconds since 1970, %v version, %% a percent sign
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// The file or directory
    #[arg(value_name = "PLACE")]
    place: String,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct TestArgs {
    /// Is it a directory?
    #[arg(short, long, value_name = "PLACE")]
    directory: Option<String>,
    /// Is it there?
    #[arg(short, long, value_name = "PLACE")]
    exists: Option<String>,
    /// Is it a file?
    #[arg(short, long, value_name = "PLACE")]
    file: Option<String>,
    /// Is it a directory with entries?
    #[arg(short = 's', long, value_name = "PLACE")]
    non_empty: Option<String>,
    /// Is it a file without content?
    #[arg(short = 'z', long, value_name = "PLACE")]
    zero: Option<String>,
}

pub async fn stat(args: StatArgs, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let place = Place::parse(&args.place, conf).await?;
    let attr = place.attr().await?;
    let name = place.path.name().map_or_else(|| "/".to_owned(), format::name);
    let kind = if attr.is_dir() { "directory" } else { "file" };
    if let Some(format) = &args.format {
        writeln!(out, "{}", fill(format, &attr, &name)?)?;
    } else if args.json {
        let value = serde_json::json!({
            "name": name, "path": args.place, "type": kind, "length": attr.size,
            "lastModificationTimeMs": millis(&attr), "mode": format!("{:04o}", attr.mode), "uid": attr.uid, "gid": attr.gid,
            "version": attr.version.as_str(),
        });
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "Path: {}", args.place)?;
        writeln!(out, "Type: {kind}")?;
        writeln!(out, "Size: {} ({})", attr.size, format::human(attr.size))?;
        writeln!(out, "Modified: {}", format::time(attr.mtime))?;
        writeln!(out, "Mode: {} ({:04o})", format::mode(&attr), attr.mode)?;
        writeln!(out, "Owner: {}:{}", attr.uid, attr.gid)?;
        writeln!(out, "Version: {}", attr.version)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn millis(attr: &Attr) -> i64 {
    attr.mtime.sec.saturating_mul(1000).saturating_add(i64::from(attr.mtime.nsec / 1_000_000))
}

fn fill(format: &str, attr: &Attr, name: &str) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('N') => out.push_str(name),
            Some('z') => out.push_str(&attr.size.to_string()),
            Some('b') => out.push_str(&attr.blocks.to_string()),
            Some('u') => out.push_str(&attr.uid.to_string()),
            Some('g') => out.push_str(&attr.gid.to_string()),
            Some('a') => out.push_str(&format!("{:o}", attr.mode)),
            Some('F') => out.push_str(format::kind(attr)),
            Some('y') => out.push_str(&format::time(attr.mtime)),
            Some('Y') => out.push_str(&millis(attr).to_string()),
            Some('v') => out.push_str(attr.version.as_str()),
            Some('%') => out.push('%'),
            Some(other) => anyhow::bail!("stat format has %{other}; use %N %z %b %u %g %a %F %y %Y %v or %%"),
            None => anyhow::bail!("stat format ends in a single %; write %% for a percent sign"),
        }
    }
    Ok(out)
}

pub async fn test(args: TestArgs, conf: &Conf) -> anyhow::Result<ExitCode> {
    match decide(args, conf).await {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(1)),
        Err(error) => match error.downcast::<Error>() {
            Ok(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(ExitCode::from(1))
            }
            Ok(error) => Err(Undecided(error).into()),
            Err(error) => Err(Undecided(Error::new(ErrorKind::Io, error.to_string())).into()),
        },
    }
}

async fn decide(args: TestArgs, conf: &Conf) -> anyhow::Result<bool> {
    let place = async |text: String| Place::parse(&text, conf).await;
    Ok(if let Some(text) = args.directory {
        place(text).await?.attr().await?.is_dir()
    } else if let Some(text) = args.file {
        place(text).await?.attr().await?.is_file()
    } else if let Some(text) = args.zero {
        let attr = place(text).await?.attr().await?;
        attr.is_file() && attr.size == 0
    } else if let Some(text) = args.non_empty {
        let place = place(text).await?;
        place.attr().await?.is_dir() && place.storage.list(&place.path).await?.next().await?.is_some()
    } else if let Some(text) = args.exists {
        place(text).await?.attr().await.map(|_| true)?
    } else {
        anyhow::bail!("fs test needs one of -d, -e, -f, -s, -z")
    })
}
