//! System layer: the socket of the kernel's proc connector (linux/cn_proc.h), which tells of forks, exits and executed programs.

use super::{Errno, Tid};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, getsockopt, recv, send, setsockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_CN_MCAST_IGNORE: u32 = 2;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_FORK: u32 = 0x0000_0001;
const PROC_EVENT_EXEC: u32 = 0x0000_0002;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const NLMSG_DONE: u16 = 3;
/// struct nlmsghdr.
const NLMSG_HDRLEN: usize = 16;
/// struct cn_msg.
const CN_MSG_LEN: usize = 20;
/// The place of the connector's `ack` in a message. An answer has one more than what it answers.
const ACK: usize = NLMSG_HDRLEN + 12;
/// What the request to listen has there.
const TOKEN: u32 = u32::from_ne_bytes(*b"cgfs");
/// The place of `event_data` in a message: behind both headers and `what`, `cpu` and `timestamp_ns`.
const EVENT_DATA: usize = NLMSG_HDRLEN + CN_MSG_LEN + 16;

/// A proc event. All ids are those of the initial pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcEvent {
    /// `proc_fork_connector`.
    Fork {
        /// The child's `real_parent`: the thread that has forked it, but for a thread whoever its process is a child of.
        parent_tid: Tid,
        /// Its process.
        parent_tgid: Tid,
        /// The new task.
        child_tid: Tid,
        /// Its process.
        child_tgid: Tid,
    },
    /// `proc_exec_connector`.
    Exec {
        /// The process.
        tgid: Tid,
    },
    /// `proc_exit_connector`.
    Exit {
        /// The task.
        tid: Tid,
    },
}

/// What there is to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// An event, and when it happened: before it could be received, in nanoseconds as the kernel's own CLOCK_MONOTONIC has them.
    Event(ProcEvent, u64),
    /// The answer to [`Connector::listen`].
    Agreed,
    /// Something else.
    Other,
    /// Events have been lost, and are being lost until there is [`Received::Nothing`].
    Lost,
    /// Nothing for now.
    Nothing,
}

/// The socket.
#[derive(Debug)]
pub struct Connector(OwnedFd);

impl Connector {
    /// Opens the socket with room for `room` bytes of the kernel's memory, of which an event takes some 830 to 1,600, or for as many
    /// as the user may have (net.core.rmem_max).
    ///
    /// # Errors
    /// EPROTONOSUPPORT without CONFIG_CONNECTOR, EPERM for an ordinary user before Linux 6.6.
    pub fn open(room: usize) -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes numbers.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_CONNECTOR) })?;
        // SAFETY: the descriptor is new and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // The kernel doubles what it is given.
        if setsockopt(&socket, RcvBufForce, &(room / 2)).is_err() {
            setsockopt(&socket, RcvBuf, &(room / 2))?;
        }
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (CN_IDX_PROC - 1)))?;
        Ok(Self(socket))
    }

    /// The kernel's memory for what has not been received, in bytes.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn room(&self) -> io::Result<usize> {
        Ok(getsockopt(&self.0, RcvBuf)?)
    }

    /// Asks for forks, exits and executed programs; before Linux 6.6, for all events. Whether the kernel has agreed: it does not answer
    /// outside the initial pid and user namespaces. That events arrive does not say so, they may be somebody else's.
    ///
    /// # Errors
    /// ECONNREFUSED outside the initial network namespace.
    pub fn listen(&self) -> io::Result<bool> {
        // Only whoever hears all events is answered.
        self.send(&[PROC_CN_MCAST_LISTEN], TOKEN)?;
        let (mut agreed, mut lost) = (false, false);
        // Once full, the socket takes nothing until it is empty.
        while !agreed || lost {
            match self.receive() {
                Received::Agreed => agreed = true,
                Received::Lost => lost = true,
                Received::Nothing => break,
                Received::Event(..) | Received::Other => {}
            }
        }
        // struct proc_input
        self.send(&[PROC_CN_MCAST_LISTEN, PROC_EVENT_FORK | PROC_EVENT_EXEC | PROC_EVENT_EXIT], 0)?;
        Ok(agreed)
    }

    fn send(&self, input: &[u32], token: u32) -> io::Result<()> {
        let len = size_of_val(input);
        let mut message = Vec::with_capacity(NLMSG_HDRLEN + CN_MSG_LEN + len);
        message.extend(((NLMSG_HDRLEN + CN_MSG_LEN + len) as u32).to_ne_bytes());
        message.extend([NLMSG_DONE, 0].map(u16::to_ne_bytes).as_flattened());
        // Sequence number and sender; then the connector's id, sequence number and acknowledgement.
        message.extend([0, 0, CN_IDX_PROC, CN_VAL_PROC, 0, token].map(u32::to_ne_bytes).as_flattened());
        message.extend([len as u16, 0].map(u16::to_ne_bytes).as_flattened());
        input.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives what is there, without waiting.
    pub fn receive(&self) -> Received {
        let mut message = [0; 256];
        match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(len) => parse(&message[..len]).unwrap_or(Received::Other),
            Err(Errno::ENOBUFS) => Received::Lost,
            Err(Errno::EINTR) => Received::Other,
            Err(_) => Received::Nothing,
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // The kernel counts the listeners by what they say, and goes on telling nobody if one just closes.
        let _ = self.send(&[PROC_CN_MCAST_IGNORE], 0);
    }
}

