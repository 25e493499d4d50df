//! Keeps what was published alive: looks at every session, mends what died, and closes what nobody uses.
//!
//! Invariants: one look at a mount at a time, on a thread that nobody waits for, so a mount that hangs costs one thread; what
//! cannot be mended now is tried again, ever less often; a restart of the plugin changes no mount that works.

use super::{
    Node,
    records::{Records, SessionRecord, TargetRecord},
    sessions::{EXCHANGE, Live, Seen, Settled, Slot, Space, State},
    sys, targets,
};
use common::{
    handover::{Answer, Listed, Order},
    mountinfo::Mount,
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How long a mount may take to answer a look before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the end of a session that nobody uses waits for uploads, before it is tried again.
const SETTLING: Duration = Duration::from_secs(2);
/// Between two attempts to go on with a session.
const AGAIN: Duration = Duration::from_secs(1);
/// How long programs wait for a mounter that is gone, before their connection is given up.
const ORPHAN: Duration = Duration::from_secs(60);

/// Takes over what is recorded: mounts that work are adopted, dead ones are left to the keeper.
///
/// # Errors
/// The records or the kernel's list cannot be read.
pub async fn rebuild(node: &Arc<Node>, records: &Records) -> Result<(), String> {
    let (sessions, mut targets, useless) = records.load().map_err(|error| format!("the state directory: {error}"))?;
    let mounts = sys::mounts().map_err(|status| status.message().to_owned())?;
    for path in useless {
        tracing::warn!("{} is of another boot or cannot be read, and is removed", path.display());
        // What cannot be removed is met again at the next start.
        let _ = std::fs::remove_file(path);
    }
    targets.retain(|record| {
        // A publish that did not get as far as its mount: kubelet repeats it, or gives it up.
        let mounted = mounts.iter().any(|mount| mount.is_ours() && mount.point == record.target);
        if !mounted {
            node.targets.forget(&record.target);
        }
        mounted
    });
    for record in targets {
        node.targets.remember(record);
    }
    for SessionRecord { volume, .. } in sessions {
        let slot = match node.sessions.slot(&volume) {
            Ok(slot) => slot,
            Err(status) => {
                tracing::warn!("session {}: {}", volume.key(), status.message());
                continue;
            }
        };
        let mut state = slot.gate.lock().await;
        if let Some(mount) = mounts.iter().rev().find(|mount| mount.is_ours() && mount.point == slot.source) {
            // Not served by anybody as far as we know: the keeper finds that out too.
            if !node.sessions.adopt(&slot, &mut state, mount.device).await {
                state.live = Some(Live::of(mount.device));
            }
        }
    }
    for record in node.targets.all() {
        let volume = &record.publication.volume;
        if node.sessions.get(&volume.key()).is_none() {
            // Its session has no record: it is mended like one that died.
            if let Err(status) = node.sessions.slot(volume) {
                tracing::warn!("{}: {}", record.target.display(), status.message());
            }
        }
    }
    Ok(())
}

/// Runs until the process ends.
pub async fn keep(node: Arc<Node>) {
    let mut tick = tokio::time::interval(node.options.check_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gone_since: Option<Instant> = None;
    loop {
        tick.tick().await;
        let listed = match node.sessions.ask(Order::List, vec![], EXCHANGE).await {
            Ok((Answer::Sessions { sessions }, _)) => {
                gone_since = None;
                Some(sessions)
            }
            Ok(_) => None,
            Err(status) => {
                if gone_since.is_none() && !node.sessions.all().is_empty() {
                    tracing::warn!("{}", status.message());
                }
                gone_since.get_or_insert_with(Instant::now);
                None
            }
        };
        let orphaned = gone_since.is_some_and(|since| since.elapsed() > ORPHAN);
        let Ok(mounts) = sys::mounts() else { continue };
        for slot in node.sessions.all() {
            look(&slot);
            let (node, listed, mounts) = (node.clone(), listed.clone(), mounts.clone());
            // Each by itself: one that takes long holds up no other.
            tokio::spawn(async move { attend(&node, &slot, listed.as_deref(), &mounts, orphaned).await });
        }
    }
}

/// Does for one session what is due.
async fn attend(node: &Arc<Node>, slot: &Arc<Slot>, listed: Option<&[Listed]>, mounts: &[Mount], orphaned: bool) {
    // Whoever has the gate is at work on it.
    let Ok(mut state) = slot.gate.try_lock() else { return };
    if state.closed {
        return;
    }
    let used = !node.targets.of(&slot.key).is_empty();
    if !used {
        let since = *slot.idle.lock().get_or_insert_with(Instant::now);
        if since.elapsed() >= node.options.idle_timeout {
            retire(node, slot, &mut state).await;
            return;
        }
    } else {
        *slot.idle.lock() = None;
    }
    match (ailment(&state, slot, listed, mounts), listed) {
        (None, _) => {
            if let Some(live) = &state.live
                && slot.unbound.swap(false, Ordering::AcqRel)
            {
                let device = live.device;
                rebind(node, slot, device).await;
            }
        }
        // Without a mounter nothing can be mended; but programs must not wait for it forever.
        (Some(why), None) => {
            trouble(slot, &why);
            if orphaned && state.live.is_some() {
                tracing::warn!("session {}: {why}; its connection is given up", slot.key);
                node.sessions.give_up(slot, &mut state).await;
            }
        }
        (Some(why), Some(_)) => {
            trouble(slot, &why);
            if used && state.retry_at.is_none_or(|at| at <= Instant::now()) {
                tracing::warn!("session {}: {why}; it is started anew", slot.key);
                mend(node, slot, &mut state).await;
            } else if !used && state.live.is_some() {
                node.sessions.give_up(slot, &mut state).await;
            }
        }
    }
}

/// Closes a session that nobody uses, once everything that was written through it is in the storage.
async fn retire(node: &Arc<Node>, slot: &Arc<Slot>, state: &mut State) {
    let settled = match slot.volume.readers {
        true => Settled::All,
        false => node.sessions.settle(&slot.key, SETTLING).await,
    };
    match settled {
        Settled::All => {
            if let Err(status) = node.sessions.close(slot, state).await {
                tracing::warn!("session {} cannot be closed: {}", slot.key, status.message());
            }
        }
        Settled::Pending(why) | Settled::Unknown(why) => trouble(slot, &why),
        Settled::Unserved(why) => {
            trouble(slot, &why);
            if state.retry_at.is_none_or(|at| at <= Instant::now()) {
                tracing::warn!("session {}: {why}; it is started for that", slot.key);
                mend(node, slot, state).await;
            }
        }
    }
}

fn trouble(slot: &Slot, why: &str) {
    let mut seen = slot.seen.lock();
    seen.stuck = false;
    // What a failed start said tells more.
    seen.trouble.get_or_insert_with(|| why.to_owned());
}

/// What is wrong with a session, if anything.
fn ailment(state: &State, slot: &Slot, listed: Option<&[Listed]>, mounts: &[Mount]) -> Option<String> {
    let Some(live) = &state.live else { return Some("it is not mounted".into()) };
    if !mounts.iter().any(|mount| mount.point == slot.source && mount.device == live.device) {
        return Some("its mount was taken away".into());
    }
    let Some(listed) = listed else { return Some("the mounter does not answer".into()) };
    match listed.iter().find(|listed| listed.key == slot.key) {
        None => Some("the mounter was started anew and does not serve it".into()),
        Some(Listed { ended: Some(why), .. }) => Some(format!("its process ended: {why}")),
        Some(_) => None,
    }
}

/// Has a new process go on with a dead session; where that does not work, starts it anew and binds its targets again. Needs
/// the gate.
async fn mend(node: &Arc<Node>, slot: &Arc<Slot>, state: &mut State) {
    let since = *state.dead_since.get_or_insert_with(Instant::now);
    let held = state.live.as_ref().filter(|live| live.connection.is_some()).map(|live| live.device);
    let mounted =
        |device| sys::mounts_at(&slot.source).is_ok_and(|mounts| mounts.last().is_some_and(|top| top.device == device));
    if held.is_some_and(mounted) {
        match node.sessions.take_over(slot, state).await {
            Ok(()) => return,
            Err(status) if status.code() == tonic::Code::Unavailable && since.elapsed() < ORPHAN => {
                tracing::warn!("session {}: {}; it is tried again", slot.key, status.message());
                trouble(slot, status.message());
                state.retry_at = Some(Instant::now() + AGAIN);
                return;
            }
            Err(status) => tracing::warn!("session {} is mounted anew: {}", slot.key, status.message()),
        }
    }
    node.sessions.give_up(slot, state).await;
    let device = match node.sessions.start(slot, state).await {
        Ok(device) => device,
        Err(status) => {
            tracing::warn!("session {}: {}", slot.key, status.message());
            return;
        }
    };
    rebind(node, slot, device).await;
}

/// Binds all targets of a session to its mount, where they are not already.
pub async fn rebind(node: &Arc<Node>, slot: &Arc<Slot>, device: common::mountinfo::Device) {
    // A list that cannot be read is read again by the bind, which tells why.
    let mounts = sys::mounts().unwrap_or_default();
    for record in node.targets.of(&slot.key) {
        // What is right is not claimed, so that no call for it is turned away.
        if targets::is_bound(&mounts, device, &record) {
            continue;
        }
        let Ok(_claim) = node.targets.claim(&record.target) else {
            // A call is under way for it, perhaps one that ends without binding it: the next look sees.
            slot.unbound.store(true, Ordering::Release);
            continue;
        };
        let Some(TargetRecord { target, .. }) = node.targets.get(&record.target) else { continue };
        match targets::bind(slot, device, &record, true).await {
            Ok(()) => tracing::info!("{} is mounted", target.display()),
            Err(status) => tracing::warn!("{}: {}", target.display(), status.message()),
        }
    }
}

/// Has a look at a mount, unless one is under way.
fn look(slot: &Arc<Slot>) {
    if slot.looking.swap(true, Ordering::AcqRel) {
        return;
    }
    let slot = slot.clone();
    let source = slot.source.clone();
    tokio::spawn(async move {
        let looking = tokio::task::spawn_blocking(move || space(&source));
        tokio::pin!(looking);
        let begin = Instant::now();
        let answer = loop {
            match tokio::time::timeout(PATIENCE, &mut looking).await {
                Ok(answer) => break answer,
                Err(_) => {
                    let mut seen = slot.seen.lock();
                    seen.stuck = true;
                    seen.trouble = Some(format!("the mount has not answered for {} s", begin.elapsed().as_secs()));
                }
            }
        };
        let mut seen = slot.seen.lock();
        match answer {
            Ok(Ok(space)) => *seen = Seen { space: Some(space), trouble: None, stuck: false },
            Ok(Err(why)) => {
                seen.stuck = false;
                seen.trouble.get_or_insert(why);
            }
            // The runtime is ending.
            Err(_) => {}
        }
        drop(seen);
        slot.looking.store(false, Ordering::Release);
    });
}

/// Asks the file system itself, which plain stat would not.
fn space(source: &PathBuf) -> Result<Space, String> {
    let on_mount = sys::mounts_at(source).is_ok_and(|mounts| mounts.last().is_some_and(Mount::is_ours));
    if !on_mount {
        return Err("it is not mounted".into());
    }
    let found = nix::sys::statvfs::statvfs(source).map_err(|errno| format!("the mount answers {errno}"))?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(found.fragment_size())).unwrap_or(i64::MAX);
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(Space {
        total: bytes(found.blocks()),
        available: bytes(found.blocks_available()),
        used: bytes(found.blocks().saturating_sub(found.blocks_free())),
        files: count(found.files()),
        files_free: count(found.files_free()),
    })
}
