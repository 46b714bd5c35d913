//! Tracker layer: the kernel's proc connector as a source of events. An ordinary user may have it since Linux 6.6, in the initial
//! namespaces.
//!
//! What it tells, and what not:
//! - a fork before fork() has returned, with the thread that has called it. A child made with CLONE_PARENT is told as one of
//!   the caller's parent, as the kernel itself sees it from then on: it goes to the parent's css_set;
//! - of a new thread no more than its process;
//! - an exit a little later than whoever waits for it ([`Source::exits_late`]);
//! - that something is lost when the socket is full, at once. An event for which the kernel finds no memory is lost without a word.
//!
//! An ordinary user's socket holds few events (net.core.rmem_max: 256 of them on most machines), so it must be drained promptly.

use super::events::{Event, Source};
use crate::sys::Errno;
use crate::sys::connector::{Connector, ProcEvent, Received};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The kernel's memory for events that have not been received, in bytes, if the user may have as much.
const ROOM: usize = 16 << 20;

/// An event's share of that, in bytes.
const EVENT: f64 = 1536.0;

/// So many events a second come from a machine that does nothing but fork.
const RATE: f64 = 60_000.0;

const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A listener is not always heard: another one that goes may take it along.
const ATTEMPTS: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct Netlink {
    room: usize,
    connector: Option<Connector>,
    pause: Duration,
    /// The events' times are those of this process's clock. In a time namespace they are not.
    same_clock: bool,
}

impl Default for Netlink {
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

/// What went wrong, and with which meaning.
fn explain(error: &io::Error) -> io::Error {
    let Some(errno) = error.raw_os_error() else { return io::Error::other(format!("netlink: {error}")) };
    let why = match errno {
        libc::EPERM => "the proc connector needs Linux 6.6 or later for an ordinary user: ",
        libc::EPROTONOSUPPORT => "the kernel has no proc connector: ",
        libc::ECONNREFUSED => "the proc connector needs the initial network namespace: ",
        _ => "",
    };
    io::Error::new(error.kind(), format!("netlink: {why}{}", Errno::from_raw(errno).desc()))
}

/// Whether this process's own threads are heard of: a new one is told before it can be waited for. If so, whether what is told has
/// happened between `begin`, when nobody listened, and now by this process's clock.
fn hears(connector: &Connector, begin: u64) -> io::Result<Option<bool>> {
    let thread = std::thread::Builder::new().name("netlink-test".into()).spawn(|| nix::unistd::gettid().as_raw())?;
    let tid = thread.join().map_err(|_| io::Error::other("the thread for the test has failed"))?;
    let (mut heard, mut lost, mut same_clock) = (false, false, true);
    loop {
        match connector.receive() {
            Received::Event(event, time) => {
                same_clock &= (begin..=now()).contains(&time);
                heard |= matches!(event, ProcEvent::Fork { child_tid, .. } if child_tid == tid);
                if heard && !lost {
                    return Ok(Some(same_clock));
                }
            }
            Received::Lost => lost = true,
            Received::Agreed | Received::Other => {}
            // If too much is told, something is. Only now the socket takes more.
            Received::Nothing => return Ok((heard || lost).then_some(same_clock)),
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |time| Duration::from(time).as_nanos() as u64)
}

impl Netlink {
    /// The same with another size of the socket's buffer, in bytes.
    pub fn with_room(room: usize) -> Self {
        Self { room, connector: None, pause: super::PAUSE, same_clock: false }
    }

    fn connect(&self) -> io::Result<(Connector, bool)> {
        let mut why = "";
        for _ in 0..ATTEMPTS {
            let begin = now();
            let connector = Connector::open(self.room)?;
            if !connector.listen()? {
                why = "the proc connector needs the initial pid and user namespaces: no answer";
            } else if let Some(same_clock) = hears(&connector, begin)? {
                return Ok((connector, same_clock));
            } else {
                why = "the proc connector does not tell of a new thread";
            }
        }
        Err(io::Error::other(why))
    }
}

impl Source for Netlink {
    fn name(&self) -> &'static str {
        "netlink"
    }

    fn start(&mut self) -> io::Result<()> {
        let (connector, same_clock) = self.connect().map_err(|error| explain(&error))?;
        let fill = Duration::from_secs_f64(connector.room()? as f64 / EVENT / RATE);
        self.pause = (fill / 2).clamp(super::PAUSE, LONGEST_PAUSE);
        (self.connector, self.same_clock) = (Some(connector), same_clock);
        Ok(())
    }

    fn stop(&mut self) {
        self.connector = None;
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> bool {
        let Some(connector) = &self.connector else { return false };
        let clock = || if self.same_clock { now() } else { u64::MAX };
        let mut end = clock();
        let mut lost = false;
        loop {
            match connector.receive() {
                Received::Event(event, time) => {
                    events.push(told(event));
                    // Whatever has happened before is told before.
                    if time > end {
                        return lost;
                    }
                }
                Received::Agreed | Received::Other => {}
                // Once full, the socket takes nothing until it is empty: what is later than this has come since.
                Received::Lost => (lost, end) = (true, clock()),
                Received::Nothing => return lost,
            }
        }
    }

    fn is_prompt(&self) -> bool {
        true
    }

    /// Half of what it takes to fill the socket.
    fn pause(&self) -> Duration {
        self.pause
    }

    fn exits_late(&self) -> bool {
        true
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connector.as_ref().map(AsFd::as_fd)
    }
}

fn told(event: ProcEvent) -> Event {
    match event {
        ProcEvent::Fork { parent_tid, parent_tgid, child_tid, child_tgid } if child_tid == child_tgid => {
            Event::Fork { creator: parent_tid, exact: true, parent: parent_tgid, child: child_tid, tgid: child_tgid }
        }
        ProcEvent::Fork { child_tid, child_tgid, .. } => {
            Event::Fork { creator: child_tgid, exact: false, parent: child_tgid, child: child_tid, tgid: child_tgid }
        }
        ProcEvent::Exec { tgid } => Event::Exec { tgid },
        ProcEvent::Exit { tid } => Event::Exit { tid, doubtful: false },
    }
}
