//! Injection: makes the threads of a stopped process execute a plan, or takes back what they have executed.
//!
//! The order of everything that modifies a thread follows from one rule: at every moment, if this process were killed, the thread would go on
//! as if nothing had happened. So its slot is written, and exempt from its syscall user dispatch, before its registers point into it;
//! and they do before its signals are blocked, and until they are unblocked. The reverse order leads back.

use super::arch::{self, Abi};
use super::area::Area;
use super::error::{InjectError, Unknown};
use super::plan::{Arg, Descriptor, Invocation, MAX_DATA, Namespace, Plan, Syscall};
use super::proc;
use super::tracees::Tracees;
use crate::sys::ptrace::{self, Event, Regs, Shared, SyscallStop, UserDispatch};
use crate::sys::{Errno, Tid};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustc_hash::FxHashMap;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

const SCRATCH: usize = 4096;
/// Where in the scratch page the message header is; MAX_DATA is below.
const HEADER_AT: u64 = MAX_DATA as u64;
const CONTROL_AT: u64 = HEADER_AT + 128;
const PAYLOAD_AT: u64 = CONTROL_AT + 1024;

/// A thread that can be modified.
#[derive(Debug)]
struct Thread {
    /// Its index in [`Tracees`].
    i: usize,
    tid: Tid,
    /// What it will go on with.
    regs: Regs,
    mask: u64,
    /// What it blocks while it executes.
    blocked: u64,
    /// Its own, and the one it has in a slot; `None` if that makes no difference.
    dispatch: Option<(UserDispatch, UserDispatch)>,
    /// Where it executes, while it is modified.
    slot: Option<u64>,
    /// Steps executed, a bit each.
    done: u64,
}

/// Threads with one descriptor table. The first makes the calls that concern all.
#[derive(Debug)]
struct Group {
    members: Vec<usize>,
    /// What the plan's descriptors are called there.
    numbers: Vec<Option<i32>>,
}

/// What became of a call.
type Outcome = Result<i64, Fault>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The call's error.
    Failed(Errno),
    /// It was not made: the thread's syscall user dispatch is on.
    Dispatched,
    /// The thread is being killed.
    Gone,
}

impl Fault {
    fn errno(self) -> Errno {
        match self {
            Self::Failed(errno) => errno,
            Self::Dispatched => Errno::EOPNOTSUPP,
            Self::Gone => Errno::ESRCH,
        }
    }

    /// What that means for the process `tgid`, where an error of the call means what `failed` says.
    fn of(self, tgid: Tid, tid: Tid, failed: impl FnOnce(Errno) -> InjectError) -> InjectError {
        match self {
            Self::Failed(errno) => failed(errno),
            Self::Dispatched => InjectError::Foreign { tid, what: Unknown::Dispatched },
            Self::Gone => InjectError::Gone { tid: tgid },
        }
    }
}

/// An injection into stopped threads.
#[derive(Debug)]
pub(super) struct Run<'a> {
    tracees: &'a mut Tracees,
    plan: &'a Plan,
    area: Area,
    threads: Vec<Thread>,
    /// The address of the plan's data in the target, and of the page's other uses.
    scratch: Option<u64>,
}

impl<'a> Run<'a> {
    /// Looks at all threads. Nothing is modified.
    pub(super) fn prepare(tracees: &'a mut Tracees, plan: &'a Plan) -> Result<Self, InjectError> {
        let mut stopped: Vec<usize> = tracees.stopped().collect();
        if plan.single && stopped.len() > 1 {
            return Err(InjectError::Several { tid: tracees.tgid });
        }
        // The leader last: while it is where it was, the others can be brought back to it.
        stopped.sort_by_key(|i| tracees.tids[*i] == tracees.tgid);
        let mut found = FxHashMap::default();
        for i in stopped.iter().copied() {
            let tid = tracees.tids[i];
            if let Some(regs) = unless_gone(ptrace::regs(tid))? {
                found.insert(tid, regs);
            }
        }
        let Some(&first) = stopped.iter().find(|i| found.contains_key(&tracees.tids[**i])) else {
            return Err(InjectError::Gone { tid: tracees.tgid });
        };
        let is_thread = |tid| proc::stat(tracees.tgid, tid).is_some();
        let area = Area::find(tracees.tids[first], |tid| found.get(&tid).copied(), is_thread)?;
        let mut threads = Vec::with_capacity(stopped.len());
        for i in stopped {
            let tid = tracees.tids[i];
            if let Some(regs) = found.get(&tid)
                && let Some(thread) = look(i, tid, regs, &area)?
            {
                threads.push(thread);
            }
        }
        Ok(Self { tracees, plan, area, threads, scratch: None })
    }

