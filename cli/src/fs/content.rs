//! `fs cat`, `head`, `tail` and `checksum`: the bytes of files, each of one version from beginning to end.

use super::place::Place;
use super::size;
use common::conf::Conf;
use common::{Attr, Error};
use futures::{StreamExt, TryStreamExt, stream};
use sha2::Digest;
use std::io::Write;
use std::process::ExitCode;

/// Files are read in pieces of this many bytes.
const PIECE: u64 = 4 << 20;
/// So many pieces are on their way at once; they bound the memory that a command takes.
const AHEAD: usize = 4;

#[derive(Debug, clap::Args)]
pub struct CatArgs {
    /// The files
    #[arg(required = true, value_name = "PLACE")]
    places: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct PartArgs {
    /// How many bytes, such as 100, 4KB or 1MiB
    #[arg(short = 'c', long, value_name = "SIZE", default_value = "1KB", value_parser = size)]
    bytes: u64,
    /// The file
    #[arg(value_name = "PLACE")]
    place: String,
}

#[derive(Debug, clap::Args)]
pub struct ChecksumArgs {
    /// Which checksum
    #[arg(long, value_enum, default_value = "md5")]
    algorithm: Algorithm,
    /// The file
    #[arg(value_name = "PLACE")]
    place: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Algorithm {
    Md5,
    Sha256,
}

pub async fn cat(args: CatArgs, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    for text in &args.places {
        let place = Place::parse(text, conf).await?;
        let attr = place.file().await?;
        each_piece(&place, &attr, 0, attr.size, |bytes| Ok(out.write_all(bytes)?)).await?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn head(args: PartArgs, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let place = Place::parse(&args.place, conf).await?;
    let attr = place.file().await?;
    each_piece(&place, &attr, 0, args.bytes.min(attr.size), |bytes| Ok(out.write_all(bytes)?)).await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn tail(args: PartArgs, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let place = Place::parse(&args.place, conf).await?;
    let attr = place.file().await?;
    let start = attr.size.saturating_sub(args.bytes);
    each_piece(&place, &attr, start, attr.size, |bytes| Ok(out.write_all(bytes)?)).await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn checksum(args: ChecksumArgs, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let place = Place::parse(&args.place, conf).await?;
    let attr = place.file().await?;
    let (name, sum) = match args.algorithm {
        Algorithm::Md5 => ("md5sum", digest::<md5::Md5>(&place, &attr).await?),
        Algorithm::Sha256 => ("sha256sum", digest::<sha2::Sha256>(&place, &attr).await?),
    };
    writeln!(out, "{name}: {sum}")?;
    Ok(ExitCode::SUCCESS)
}

pub async fn digest<D: Digest>(place: &Place, attr: &Attr) -> anyhow::Result<String> {
    let mut digest = D::new();
    each_piece(place, attr, 0, attr.size, |bytes| {
        digest.update(bytes);
        Ok(())
    })
    .await?;
    Ok(hex::encode(digest.finalize()))
}

/// Reads the bytes from `start` to `end` and hands them over in order, some pieces being fetched ahead.
pub async fn each_piece(
    place: &Place,
    attr: &Attr,
    start: u64,
    end: u64,
    mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let count = end.saturating_sub(start).div_ceil(PIECE);
    let pieces = stream::iter((0..count).map(|index| {
        let offset = start + index * PIECE;
        let length = PIECE.min(end - offset);
        async move {
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            place.storage.read(&place.path, &attr.version, offset, length, &mut bytes).await?;
            Ok::<_, Error>(bytes)
        }
    }));
    let mut pieces = std::pin::pin!(pieces.buffered(AHEAD));
    while let Some(bytes) = pieces.try_next().await? {
        take(&bytes)?;
    }
    Ok(())
}
