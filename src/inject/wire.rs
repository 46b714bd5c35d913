//! Injection: how plans and results travel between the caller and the injector process. Both are the same program.

use super::error::{Flaw, InjectError, Unknown};
use super::plan::{Arg, Descriptor, Invocation, MAX_FDS, Namespace, Plan, Report, SYSCALLS, Step, Syscall, Target};
use crate::sys::{Errno, Tid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Longer than any message: MAX_DATA bytes and some steps.
pub(super) const MAX_MESSAGE: usize = 65536;

/// What the injector process is asked to do.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    pub(super) plan: Plan,
    pub(super) deadline: Duration,
}

/// What it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Every thread known has been asked to stop; the writer can be answered.
    Interrupted,
    /// These have been asked to stop some time ago and have not.
    Waiting(Vec<Tid>),
    /// The end.
    Done {
        /// Of the injection.
        result: Result<Report, InjectError>,
        /// The process ends now, since it has tracees that nothing else releases.
        last: bool,
    },
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn word(&mut self, word: u64) -> &mut Self {
        self.0.extend(word.to_ne_bytes());
        self
    }
    fn tid(&mut self, tid: Tid) -> &mut Self {
        self.word(i64::from(tid).cast_unsigned())
    }
    fn len(&mut self, len: usize) -> &mut Self {
        self.word(len as u64)
    }
    fn errno(&mut self, errno: Errno) -> &mut Self {
        self.tid(errno as i32)
    }
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.len(bytes.len()).0.extend(bytes);
        self
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*word))
    }
    fn tid(&mut self) -> Option<Tid> {
        self.word()?.cast_signed().try_into().ok()
    }
    fn len(&mut self) -> Option<usize> {
        self.word()?.try_into().ok()
    }
    fn errno(&mut self) -> Option<Errno> {
        self.tid().map(Errno::from_raw)
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.len()?).map(|_| item(self)).collect()
    }
}

impl Request {
    /// The message, and the descriptors that go with it.
    pub(super) fn encode(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let mut out = Out::default();
        let plan = &self.plan;
        let (process, tid) = match self.target {
            Target::Process(tid) => (1, tid),
            Target::Thread(tid) => (0, tid),
        };
        out.word(process).tid(tid).word(self.deadline.as_nanos() as u64);
        out.word(plan.single.into()).word(plan.skip_io_workers.into()).tid(plan.writer.unwrap_or(0));
        out.len(plan.steps.len());
        for step in &plan.steps {
            put_call(&mut out, &step.call);
            out.len(step.undo.len());
            step.undo.iter().for_each(|call| put_call(&mut out, call));
        }
        out.len(plan.data.len());
        plan.data.iter().for_each(|bytes| {
            out.bytes(bytes);
        });
        out.len(plan.expect.len());
        for (kind, inode) in &plan.expect {
            out.word(*kind as u64).word(*inode);
        }
        out.len(plan.fds.len());
        let mut fds = Vec::new();
        for descriptor in &plan.fds {
            match descriptor {
                Descriptor::Pidfd(pid) => out.tid(*pid),
                Descriptor::File(file) => {
                    fds.push(file.as_fd());
                    out.tid(0)
                }
            };
        }
        (out.0, fds)
    }

    /// `None` for what [`Request::encode`] does not make.
    pub(super) fn decode(message: &[u8], fds: Vec<OwnedFd>) -> Option<Self> {
        let mut message = In(message);
        let message = &mut message;
        let process = message.word()? == 1;
        let tid = message.tid()?;
        let target = if process { Target::Process(tid) } else { Target::Thread(tid) };
        let deadline = Duration::from_nanos(message.word()?);
        let single = message.word()? == 1;
        let skip_io_workers = message.word()? == 1;
        let writer = message.tid().map(|tid| (tid != 0).then_some(tid))?;
        let steps = message.list(|message| Some(Step { call: get_call(message)?, undo: message.list(get_call)? }))?;
        let data = message.list(|message| message.bytes().map(<[u8]>::to_vec))?;
        let expect = message.list(|message| Some((*Namespace::ALL.get(message.len()?)?, message.word()?)))?;
        let mut fds = fds.into_iter();
        let fds = message.list(|message| match message.tid()? {
            0 => Some(Descriptor::File(Arc::new(fds.next()?))),
            pid => Some(Descriptor::Pidfd(pid)),
        })?;
        let plan = Plan { steps, fds, data, expect, single, skip_io_workers, writer };
        (plan.fds.len() <= MAX_FDS).then_some(Self { target, plan, deadline })
    }
}