    /// Executes the plan in all threads. The number of those that have executed it; on an error all has been taken back as far as the
    /// error does not say otherwise.
    pub(super) fn execute(&mut self) -> Result<usize, InjectError> {
        let mut groups = self.groups();
        let outcome = self.forward(&mut groups).and_then(|()| self.verify());
        let outcome = match outcome {
            Err(cause) => Err(self.back(&mut groups, cause)),
            Ok(()) => Ok(self.threads.iter().filter(|thread| self.tracees.is_stopped(thread.i)).count()),
        };
        self.area.clean();
        outcome.and_then(|threads| if threads == 0 { Err(InjectError::Gone { tid: self.tracees.tgid }) } else { Ok(threads) })
    }

    /// The threads by descriptor table.
    fn groups(&self) -> Vec<Group> {
        let numbers = vec![None; self.plan.fds.len()];
        let mut groups: Vec<Group> = Vec::new();
        for (member, thread) in self.threads.iter().enumerate() {
            // Without an answer each is on its own. Without descriptors it does not matter.
            let same = |group: &&mut Group| {
                numbers.is_empty() || ptrace::share(self.threads[group.members[0]].tid, thread.tid, Shared::Files).unwrap_or(false)
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.members.push(member),
                None => groups.push(Group { members: vec![member], numbers: numbers.clone() }),
            }
        }
        groups
    }

    fn forward(&mut self, groups: &mut [Group]) -> Result<(), InjectError> {
        for (steps, shared) in self.sections() {
            let chosen = shared.then(|| self.one_of_each());
            for group in groups.iter_mut() {
                let is_chosen = |member: &usize| chosen.as_ref().is_none_or(|chosen| chosen.contains(member));
                let members: Vec<usize> = group.members.iter().copied().filter(is_chosen).collect();
                if let Some((&carrier, others)) = members.split_first() {
                    self.forward_in(group, carrier, others, steps.clone())?;
                }
            }
        }
        Ok(())
    }

    /// See [`Plan::sections`]; a thread that is alone need not wait for others.
    fn sections(&self) -> Vec<(Range<usize>, bool)> {
        if self.threads.len() == 1 { vec![(0..self.plan.steps.len(), false)] } else { self.plan.sections() }
    }

