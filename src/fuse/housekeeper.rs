//! FUSE layer: the threads that act without a request: what is due later, and CPUs that come and go.

use crate::vfs::Vfs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// The multicast group of the kernel's own uevents.
const KERNEL_UEVENTS: u32 = 1;

/// How long a thread rests after a turn that has panicked.
const REST: Duration = Duration::from_secs(1);

/// Wakes the thread that looks after a hierarchy; sleeps for as long as there is nothing to look after.
#[derive(Clone)]
pub(super) struct Housekeeper {
    shared: Arc<Shared>,
}

/// When something is due, and what wakes the thread if that changes.
struct Shared {
    next: Mutex<Option<Instant>>,
    wake: EventFd,
}

impl Housekeeper {
    /// Starts the threads; they end with the hierarchy.
    pub(super) fn new(vfs: &Arc<Vfs>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let housekeeper = Self { shared: Arc::new(Shared { next: Mutex::default(), wake }) };
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
        let mut next = self.shared.next.lock();
        if next.is_none_or(|next| due < next) {
            *next = Some(due);
            // It cannot fail but for a counter that is full, and then the thread is awake.
            let _ = self.shared.wake.write(1);
        }
    }

    fn follow_hotplug(&self, socket: &OwnedFd, vfs: &Weak<Vfs>) {
        let mut buf = vec![0; 16 << 10];
        turns(REST, || {
            // "offline@/devices/system/cpu/cpu1". After a loss, anything may have happened.
            let concerns_us = match recv(socket.as_raw_fd(), &mut buf, MsgFlags::empty()) {
                Ok(len) => [&b"/devices/system/cpu/cpu"[..], b"/devices/system/node/"].iter().any(|dev| contains(&buf[..len], dev)),
                Err(nix::errno::Errno::ENOBUFS) => true,
                Err(nix::errno::Errno::EINTR) => false,
                Err(errno) => {
                    log::warn!("CPU hotplug is not followed any more: {errno}");
                    return ControlFlow::Break(());
                }
            };
            let Some(vfs) = vfs.upgrade() else { return ControlFlow::Break(()) };
            if concerns_us {
                vfs.hierarchy().lock().hotplug();
                self.look(&vfs);
            }
            ControlFlow::Continue(())
        });
    }
}

/// Has a thread take turns for as long as it goes on. A bug costs one turn, not the thread.
fn turns(rest: Duration, mut turn: impl FnMut() -> ControlFlow<()>) {
    loop {
        match catch_unwind(AssertUnwindSafe(&mut turn)) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return,
            Err(_) => {
                log::error!("{} has panicked; it goes on", thread::current().name().unwrap_or("a thread"));
                // Not at once: the next turn may begin in the same way.
                thread::sleep(rest);
            }
        }
    }
}

fn keep(shared: &Shared, vfs: &Weak<Vfs>) {
    // Until when the tracker is left alone.
    let mut pause: Option<Instant> = None;
    turns(REST, || {
        let due = *shared.next.lock();
        pause = pause.filter(|end| *end > Instant::now());
        // What the tracker listens to may have changed.
        let Some(tracker) = vfs.upgrade().map(|vfs| vfs.hierarchy().tracker_fd().filter(|_| pause.is_none())) else {
            return ControlFlow::Break(());
        };
        let told = sleep(shared, tracker.as_ref(), [due, pause].into_iter().flatten().min());
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if !told && !is_due {
            return ControlFlow::Continue(());
        }
        let Some(vfs) = vfs.upgrade() else { return ControlFlow::Break(()) };
        if is_due {
            vfs.hierarchy().housekeeping();
            // Only now: if it panics, it is still due.
            *shared.next.lock() = None;
        } else {
            vfs.hierarchy().listen();
        }
        let again = vfs.hierarchy().next_housekeeping();
        if told {
            pause = Some(Instant::now() + vfs.hierarchy().tracker_pause());
        }
        drop(vfs);
        let mut next = shared.next.lock();
        *next = [*next, again].into_iter().flatten().min();
        ControlFlow::Continue(())
    });
}

/// Sleeps until something is due, the time of that has changed, or the tracker has something; whether it has.
fn sleep(shared: &Shared, tracker: Option<&OwnedFd>, due: Option<Instant>) -> bool {
    let left = due.map(|due| due.saturating_duration_since(Instant::now()));
    // Rounded up: not before it is due.
    let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX));
    let mut fds: SmallVec<[PollFd<'_>; 2]> = smallvec![PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
    fds.extend(tracker.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
    let told = poll(&mut fds, timeout).is_ok() && fds.get(1).is_some_and(|fd| fd.any() == Some(true));
    let _ = shared.wake.read();
    told
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_one_turn() {
        let (begun, rest, mut taken) = (Instant::now(), Duration::from_millis(20), 0);
        turns(rest, || {
            taken += 1;
            match taken {
                1 | 3 => panic!("turn {taken}"),
                5 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert_eq!(taken, 5);
        assert!(begun.elapsed() >= 2 * rest, "no rest after a panic");
    }
}