fn parse(message: &[u8]) -> Option<Received> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let data = |i: usize| Some(word(EVENT_DATA + 4 * i)?.cast_signed());
    if word(NLMSG_HDRLEN)? != CN_IDX_PROC || word(NLMSG_HDRLEN + 4)? != CN_VAL_PROC {
        return None;
    }
    let event = match word(NLMSG_HDRLEN + CN_MSG_LEN)? {
        PROC_EVENT_NONE if word(ACK)? == TOKEN + 1 && data(0)? == 0 => return Some(Received::Agreed),
        PROC_EVENT_FORK => ProcEvent::Fork { parent_tid: data(0)?, parent_tgid: data(1)?, child_tid: data(2)?, child_tgid: data(3)? },
        PROC_EVENT_EXEC => ProcEvent::Exec { tgid: data(1)? },
        PROC_EVENT_EXIT => ProcEvent::Exit { tid: data(0)? },
        _ => return None,
    };
    let time = message.get(EVENT_DATA - 8..EVENT_DATA)?.try_into().map(u64::from_ne_bytes).ok()?;
    Some(Received::Event(event, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(what: u32, data: [u32; 4]) -> Vec<u8> {
        let words = [76, 3, 0, 0, CN_IDX_PROC, CN_VAL_PROC, 0, TOKEN + 1, 40, what, 1];
        let bytes = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        [bytes(&words), 7u64.to_ne_bytes().to_vec(), bytes(&data)].concat()
    }

    #[test]
    fn messages() {
        let event = |what, data| match parse(&message(what, data))? {
            Received::Event(event, 7) => Some(event),
            _ => None,
        };
        let fork = ProcEvent::Fork { parent_tid: 11, parent_tgid: 10, child_tid: 20, child_tgid: 20 };
        assert_eq!(event(PROC_EVENT_FORK, [11, 10, 20, 20]), Some(fork));
        assert_eq!(event(PROC_EVENT_EXEC, [10, 10, 0, 0]), Some(ProcEvent::Exec { tgid: 10 }));
        assert_eq!(event(PROC_EVENT_EXIT, [11, 10, 0, 17]), Some(ProcEvent::Exit { tid: 11 }));
        assert_eq!(parse(&message(0x200, [11, 10, 0, 0])), None);
        assert_eq!(parse(&message(PROC_EVENT_NONE, [0, 0, 0, 0])), Some(Received::Agreed));
        assert_eq!(parse(&message(PROC_EVENT_NONE, [1, 0, 0, 0])), None, "EPERM");
        (0..68).for_each(|len| assert_eq!(parse(&message(PROC_EVENT_FORK, [1, 1, 2, 2])[..len]), None, "{len} bytes"));
        let mut other = message(PROC_EVENT_EXIT, [11, 10, 0, 17]);
        other[NLMSG_HDRLEN] = 9;
        assert_eq!(parse(&other), None);
    }
}
