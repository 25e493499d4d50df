//! Acts for the user who asked, so that what is made belongs to that user from its first moment: quotas, set-group
//! directories and ACLs that are inherited work as if the user had made it without a daemon in between.
//!
//! User and group are set for this thread alone (`setfsuid`, `setfsgid`). That takes the rights of root from the thread,
//! which it gets back at once: the kernel has checked already what the user may do, by all groups of the user, which the
//! daemon does not know. A daemon without root acts as the user it is, for everybody.
//!
//! The mask of the process must not touch modes (the kernel has applied that of the caller). A thread that makes files
//! therefore gets a mask of its own, once.

use common::change::Caller;
use std::{cell::Cell, sync::OnceLock};

/// Acts for a caller until it is dropped, on the thread where it was made.
pub struct Acting {
    changed: bool,
    /// Whether the mask of this thread could not be set, so that modes must be set after the fact.
    pub masked: bool,
    /// It undoes what it did to its thread.
    _here: std::marker::PhantomData<*const ()>,
}

thread_local! {
    /// Whether this thread has a mask of its own, of nothing; none: not tried yet.
    static UNMASKED: Cell<Option<bool>> = const { Cell::new(None) };
}

impl Acting {
    /// Acts for `caller` from now on.
    pub fn start(caller: Caller) -> Self {
        let unmasked = UNMASKED.get().unwrap_or_else(|| {
            let unmasked = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_ok();
            if unmasked {
                nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            }
            UNMASKED.set(Some(unmasked));
            unmasked
        });
        let changed = (caller.uid != 0 || caller.gid != 0) && can_act();
        if changed {
            // SAFETY: these calls change numbers of this thread only, and have no memory to touch.
            unsafe {
                libc::setfsgid(caller.gid);
                libc::setfsuid(caller.uid);
            }
            raise();
        }
        Self { changed, masked: !unmasked, _here: std::marker::PhantomData }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.changed {
            // SAFETY: as above. To become root again for file systems gives the capabilities back that go with it. Only root
            // acts for others, but its group may be any.
            unsafe {
                libc::setfsuid(0);
                libc::setfsgid(libc::getegid());
            }
        }
    }
}

/// Capabilities as capset(2) takes them, version 3: two words each of effective, permitted, inheritable.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

const VERSION_3: u32 = 0x2008_0522;

fn own() -> &'static Option<[Capabilities; 2]> {
    static OWN: OnceLock<Option<[Capabilities; 2]>> = OnceLock::new();
    OWN.get_or_init(|| {
        let mut header = Header { version: VERSION_3, pid: 0 };
        let mut found = [Capabilities::default(); 2];
        // SAFETY: both structures have the layout that version 3 asks for and live through the call.
        let done = unsafe { libc::syscall(libc::SYS_capget, &mut header, found.as_mut_ptr()) };
        (done == 0).then_some(found)
    })
}

/// Whether this process is root and may act for others.
fn can_act() -> bool {
    const CAP_SETGID: u32 = 6;
    const CAP_SETUID: u32 = 7;
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let both = (1 << CAP_SETGID) | (1 << CAP_SETUID);
        nix::unistd::geteuid().is_root() && own().is_some_and(|own| own[0].effective & both == both)
    })
}

/// Gives this thread back what was taken from it.
fn raise() {
    if let Some(own) = own() {
        set(own);
    }
}

fn set(capabilities: &[Capabilities; 2]) {
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: both structures have the layout that version 3 asks for, and are only read. It concerns this thread.
    let done = unsafe { libc::syscall(libc::SYS_capset, &header, capabilities.as_ptr()) };
    debug_assert_eq!(done, 0, "a thread may have the capabilities that it has");
}

/// Makes `call` without the right to leave set-id bits set when a file is written to (CAP_FSETID). What takes the rights
/// of this thread along, as a backing file of passthrough does, drops those bits with each write, as a user's writes do.
pub fn without_keeping_set_id<T>(call: impl FnOnce() -> T) -> T {
    const CAP_FSETID: u32 = 4;
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            raise();
        }
    }
    let Some(mut less) = own().filter(|own| own[0].effective & (1 << CAP_FSETID) != 0) else { return call() };
    less[0].effective &= !(1 << CAP_FSETID);
    let _back = Back;
    set(&less);
    call()
}
