//! `info report`: how the cluster does, from etcd and from what each live worker says of itself.
//!
//! A worker that is live and does not answer is shown as such; the rest of the report does not wait for it longer than
//! one call takes.

use crate::cluster::{self, Cluster, block_on};
use crate::fs::format;
use client::membership::MembershipView;
use client::mount_table::{MountEntry, MountTable};
use common::conf::{Conf, keys::cluster as keys};
use common::redact;
use common::rpc::worker::{StatusReply, StatusRequest};
use serde_json::json;
use std::collections::HashMap;
use std::io::Write;
use std::time::SystemTime;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to report
    #[arg(value_enum, default_value = "summary")]
    what: What,
    /// How
    #[arg(long, value_enum, ignore_case = true, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The whole cluster: workers, space, mounts
    Summary,
    /// Space, for each worker
    Capacity,
    /// The under storages that are mounted
    Ufs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people and cut(1)
    Text,
    /// One JSON object
    Json,
}

/// A worker as the report has it.
struct Line {
    id: String,
    address: String,
    live: bool,
    /// Why it did not answer though it is live.
    silent: Option<String>,
    status: Option<StatusReply>,
}

impl Line {
    fn state(&self) -> &'static str {
        match (self.live, &self.silent) {
            (false, _) => "OFFLINE",
            (true, None) => "ONLINE",
            (true, Some(_)) => "SILENT",
        }
    }
}

struct Report {
    cluster: String,
    etcd: String,
    workers: Vec<Line>,
    mounts: MountTable,
}

impl Report {
    fn count(&self, state: &str) -> usize {
        self.workers.iter().filter(|line| line.state() == state).count()
    }

    fn sum(&self, of: impl Fn(&StatusReply) -> u64) -> u64 {
        self.workers.iter().filter_map(|line| line.status.as_ref()).map(of).sum()
    }
}