    /// One thread of each set that shares its directories.
    fn one_of_each(&self) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        for (member, thread) in self.threads.iter().enumerate() {
            let same = |other: &usize| ptrace::share(self.threads[*other].tid, thread.tid, Shared::Directories).unwrap_or(false);
            if self.tracees.is_stopped(thread.i) && !chosen.iter().any(same) {
                chosen.push(member);
            }
        }
        chosen
    }

    /// Some steps in a group's members: the carrier, which brings what they need, and others.
    fn forward_in(&mut self, group: &mut Group, carrier: usize, others: &[usize], steps: Range<usize>) -> Result<(), InjectError> {
        let plan = self.plan;
        let fds = plan.fds_of(plan.steps[steps.clone()].iter().map(|step| &step.call));
        self.enter(carrier)?;
        let outcome = self.equip(carrier, group, &fds).and_then(|()| {
            // One goes ahead: where it cannot go nobody can, and only one has to come back.
            self.steps(&[carrier], group, steps.clone())?;
            if self.area.free() == 0 && !others.is_empty() {
                return Err(InjectError::NoRoom { tid: self.threads[others[0]].tid });
            }
            others.chunks(self.area.free().max(1)).try_for_each(|batch| {
                let entered = batch.iter().try_for_each(|member| self.enter(*member));
                let outcome = entered.and_then(|()| self.steps(batch, group, steps.clone()));
                batch.iter().for_each(|member| self.leave(*member));
                outcome
            })
        });
        self.strip(carrier, group);
        self.leave(carrier);
        outcome
    }

    /// Some steps in these threads, all of which are in their slots.
    fn steps(&mut self, members: &[usize], group: &Group, steps: Range<usize>) -> Result<(), InjectError> {
        let plan = self.plan;
        for number in steps {
            let call = &plan.steps[number].call;
            let outcomes = self.call_all(members, call, group);
            let mut failed = None;
            for (member, outcome) in members.iter().zip(outcomes) {
                match outcome {
                    Ok(_) => self.threads[*member].done |= 1 << number,
                    Err(Fault::Gone) => {}
                    Err(fault) => {
                        let tid = self.threads[*member].tid;
                        let error =
                            fault.of(self.tracees.tgid, tid, |errno| InjectError::Call { tid, step: number, call: call.call, errno });
                        failed.get_or_insert(error);
                    }
                }
            }
            failed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Whether every thread is in the namespaces that were expected.
    fn verify(&self) -> Result<(), InjectError> {
        for thread in self.threads.iter().filter(|thread| self.tracees.is_stopped(thread.i)) {
            let tid = thread.tid;
            let wrong = |(kind, inode): &&(Namespace, u64)| proc::namespace(tid, kind.file()).is_some_and(|found| found != *inode);
            if let Some((kind, _)) = self.plan.expect.iter().find(wrong) {
                return Err(InjectError::Mismatch { tid, kind: *kind });
            }
        }
        Ok(())
    }

    /// Takes back the steps that were executed: `cause`, or what was left.
    fn back(&mut self, groups: &mut [Group], cause: InjectError) -> InjectError {
        let mut left: Vec<(Tid, Errno)> = Vec::new();
        for (steps, _) in self.sections().into_iter().rev() {
            let mask = steps.clone().fold(0, |mask, number| mask | 1 << number);
            for group in groups.iter_mut() {
                let executed = |thread: &Thread| thread.done & mask != 0 && self.tracees.is_stopped(thread.i);
                let members: Vec<usize> = group.members.iter().copied().filter(|member| executed(&self.threads[*member])).collect();
                if let Some((&carrier, others)) = members.split_first() {
                    left.extend(self.back_in(group, carrier, others, steps.clone()));
                }
            }
        }
        left.sort_by_key(|(tid, _)| *tid);
        left.dedup_by_key(|(tid, _)| *tid);
        match left.first() {
            Some(&(tid, errno)) => InjectError::NotUndone { cause: Box::new(cause), tid, errno, threads: left.len() },
            None => cause,
        }
    }

    /// Takes back some steps in a group's members: the carrier, which brings what is needed, and others. The threads in which that
    /// failed.
    fn back_in(&mut self, group: &mut Group, carrier: usize, others: &[usize], steps: Range<usize>) -> Vec<(Tid, Errno)> {
        let plan = self.plan;
        let calls = plan.steps[steps.clone()].iter().flat_map(|step| &step.undo);
        if calls.clone().next().is_none() {
            return Vec::new();
        }
        let fds = plan.fds_of(calls);
        let mut left = Vec::new();
        match self.enter(carrier).and_then(|()| self.equip(carrier, group, &fds)) {
            Err(error) => {
                let all = std::iter::once(&carrier).chain(others);
                left.extend(all.map(|member| (self.threads[*member].tid, error.errno())));
            }
            Ok(()) => {
                for batch in others.chunks(self.area.free().max(1)) {
                    left.extend(self.undo(batch, group, steps.clone()));
                    batch.iter().for_each(|member| self.leave(*member));
                }
                left.extend(self.undo(&[carrier], group, steps));
            }
        }
        self.strip(carrier, group);
        self.leave(carrier);
        left
    }

    /// Takes back what these threads have executed of some steps, the last one first. The threads in which that failed.
    fn undo(&mut self, batch: &[usize], group: &Group, steps: Range<usize>) -> Vec<(Tid, Errno)> {
        let plan = self.plan;
        let mut left = Vec::new();
        let mut able = Vec::new();
        for member in batch {
            match self.enter(*member) {
                Ok(()) => able.push(*member),
                Err(error) => left.push((self.threads[*member].tid, error.errno())),
            }
        }
        for number in steps.rev() {
            for call in &plan.steps[number].undo {
                let concerned: Vec<usize> = able.iter().copied().filter(|member| self.threads[*member].done & 1 << number != 0).collect();
                for (member, outcome) in concerned.iter().zip(self.call_all(&concerned, call, group)) {
                    if let Err(fault) = outcome
                        && fault != Fault::Gone
                    {
                        left.push((self.threads[*member].tid, fault.errno()));
                        able.retain(|other| other != member);
                    }
                }
            }
        }
        left
    }

    /// Makes the thread execute in a slot, its signals blocked. Nothing if it does so already or is gone.
    fn enter(&mut self, member: usize) -> Result<(), InjectError> {
        let thread = &mut self.threads[member];
        if thread.slot.is_some() || !self.tracees.is_stopped(thread.i) {
            return Ok(());
        }
        let tid = thread.tid;
        let slot = match self.area.take(tid, &thread.regs, thread.mask, thread.dispatch.as_ref().map(|(own, _)| own)) {
            Ok(slot) => slot,
            Err(Errno::EBUSY) => return Err(InjectError::NoRoom { tid }),
            Err(errno) => return Err(InjectError::Memory { tid, errno }),
        };
        thread.slot = Some(slot);
        // ESRCH, the only error: it is being killed.
        if let Some((_, exempt)) = &thread.dispatch {
            let _ = ptrace::set_user_dispatch(tid, exempt);
        }
        let _ = ptrace::set_regs(tid, &arch::parked(&thread.regs, self.area.abi, slot));
        let _ = ptrace::set_signal_mask(tid, thread.blocked);
        Ok(())
    }

    /// The reverse of [`Run::enter`].
    fn leave(&mut self, member: usize) {
        let thread = &mut self.threads[member];
        let Some(slot) = thread.slot.take() else { return };
        let _ = ptrace::set_signal_mask(thread.tid, thread.mask);
        let _ = ptrace::set_regs(thread.tid, &thread.regs);
        if let Some((own, _)) = &thread.dispatch {
            let _ = ptrace::set_user_dispatch(thread.tid, own);
        }
        self.area.give_back(slot);
    }

    /// The same call in several threads at the same time, by the plan.
    fn call_all(&mut self, members: &[usize], call: &Invocation, group: &Group) -> Vec<Outcome> {
        let mut data = self.scratch.unwrap_or(0);
        let addresses: Vec<u64> = (self.plan.data.iter().map(|bytes| {
            let address = data;
            data += bytes.len().next_multiple_of(8) as u64;
            address
        }))
        .collect();
        let args = call.args.map(|arg| match arg {
            Arg::Int(value) => value,
            Arg::Fd(index) => group.numbers[index].map_or(u64::MAX, |number| i64::from(number).cast_unsigned()),
            Arg::Data(index) => addresses[index],
        });
        self.calls(members, call.call, args)
    }

    fn call(&mut self, member: usize, call: Syscall, args: [u64; 6]) -> Outcome {
        self.calls(&[member], call, args).pop().unwrap_or(Err(Fault::Gone))
    }

    /// The same call in several threads, which are in their slots, at the same time.
    fn calls(&mut self, members: &[usize], call: Syscall, args: [u64; 6]) -> Vec<Outcome> {
        let mut outcomes = vec![Err(Fault::Gone); members.len()];
        // Whose event is whose; and whether it has entered the kernel.
        let mut waiting: Vec<(usize, usize, bool)> = Vec::with_capacity(members.len());
        for (place, member) in members.iter().enumerate() {
            let thread = &self.threads[*member];
            let Some(slot) = thread.slot.filter(|_| self.tracees.is_stopped(thread.i)) else { continue };
            let regs = arch::for_call(&thread.regs, self.area.abi, slot, call, args);
            // If it is being killed, its end comes as an event.
            let _ = ptrace::set_regs(thread.tid, &regs);
            self.tracees.resume_to_syscall(thread.i, 0);
            waiting.push((thread.i, place, false));
        }
        while let Some(&(i, _, _)) = waiting.first() {
            let Some((i, event)) = self.tracees.wait_blocking(i) else {
                waiting.retain(|(i, _, _)| self.tracees.is_running(*i));
                continue;
            };
            let Some(at) = waiting.iter().position(|(other, _, _)| *other == i) else { continue };
            let (_, place, entered) = &mut waiting[at];
            match event {
                Event::Gone => {
                    waiting.remove(at);
                }
                Event::Syscall => match ptrace::syscall_stop(self.tracees.tids[i]) {
                    Ok(SyscallStop::Exit(result)) if *entered => {
                        outcomes[*place] = result.map_err(Fault::Failed);
                        waiting.remove(at);
                    }
                    stop => {
                        *entered |= stop == Ok(SyscallStop::Entry);
                        self.tracees.resume_to_syscall(i, 0);
                        // The others have gone on meanwhile.
                        waiting[at..].rotate_left(1);
                    }
                },
                // The process was stopped or continued by others; it will be what it is when the thread is let go.
                Event::Stop => self.tracees.resume_to_syscall(i, 0),
                // The call was not made. The signal goes when the thread is let go.
                Event::Signal(signal) if ptrace::is_dispatched(self.tracees.tids[i], signal) => {
                    outcomes[*place] = Err(Fault::Dispatched);
                    waiting.remove(at);
                }
                // SIGSTOP, which cannot be blocked; or somebody's SIGSYS: put back, as it is blocked now.
                Event::Signal(signal) => {
                    if signal == libc::SIGSYS {
                        let _ = ptrace::set_signal_mask(self.tracees.tids[i], u64::MAX);
                    }
                    self.tracees.resume_to_syscall(i, signal);
                }
            }
        }
        outcomes
    }

    /// Gives the carrier's descriptor table those descriptors of the plan that it does not have yet, and the process the plan's data.
    fn equip(&mut self, carrier: usize, group: &mut Group, fds: &[usize]) -> Result<(), InjectError> {
        let (tgid, tid) = (self.tracees.tgid, self.threads[carrier].tid);
        let is_file = |index: &usize| matches!(self.plan.fds[*index], Descriptor::File(_));
        let missing: Vec<usize> = fds.iter().copied().filter(|index| group.numbers[*index].is_none()).collect();
        let (files, pidfds): (Vec<usize>, Vec<usize>) = missing.into_iter().partition(is_file);
        for index in pidfds {
            let Descriptor::Pidfd(pid) = self.plan.fds[index] else { continue };
            let opened = self.call(carrier, Syscall::PidfdOpen, [pid.cast_unsigned().into(), 0, 0, 0, 0, 0]);
            let number = opened.map_err(|fault| fault.of(tgid, tid, |errno| InjectError::Descriptor { tid, index, errno }))?;
            group.numbers[index] = Some(number as i32);
        }
        if self.scratch.is_none() && (!self.plan.data.is_empty() || !files.is_empty()) {
            let memory = |fault: Fault| fault.of(tgid, tid, |errno| InjectError::Memory { tid, errno });
            let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            let page = self.call(carrier, Syscall::Mmap, [0, SCRATCH as u64, protection, flags, u64::MAX, 0]).map_err(memory)?;
            let page = self.area.abi.address(page);
            self.scratch = Some(page);
            let mut data = Vec::new();
            for bytes in &self.plan.data {
                data.extend(bytes);
                data.resize(data.len().next_multiple_of(8), 0);
            }
            if !data.is_empty() {
                ptrace::write_memory(tid, page, &data).map_err(|errno| memory(Fault::Failed(errno)))?;
            }
        }
        if let (Some(&index), Some(page)) = (files.first(), self.scratch) {
            let sent = self.send(carrier, group, page, &files);
            sent.map_err(|fault| fault.of(tgid, tid, |errno| InjectError::Descriptor { tid, index, errno }))?;
        }
        Ok(())
    }

    /// Hands files over through a socket of the target's own making.
    fn send(&mut self, carrier: usize, group: &mut Group, page: u64, files: &[usize]) -> Result<(), Fault> {
        const CLOEXEC_DATAGRAM: u64 = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let tid = self.threads[carrier].tid;
        let pair_at = page + PAYLOAD_AT;
        self.call(carrier, Syscall::Socketpair, [libc::AF_UNIX as u64, CLOEXEC_DATAGRAM, 0, pair_at, 0, 0])?;
        let pair = read_ints(tid, pair_at, 2)?;
        let sent = ptrace::copy_fd(self.tracees.tgid, tid, pair[1]).and_then(|socket| {
            let raw: Vec<RawFd> = (files.iter().filter_map(|index| match &self.plan.fds[*index] {
                Descriptor::File(file) => Some(file.as_raw_fd()),
                Descriptor::Pidfd(_) => None,
            }))
            .collect();
            let control = [ControlMessage::ScmRights(&raw)];
            loop {
                match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"\0")], &control, MsgFlags::MSG_DONTWAIT, None) {
                    Err(Errno::EINTR) => {}
                    sent => break sent,
                }
            }
        });
        let received = sent.map_err(Fault::Failed).and_then(|_| {
            let (header, control_len, data_at) = message_header(self.area.abi, page, files.len());
            ptrace::write_memory(tid, page + HEADER_AT, &header).map_err(Fault::Failed)?;
            let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
            let socket = i64::from(pair[0]).cast_unsigned();
            self.call(carrier, Syscall::Recvmsg, [socket, page + HEADER_AT, flags, 0, 0, 0])?;
            // EMFILE there: fewer come than were sent, without an error.
            let mut len = [0; 8];
            let width = self.area.abi.word();
            ptrace::read_memory(tid, page + CONTROL_AT, &mut len[..width]).map_err(Fault::Failed)?;
            let came = (u64::from_le_bytes(len).min(control_len) as usize).saturating_sub(data_at as usize) / size_of::<i32>();
            let numbers = read_ints(tid, page + CONTROL_AT + data_at, came)?;
            for (index, number) in files.iter().zip(&numbers) {
                group.numbers[*index] = Some(*number);
            }
            if numbers.len() < files.len() { Err(Fault::Failed(Errno::EMFILE)) } else { Ok(()) }
        });
        for socket in pair {
            let _ = self.call(carrier, Syscall::Close, [i64::from(socket).cast_unsigned(), 0, 0, 0, 0, 0]);
        }
        received
    }

    /// The reverse of [`Run::equip`].
    fn strip(&mut self, carrier: usize, group: &mut Group) {
        for number in group.numbers.iter_mut().filter_map(Option::take) {
            // It is closed whatever close(2) returns.
            let _ = self.call(carrier, Syscall::Close, [i64::from(number).cast_unsigned(), 0, 0, 0, 0, 0]);
        }
        if let Some(page) = self.scratch.take() {
            let _ = self.call(carrier, Syscall::Munmap, [page, SCRATCH as u64, 0, 0, 0, 0]);
        }
    }
}

