//! `fs ls`: a line for each file and directory, in bounded memory however many there are.

use super::format;
use super::place::Place;
use common::conf::Conf;
use common::worker::DirEntry;
use common::{Attr, ErrorKind, UfsPath};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

/// Directories with at most this many entries are shown in order of their names; longer ones as the storage lists them.
const SORTED: usize = 100_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go down into directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Show a directory itself rather than its entries
    #[arg(short, long, conflicts_with = "recursive")]
    directory: bool,
    /// Show sizes for people, such as 75.72KB
    #[arg(long)]
    human_readable: bool,
    /// What to list
    #[arg(required = true, value_name = "PLACE")]
    places: Vec<String>,
}

pub async fn ls(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    for text in &args.places {
        let place = Place::parse(text, conf).await?;
        let attr = place.attr().await?;
        if !attr.is_dir() || args.directory {
            line(&args, &attr, if place.shown.is_empty() { "/" } else { &place.shown }, out)?;
            continue;
        }
        // Directories still to be listed; their entries are printed as they come, their number is what is remembered.
        let mut pending = vec![(place.path.clone(), place.shown.clone())];
        while let Some((path, shown)) = pending.pop() {
            let below = directory(&args, &place, &path, &shown, out).await?;
            pending.extend(below.into_iter().rev());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the entries of a directory, and returns the directories among them if they are to be listed too.
async fn directory(
    args: &Args,
    place: &Place,
    path: &UfsPath,
    shown: &str,
    out: &mut impl Write,
) -> anyhow::Result<Vec<(UfsPath, String)>> {
    let mut listing = match place.storage.list(path).await {
        // It was there when its parent was listed; somebody removed it.
        Err(error) if error.kind() == ErrorKind::NotFound && *path != place.path => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut below = Vec::new();
    let mut held: Option<Vec<DirEntry>> = Some(Vec::new());
    loop {
        let batch = listing.next().await?;
        let ended = batch.is_none();
        let mut batch = batch.unwrap_or_default();
        if let Some(entries) = &mut held {
            entries.append(&mut batch);
            if !ended && entries.len() <= SORTED {
                continue;
            }
            if ended {
                entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            }
            batch = held.take().unwrap_or_default();
        }
        for entry in batch {
            let name = format!("{shown}/{}", format::name(&entry.name));
            let path = path.join(&entry.name)?;
            let attr = match entry.attr {
                Some(attr) => attr,
                None => match place.storage.stat(&path).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    attr => Arc::new(attr?),
                },
            };
            line(args, &attr, &name, out)?;
            if args.recursive && attr.is_dir() {
                below.push((path, name));
            }
        }
        if ended {
            return Ok(below);
        }
    }
}

fn line(args: &Args, attr: &Attr, name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    // A directory's own size says nothing about what it holds.
    let size = if attr.is_dir() { 0 } else { attr.size };
    let size = if args.human_readable { format::human(size) } else { size.to_string() };
    writeln!(out, "{} {size:>8} {} {} {name}", format::mode(attr), format::time(attr.mtime), format::kind(attr))?;
    Ok(())
}
