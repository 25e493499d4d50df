//! What is agreed with the kernel when the mount begins.

use crate::{
    fs::{Fs, trail::Agreed},
    passthrough::{Switch, has_privilege},
};
use common::conf::keys::fuse::KernelCache;
use fuser::{InitFlags, KernelConfig};

/// Wanted where the kernel has them; each is asked for on its own, since fuser refuses a set of which one is unknown.
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
    InitFlags::FUSE_HAS_RESEND,
];

/// Wanted on a mount that takes writes.
///
/// - A file is truncated by its open, in one request.
/// - Set-id bits and capabilities are dropped by the daemon when somebody without privilege writes. Otherwise the kernel
///   would ask for the capabilities of a file before each single write.
const WANTED_FOR_WRITING: &[InitFlags] = &[InitFlags::FUSE_ATOMIC_O_TRUNC, InitFlags::FUSE_HANDLE_KILLPRIV_V2];

/// What fuser asks for by itself.
const BY_ITSELF: InitFlags =
    InitFlags::FUSE_ASYNC_READ.union(InitFlags::FUSE_BIG_WRITES).union(InitFlags::FUSE_MAX_PAGES);

/// Sets what this mount asks of the kernel, switches passthrough on or off, and returns what is agreed by that.
pub(super) fn negotiate(fs: &Fs, config: &mut KernelConfig) -> Agreed {
    let options = fs.options();
    let writing = if fs.takes_changes() { WANTED_FOR_WRITING } else { &[] };
    for capability in WANTED.iter().chain(writing) {
        if let Err(missing) = config.add_capabilities(*capability) {
            tracing::debug!("the kernel has no {missing:?}");
        }
    }
    // The nearest value that works is as good: these are wishes.
    if let Err(nearest) = config.set_max_write(options.max_request) {
        let _ = config.set_max_write(nearest);
    }
    if let Err(nearest) = config.set_max_readahead(u32::MAX) {
        let _ = config.set_max_readahead(nearest);
    }
    if let Err(nearest) = config.set_max_background(options.max_background) {
        let _ = config.set_max_background(nearest);
    }
    fs.passthrough().switch(passthrough(fs, config));
    match fs.passthrough().switched() {
        Switch::On => tracing::debug!("passthrough is on"),
        Switch::Off(reason) => tracing::info!("passthrough is off: {reason}"),
    }
    let passthrough = if fs.passthrough().is_on() { InitFlags::FUSE_PASSTHROUGH } else { InitFlags::empty() };
    let asked = WANTED.iter().chain(writing).fold(BY_ITSELF | passthrough, |all, one| all | *one);
    Agreed {
        minor: config.kernel_abi().1,
        capabilities: (config.capabilities() & asked).bits(),
        max_write: options.max_request,
    }
}

fn passthrough(fs: &Fs, config: &mut KernelConfig) -> Switch {
    let options = fs.options();
    let off = |reason: &str| Switch::Off(reason.into());
    if !options.passthrough {
        return off("switched off by option");
    }
    if options.kernel_cache == KernelCache::Direct {
        return off("direct_io asks for every read to reach the daemon");
    }
    if !has_privilege() && fs.passthrough().delegate().is_none() {
        return off("the daemon lacks CAP_SYS_ADMIN");
    }
    if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
        return off("the kernel is older than 6.9 or built without it");
    }
    if config.set_max_stack_depth(options.stack_depth).is_err() {
        return off("the file systems below are stacked too deep");
    }
    Switch::On
}