/// Has a stopped thread that nothing else was done to make the call again that being stopped has ended.
pub(super) fn mend(tid: Tid) {
    let mended = ptrace::regs(tid).ok().and_then(|regs| arch::mended(&regs, Abi::of_regs(&regs)?));
    if let Some(regs) = mended {
        // ESRCH: it is being killed.
        let _ = ptrace::set_regs(tid, &regs);
    }
}

/// What a thread goes on with, and why it cannot be injected into. `None` if it is gone.
fn look(i: usize, tid: Tid, regs: &Regs, area: &Area) -> Result<Option<Thread>, InjectError> {
    let abi = area.abi;
    if Abi::of_regs(regs) != Some(abi) {
        return Err(InjectError::Foreign { tid, what: Unknown::CodeSegment });
    }
    let Some(mask) = unless_gone(ptrace::signal_mask(tid))? else { return Ok(None) };
    // Only now that it stands still: its filters, if it has any, rest from this call on. Unknown is not "none".
    if ptrace::suspend_seccomp(tid).is_err() && proc::status(tid, "Seccomp").is_none_or(|mode| mode != "0") {
        return Err(InjectError::Seccomp { tid });
    }
    let mut code = [0; 4];
    let at_call = cfg!(target_arch = "aarch64") && ptrace::read_memory(tid, arch::pc(regs), &mut code).is_ok() && arch::is_syscall(code);
    let mut regs = arch::resumed(regs, abi, at_call);
    if !arch::in_syscall(&regs)
        && let Some(abort) = rseq_abort(tid, arch::pc(&regs))
    {
        arch::set_pc(&mut regs, abort);
    }
    let pc = arch::pc(&regs);
    if area.is_before_call(pc) {
        // Nobody wants it any more; made later it would undo what is done now.
        arch::set_pc(&mut regs, pc + arch::CALL_LEN);
    }
    let told = ptrace::user_dispatch(tid);
    let own = told.unwrap_or_default();
    let dispatch = area.exempt(&own).map_err(|what| InjectError::Foreign { tid, what })?.map(|exempt| (own, exempt));
    // One that may be on has its way to tell, which kills who blocks it.
    let blocked = if told.is_some() { u64::MAX } else { !(1 << (libc::SIGSYS - 1)) };
    Ok(Some(Thread { i, tid, regs, mask, blocked, dispatch, slot: None, done: 0 }))
}