fn put_call(out: &mut Out, call: &Invocation) {
    out.word(call.call as u64);
    for arg in call.args {
        match arg {
            Arg::Int(value) => out.word(0).word(value),
            Arg::Fd(index) => out.word(1).len(index),
            Arg::Data(index) => out.word(2).len(index),
        };
    }
}

fn get_call(message: &mut In<'_>) -> Option<Invocation> {
    let call = get_syscall(message)?;
    let mut args = [Arg::Int(0); 6];
    for arg in &mut args {
        *arg = match message.word()? {
            0 => Arg::Int(message.word()?),
            1 => Arg::Fd(message.len()?),
            _ => Arg::Data(message.len()?),
        };
    }
    Some(Invocation { call, args })
}

fn get_syscall(message: &mut In<'_>) -> Option<Syscall> {
    Some(SYSCALLS.get(message.len()?)?.call)
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Out::default();
        match self {
            Self::Interrupted => {
                out.word(0);
            }
            Self::Waiting(tids) => {
                out.word(3).len(tids.len());
                tids.iter().for_each(|tid| _ = out.tid(*tid));
            }
            Self::Done { result: Ok(report), last } => {
                out.word(1).word((*last).into()).len(report.threads).len(report.skipped).word(report.stopped_ns).word(report.total_ns);
            }
            Self::Done { result: Err(error), last } => {
                out.word(2).word((*last).into());
                put_error(&mut out, error);
            }
        }
        out.0
    }

    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let mut message = In(message);
        let message = &mut message;
        Some(match message.word()? {
            0 => Self::Interrupted,
            3 => Self::Waiting(message.list(In::tid)?),
            kind => {
                let last = message.word()? == 1;
                let result = match kind {
                    1 => Ok(Report {
                        threads: message.len()?,
                        skipped: message.len()?,
                        stopped_ns: message.word()?,
                        total_ns: message.word()?,
                    }),
                    _ => Err(get_error(message)?),
                };
                Self::Done { result, last }
            }
        })
    }
}

fn put_error(out: &mut Out, error: &InjectError) {
    match error {
        InjectError::Gone { tid } => out.word(0).tid(*tid),
        InjectError::Itself { tid } => out.word(1).tid(*tid),
        InjectError::NotPermitted { tid } => out.word(2).tid(*tid),
        InjectError::Traced { tid, tracer } => out.word(3).tid(*tid).tid(*tracer),
        InjectError::KernelThread { tid } => out.word(4).tid(*tid),
        InjectError::Seccomp { tid } => out.word(5).tid(*tid),
        InjectError::IoWorker { tid } => out.word(6).tid(*tid),
        InjectError::NotStopping { tid, state } => out.word(7).tid(*tid).word(u64::from(*state)),
        InjectError::Unsettled { tid } => out.word(8).tid(*tid),
        InjectError::Foreign { tid, what } => out.word(9).tid(*tid).word(*what as u64),
        InjectError::NoRoom { tid } => out.word(10).tid(*tid),
        InjectError::Descriptor { tid, index, errno } => out.word(11).tid(*tid).len(*index).errno(*errno),
        InjectError::Memory { tid, errno } => out.word(12).tid(*tid).errno(*errno),
        InjectError::Call { tid, step, call, errno } => out.word(13).tid(*tid).len(*step).word(*call as u64).errno(*errno),
        InjectError::Mismatch { tid, kind } => out.word(14).tid(*tid).word(*kind as u64),
        InjectError::NotUndone { cause, tid, errno, threads } => {
            out.word(15).tid(*tid).errno(*errno).len(*threads);
            put_error(out, cause);
            out
        }
        InjectError::Died { modified } => out.word(16).word((*modified).into()),
        InjectError::Invalid(flaw) => out.word(17).word(*flaw as u64),
        InjectError::System(errno) => out.word(18).errno(*errno),
        InjectError::Several { tid } => out.word(19).tid(*tid),
    };
}

