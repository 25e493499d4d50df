//! `alluxio-csi doctor`: what is mounted, served and recorded on this node, and what does not fit together.
//!
//! It only looks, and at no mount: records, the kernel's list, and what the mounter says.

use super::{DoctorArgs, Format};
use crate::node::records::Records;
use common::{
    handover::{self, Answer, Order},
    mountinfo,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// How long the mounter may take to answer.
const EXCHANGE: Duration = Duration::from_secs(5);

/// A session.
#[derive(Debug, Serialize)]
struct Session {
    key: String,
    source: String,
    mount: PathBuf,
    device: Option<String>,
    pid: Option<u32>,
    targets: Vec<PathBuf>,
}

/// What is wrong, and what mends it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    fix: String,
}

#[derive(Debug, Serialize)]
struct Report {
    mounter: String,
    sessions: Vec<Session>,
    findings: Vec<Finding>,
}

/// Prints the findings; exit code 1 when something is wrong.
pub(super) fn doctor(arguments: &DoctorArgs) -> Result<ExitCode, String> {
    let report = examine(arguments)?;
    let text = match arguments.format {
        Format::Json => serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n",
        Format::Text => told(&report),
    };
    // A reader that goes away early is no failure.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(arguments: &DoctorArgs) -> Result<Report, String> {
    let places = &arguments.places;
    let state = &places.state_dir;
    let (recorded, targets, useless) = Records::look(state).load().map_err(|error| {
        format!("{}: {error}; is this a node with the driver, and --state-dir right?", state.display())
    })?;
    let mounts = mountinfo::list().map_err(|error| format!("the list of mounts: {error}"))?;
    let mount_dir = places.mount_dir.canonicalize().unwrap_or_else(|_| places.mount_dir.clone());
    let mut findings = Vec::new();
    let mut find = |what: String, fix: &str| findings.push(Finding { what, fix: fix.into() });
    let (mounter, listed) = match handover::order(&places.mounter_socket, &Order::List, &[], EXCHANGE) {
        Ok((Answer::Sessions { sessions }, _)) => ("answers".to_owned(), Some(sessions)),
        Ok(_) => ("talks nonsense".to_owned(), None),
        Err(error) => (format!("does not answer: {error}"), None),
    };
    if listed.is_none() {
        let what = format!("the mounter at {} {mounter}", places.mounter_socket.display());
        find(what, "start alluxio-fuse serve, or look at the mounter's pod on this node");
    }
    for path in useless {
        find(
            format!("{} is of another boot or cannot be read", path.display()),
            "restart alluxio-csi node, which removes it",
        );
    }
    let top = |place: &Path| mounts.iter().rev().find(|mount| mount.is_ours() && mount.point == place);
    let mut sessions = Vec::new();
    for record in &recorded {
        let key = record.volume.key();
        let mount = mount_dir.join(&key);
        let device = top(&mount).map(|mount| mount.device.to_string());
        let served = listed.iter().flatten().find(|listed| listed.key == key);
        let pid = served.and_then(|served| served.pid);
        if device.is_none() {
            find(
                format!("session {key} is not mounted"),
                "alluxio-csi node mounts it again; see its log when it does not",
            );
        }
        if listed.is_some() && pid.is_none() {
            find(
                format!("session {key} is served by no process"),
                "alluxio-csi node starts one; see its log when it does not",
            );
        }
        let of = |target: &&crate::node::records::TargetRecord| target.publication.volume.key() == key;
        let targets = targets.iter().filter(of).map(|target| target.target.clone()).collect();
        sessions.push(Session { source: record.volume.shown(), key, mount, device, pid, targets });
    }
    for target in &targets {
        let key = target.publication.volume.key();
        let place = target.target.display();
        let wanted = sessions.iter().find(|session| session.key == key).and_then(|session| session.device.clone());
        match top(&target.target) {
            None => find(format!("{place} is not mounted"), "delete the pod, which is started anew"),
            Some(mount) if Some(mount.device.to_string()) != wanted => {
                find(
                    format!("{place} shows a dead session"),
                    "alluxio-csi node binds it again; see its log when it does not",
                );
            }
            Some(_) => {}
        }
    }
    for mount in mounts.iter().filter(|mount| mount.is_ours() && mount.point.starts_with(&mount_dir)) {
        if !sessions.iter().any(|session| session.mount == mount.point) {
            let place = mount.point.display();
            find(format!("{place} is mounted and no session's"), &format!("umount -l {place}"));
        }
    }
    for session in listed.iter().flatten().filter(|listed| listed.pid.is_some()) {
        if !sessions.iter().any(|known| known.key == session.key) {
            find(
                format!("the mounter serves {}, which has no record", session.key),
                "restart the mounter when no pod on this node uses a volume",
            );
        }
    }
    Ok(Report { mounter, sessions, findings })
}

fn told(report: &Report) -> String {
    let mut text = format!("mounter {}\n", report.mounter);
    for session in &report.sessions {
        let word = |value: Option<String>| value.unwrap_or_else(|| "none".into());
        text.push_str(&format!(
            "session {} {} device {} process {} targets {}\n",
            session.key,
            session.source,
            word(session.device.clone()),
            word(session.pid.map(|pid| pid.to_string())),
            session.targets.len()
        ));
        for target in &session.targets {
            text.push_str(&format!("  {}\n", target.display()));
        }
    }
    for finding in &report.findings {
        text.push_str(&format!("WRONG {}: {}\n", finding.what, finding.fix));
    }
    if report.findings.is_empty() {
        text.push_str("all is well\n");
    }
    text
}