pub fn run(args: &Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<()> {
    let report = block_on(async {
        let cluster = Cluster::connect(conf).await?;
        let mounts = cluster.mounts.read().await?;
        let view = cluster.membership.view().await?;
        if view.workers.is_empty() {
            crate::complain(&format!("warning: {}", cluster.nobody(&view).await));
        }
        let workers = if args.what == What::Ufs { Vec::new() } else { lines(&view, conf).await };
        let etcd = conf.get(&keys::ETCD_ENDPOINTS).iter().map(|one| redact::uri(one).into_owned()).collect::<Vec<_>>();
        Ok(Report { cluster: cluster.name, etcd: etcd.join(","), workers, mounts })
    })?;
    match args.format {
        Format::Json => writeln!(out, "{:#}", in_json(&report, args.what))?,
        Format::Text => in_text(&report, args.what, out)?,
    }
    Ok(())
}

async fn lines(view: &MembershipView, conf: &Conf) -> Vec<Line> {
    let live = view.workers.values().filter(|state| state.live).map(|state| state.entry.clone()).collect();
    let answers = cluster::ask_all(live, conf, async |link| {
        cluster::ask(&link, async |client| client.status(StatusRequest {}).await).await
    });
    let mut answers: HashMap<_, _> =
        answers.await.into_iter().map(|(entry, answer)| (entry.identity, answer)).collect();
    let line = |(identity, state): (&client::ring::WorkerIdentity, &client::membership::WorkerState)| {
        let (status, silent) = match answers.remove(identity) {
            Some(Ok(status)) => (Some(status), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        Line { id: identity.to_string(), address: state.entry.shown(), live: state.live, silent, status }
    };
    view.workers.iter().map(line).collect()
}

fn in_text(report: &Report, what: What, out: &mut impl Write) -> std::io::Result<()> {
    if what != What::Ufs {
        let (capacity, used) = (report.sum(|it| it.capacity), report.sum(|it| it.used));
        if what == What::Summary {
            writeln!(out, "Cluster: {}", report.cluster)?;
            writeln!(out, "Etcd: {}", report.etcd)?;
            let silent = report.count("SILENT");
            let silent = if silent > 0 { format!(", {silent} silent") } else { String::new() };
            writeln!(out, "Workers: {} live, {} lost{silent}", report.count("ONLINE"), report.count("OFFLINE"))?;
        }
        writeln!(out, "Capacity: {}", format::human(capacity))?;
        writeln!(out, "Used: {} ({}%)", format::human(used), percent(used, capacity))?;
        writeln!(out, "Cached files: {}", report.sum(|it| it.files))?;
        writeln!(out)?;
        writeln!(out, "WorkerId\tAddress\tStatus\tVersion\tUptime\tCapacity\tUsed\tFiles")?;
        for line in &report.workers {
            write!(out, "{}\t{}\t{}\t", line.id, line.address, line.state())?;
            match &line.status {
                Some(status) => writeln!(
                    out,
                    "{}\t{}\t{}\t{} ({}%)\t{}",
                    status.version,
                    uptime(status),
                    format::human(status.capacity),
                    format::human(status.used),
                    percent(status.used, status.capacity),
                    status.files
                )?,
                None => writeln!(out, "-\t-\t-\t-\t-")?,
            }
        }
        for line in &report.workers {
            if let Some(why) = &line.silent {
                writeln!(out, "{} is registered as live and does not answer: {why}", line.id)?;
            }
        }
    }
    if what == What::Summary {
        writeln!(out)?;
    }
    if what != What::Capacity {
        writeln!(out, "Mounts: {}", report.mounts.mounts.len())?;
        for (point, entry) in &report.mounts.mounts {
            let (ufs, properties) = shown(entry);
            writeln!(out, "{ufs} on {point} {properties}")?;
        }
    }
    Ok(())
}

fn in_json(report: &Report, what: What) -> serde_json::Value {
    let mut value = json!({ "cluster": report.cluster, "etcd": report.etcd });
    if what != What::Ufs {
        let workers = report.workers.iter().map(|line| {
            json!({
                "id": line.id, "address": line.address, "status": line.state(), "error": line.silent,
                "version": line.status.as_ref().map(|it| it.version.as_str()),
                "startedUnix": line.status.as_ref().map(|it| it.started_unix),
                "capacityBytes": line.status.as_ref().map(|it| it.capacity),
                "usedBytes": line.status.as_ref().map(|it| it.used),
                "files": line.status.as_ref().map(|it| it.files),
            })
        });
        value["workers"] = workers.collect();
        value["capacityBytes"] = report.sum(|it| it.capacity).into();
        value["usedBytes"] = report.sum(|it| it.used).into();
        value["files"] = report.sum(|it| it.files).into();
    }
    if what != What::Capacity {
        let mounts = report.mounts.mounts.iter().map(|(point, entry)| {
            let (ufs, properties) = shown(entry);
            json!({ "path": point, "ufs": ufs, "properties": properties })
        });
        value["mounts"] = mounts.collect();
    }
    value
}

/// The under storage and the options of a mount, without secrets.
fn shown(entry: &MountEntry) -> (String, String) {
    let text = entry.to_string();
    let (ufs, properties) = text.split_once(' ').unwrap_or((&text, ""));
    (ufs.to_owned(), properties.to_owned())
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100) }
}

fn uptime(status: &StatusReply) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seconds = now.saturating_sub(status.started_unix);
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_worker_and_a_lost_one_are_told_apart_and_secrets_stay_hidden() {
        let line = |live, silent: Option<&str>, status| Line {
            id: "worker-1".into(),
            address: "h:1".into(),
            live,
            silent: silent.map(str::to_owned),
            status,
        };
        let status = StatusReply { capacity: 4 << 30, used: 1 << 30, files: 7, ..StatusReply::default() };
        let workers = vec![line(true, None, Some(status)), line(true, Some("why"), None), line(false, None, None)];
        let mut mounts = MountTable::default();
        let properties = [("s3a.secretKey".to_owned(), "hush".to_owned())].into();
        mounts.add("/s3", MountEntry { ufs: "s3://b".into(), properties }).unwrap();
        let report = Report { cluster: "c".into(), etcd: "http://e:1".into(), workers, mounts };
        let mut text = Vec::new();
        in_text(&report, What::Summary, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "Workers: 1 live, 1 lost, 1 silent\n",
            "Used: 1.00GB (25%)\n",
            "worker-1 is registered as live and does not answer: why\n",
            "s3://b on /s3 properties={s3a.secretKey=******}\n",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let json = in_json(&report, What::Summary).to_string();
        assert!(!json.contains("hush") && json.contains("\"SILENT\""), "{json}");
        assert!(in_json(&report, What::Ufs).get("workers").is_none());
    }
}