/// Where a thread in a restartable sequence must go on, as the kernel would have it after a preemption. The kernel itself sees it
/// elsewhere, in its slot, and forgets the sequence.
fn rseq_abort(tid: Tid, pc: u64) -> Option<u64> {
    // struct rseq: rseq_cs is at byte 8.
    let address = ptrace::rseq(tid)?;
    let mut pointer = [0; 8];
    ptrace::read_memory(tid, address + 8, &mut pointer).ok()?;
    let pointer = u64::from_le_bytes(pointer);
    if pointer == 0 {
        return None;
    }
    // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
    let mut cs = [0; 32];
    ptrace::read_memory(tid, pointer, &mut cs).ok()?;
    let word = |at: usize| cs[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let (start, len, abort) = (word(8), word(16), word(24));
    (pc.wrapping_sub(start) < len).then_some(abort)
}

fn unless_gone<T>(result: Result<T, Errno>) -> Result<Option<T>, InjectError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ESRCH) => Ok(None),
        Err(errno) => Err(InjectError::System(errno)),
    }
}

fn read_ints(tid: Tid, at: u64, n: usize) -> Result<Vec<i32>, Fault> {
    let mut bytes = vec![0; n * size_of::<i32>()];
    if n != 0 {
        ptrace::read_memory(tid, at, &mut bytes).map_err(Fault::Failed)?;
    }
    Ok(bytes.chunks_exact(4).map(|int| i32::from_ne_bytes([int[0], int[1], int[2], int[3]])).collect())
}

/// A `struct msghdr` with one byte of data and room for `n` descriptors, its iovec behind it; the length of the control
/// buffer, and the offset of the descriptors in it.
fn message_header(abi: Abi, page: u64, n: usize) -> (Vec<u8>, u64, u64) {
    let word = abi.word() as u64;
    // struct cmsghdr: a length, two ints, aligned to a word.
    let data_at = (word + 8).next_multiple_of(word);
    let control_len = (data_at + (n * size_of::<i32>()) as u64).next_multiple_of(word);
    let iov_at = page + HEADER_AT + 64;
    // name, namelen, iov, iovlen, control, controllen, flags: each a word.
    let header = [0, 0, iov_at, 1, page + CONTROL_AT, control_len, 0];
    let iov = [page + PAYLOAD_AT, 1];
    let put = |words: &[u64]| words.iter().flat_map(|value| value.to_le_bytes()[..word as usize].to_vec()).collect::<Vec<u8>>();
    let mut bytes = put(&header);
    bytes.resize(64, 0);
    bytes.extend(put(&iov));
    (bytes, control_len, data_at)
}