fn get_error(message: &mut In<'_>) -> Option<InjectError> {
    Some(match message.word()? {
        0 => InjectError::Gone { tid: message.tid()? },
        1 => InjectError::Itself { tid: message.tid()? },
        2 => InjectError::NotPermitted { tid: message.tid()? },
        3 => InjectError::Traced { tid: message.tid()?, tracer: message.tid()? },
        4 => InjectError::KernelThread { tid: message.tid()? },
        5 => InjectError::Seccomp { tid: message.tid()? },
        6 => InjectError::IoWorker { tid: message.tid()? },
        7 => InjectError::NotStopping { tid: message.tid()?, state: char::from_u32(message.word()?.try_into().ok()?)? },
        8 => InjectError::Unsettled { tid: message.tid()? },
        9 => InjectError::Foreign {
            tid: message.tid()?,
            what: *[Unknown::Vdso, Unknown::CodeSegment, Unknown::Dispatch, Unknown::Dispatched].get(message.len()?)?,
        },
        10 => InjectError::NoRoom { tid: message.tid()? },
        11 => InjectError::Descriptor { tid: message.tid()?, index: message.len()?, errno: message.errno()? },
        12 => InjectError::Memory { tid: message.tid()?, errno: message.errno()? },
        13 => InjectError::Call { tid: message.tid()?, step: message.len()?, call: get_syscall(message)?, errno: message.errno()? },
        14 => InjectError::Mismatch { tid: message.tid()?, kind: *Namespace::ALL.get(message.len()?)? },
        15 => InjectError::NotUndone {
            tid: message.tid()?,
            errno: message.errno()?,
            threads: message.len()?,
            cause: Box::new(get_error(message)?),
        },
        16 => InjectError::Died { modified: message.word()? == 1 },
        17 => InjectError::Invalid(*[Flaw::Dangling, Flaw::TooLarge].get(message.len()?)?),
        18 => InjectError::System(message.errno()?),
        19 => InjectError::Several { tid: message.tid()? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_arrive() {
        let (tid, errno) = (4321, Errno::EMFILE);
        let errors = [
            InjectError::Gone { tid },
            InjectError::Itself { tid },
            InjectError::NotPermitted { tid },
            InjectError::Traced { tid, tracer: 7 },
            InjectError::KernelThread { tid },
            InjectError::Seccomp { tid },
            InjectError::IoWorker { tid },
            InjectError::NotStopping { tid, state: 'D' },
            InjectError::Unsettled { tid },
            InjectError::Foreign { tid, what: Unknown::Vdso },
            InjectError::Foreign { tid, what: Unknown::CodeSegment },
            InjectError::Foreign { tid, what: Unknown::Dispatch },
            InjectError::Foreign { tid, what: Unknown::Dispatched },
            InjectError::NoRoom { tid },
            InjectError::Several { tid },
            InjectError::Descriptor { tid, index: 3, errno },
            InjectError::Memory { tid, errno },
            InjectError::Call { tid, step: 2, call: Syscall::Recvmsg, errno },
            InjectError::Mismatch { tid, kind: Namespace::Time },
            InjectError::NotUndone { cause: Box::new(InjectError::Gone { tid }), tid: 9, errno, threads: 12 },
            InjectError::Died { modified: true },
            InjectError::Invalid(Flaw::TooLarge),
            InjectError::System(errno),
        ];
        let report = Report { threads: 1, skipped: 2, stopped_ns: 3, total_ns: u64::MAX };
        let results = errors.into_iter().map(Err).chain([Ok(report)]);
        let replies = results.flat_map(|result| [true, false].map(|last| Reply::Done { result: result.clone(), last }));
        for reply in replies.chain([Reply::Interrupted, Reply::Waiting(vec![4, 5])]) {
            let message = reply.encode();
            assert_eq!(Reply::decode(&message).as_ref(), Some(&reply));
            for len in 0..message.len() {
                assert_ne!(Reply::decode(&message[..len]).as_ref(), Some(&reply), "cut off");
            }
        }
    }

    #[test]
    fn requests_arrive() {
        let mut plan =
            Plan { single: true, skip_io_workers: true, writer: Some(5), expect: vec![(Namespace::User, 77)], ..Plan::default() };
        let (fd, data) = (plan.fd(Descriptor::Pidfd(8)), plan.data(*b"path"));
        plan.step(Invocation::new(Syscall::Setns, [fd, 1.into()]), vec![Invocation::new(Syscall::Chroot, [data])]);
        for target in [Target::Process(1), Target::Thread(2)] {
            let request = Request { target, plan: plan.clone(), deadline: Duration::from_micros(9) };
            let (message, fds) = request.encode();
            assert!(fds.is_empty());
            let arrived = Request::decode(&message, Vec::new()).expect("a request");
            assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
            assert!((0..message.len()).all(|len| Request::decode(&message[..len], Vec::new()).is_none()));
        }
    }

    #[test]
    fn tables() {
        for (i, row) in SYSCALLS.iter().enumerate() {
            assert_eq!(row.call as usize, i, "{}", row.name);
        }
        for (i, kind) in Namespace::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
        }
    }
}
