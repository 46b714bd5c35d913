//! FUSE layer: the threads that act without a request: what is due later, and CPUs that come and go.

use crate::vfs::Vfs;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

/// The multicast group of the kernel's own uevents.
const KERNEL_UEVENTS: u32 = 1;

/// Wakes the thread that looks after a hierarchy; sleeps for as long as there is nothing to look after.
#[derive(Clone)]
pub(super) struct Housekeeper {
    shared: Arc<(Mutex<Option<Instant>>, Condvar)>,
}

impl Housekeeper {
    /// Starts the threads; they end with the hierarchy.
    pub(super) fn new(vfs: &Arc<Vfs>) -> io::Result<Self> {
        let housekeeper = Self { shared: Arc::default() };
        let (shared, weak) = (housekeeper.shared.clone(), Arc::downgrade(vfs));
        thread::Builder::new().name("housekeeper".into()).spawn(move || keep(&shared, &weak))?;
        let weak = Arc::downgrade(vfs);
        match uevents() {
            Ok(socket) => {
                let housekeeper = housekeeper.clone();
                thread::Builder::new().name("hotplug".into()).spawn(move || housekeeper.follow_hotplug(&socket, &weak))?;
            }
            Err(error) => log::warn!("CPU hotplug is not followed: {error}"),
        }
        Ok(housekeeper)
    }

    /// Makes sure that what is due now or later will be done then.
    pub(super) fn look(&self, vfs: &Vfs) {
        let Some(due) = vfs.hierarchy().next_housekeeping() else { return };
        let (next, changed) = &*self.shared;
        let mut next = next.lock();
        if next.is_none_or(|next| due < next) {
            *next = Some(due);
            changed.notify_one();
        }
    }

    fn follow_hotplug(&self, socket: &OwnedFd, vfs: &Weak<Vfs>) {
        let mut buf = vec![0; 16 << 10];
        loop {
            // "offline@/devices/system/cpu/cpu1". After a loss, anything may have happened.
            let concerns_us = match recv(socket.as_raw_fd(), &mut buf, MsgFlags::empty()) {
                Ok(len) => [&b"/devices/system/cpu/cpu"[..], b"/devices/system/node/"].iter().any(|dev| contains(&buf[..len], dev)),
                Err(nix::errno::Errno::ENOBUFS) => true,
                Err(nix::errno::Errno::EINTR) => false,
                Err(errno) => return log::warn!("CPU hotplug is not followed any more: {errno}"),
            };
            let Some(vfs) = vfs.upgrade() else { return };
            if concerns_us {
                vfs.hierarchy().lock().hotplug();
                self.look(&vfs);
            }
        }
    }
}

fn keep(shared: &(Mutex<Option<Instant>>, Condvar), vfs: &Weak<Vfs>) {
    let (next, changed) = shared;
    loop {
        let mut due = next.lock();
        match *due {
            Some(at) if at <= Instant::now() => *due = None,
            Some(at) => {
                changed.wait_until(&mut due, at);
                continue;
            }
            None => {
                changed.wait(&mut due);
                continue;
            }
        }
        drop(due);
        let Some(vfs) = vfs.upgrade() else { return };
        vfs.hierarchy().housekeeping();
        let again = vfs.hierarchy().next_housekeeping();
        let mut due = next.lock();
        *due = [*due, again].into_iter().flatten().min();
    }
}

/// A socket that hears the kernel's device events.
fn uevents() -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkKObjectUEvent)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_UEVENTS))?;
    Ok(fd)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
