//! Injection: the threads of a target, seized and stopped. Nothing of them is modified here.

use super::BEATS;
use super::arch;
use super::error::InjectError;
use super::plan::Target;
use super::proc;
use super::wire::Reply;
use crate::sys::ptrace::{self, Event, Ticks};
use crate::sys::shared::Words;
use crate::sys::{Errno, Tid};
use nix::unistd::getpid;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait that lasts is interrupted to look at the deadline and at threads that went without a word.
const TICK: Duration = Duration::from_millis(20);

/// How long others get the CPU when nothing has happened: threads that are about to end, a main thread that is to take its signals. That, for so
/// long at the most.
const TAKE: Duration = Duration::from_micros(20);
const PATIENCE: Duration = Duration::from_millis(100);

/// All threads together have so many times as long as until one of them stops.
const ALL: u32 = 8;

/// Beyond the deadline, for those who have been turned away.
const GRACE: Duration = Duration::from_millis(250);

/// So many are named at a time that have not stopped.
const MAX_WAITING: usize = 1_000;

/// Where a seized thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Running, or asked to stop.
    Running,
    /// In a ptrace-stop.
    Stopped,
    /// Ended.
    Gone,
}

/// Seized threads.
#[derive(Debug)]
pub(super) struct Tracees {
    ticks: Ticks,
    pub(super) tgid: Tid,
    pub(super) tids: Vec<Tid>,
    states: Vec<State>,
    index: FxHashMap<Tid, usize>,
    /// Workers of the kernel that were left out.
    pub(super) skipped: usize,
    /// Whether [`Reply::Waiting`] was told: who is turned away must have the time to stop, or it sees why.
    told: bool,
    /// When the first was asked to stop.
    pub(super) since: Option<Instant>,
    /// How long it may take until one of them stops; when one has, for the last time; when all must have.
    patience: Duration,
    got_on: Instant,
    end: Instant,
    words: Arc<Words>,
}

impl Tracees {
    /// No thread yet. There can be one at a time in a process. It may take as long as `patience` until a thread stops.
    pub(super) fn new(tgid: Tid, patience: Duration, words: Arc<Words>) -> Result<Self, InjectError> {
        let system = |error: std::io::Error| InjectError::System(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
        Ok(Self {
            ticks: Ticks::start(TICK).map_err(system)?,
            tgid,
            tids: Vec::new(),
            states: Vec::new(),
            index: FxHashMap::default(),
            skipped: 0,
            told: false,
            since: None,
            patience,
            got_on: Instant::now(),
            end: Instant::now() + ALL * patience,
            words,
        })
    }

    /// Until when a thread must have stopped.
    fn deadline(&self) -> Instant {
        self.end.min(self.got_on + self.patience)
    }

    /// Lets the parent know that something happens.
    pub(super) fn beat(&self) {
        self.words[BEATS].fetch_add(1, Ordering::SeqCst);
    }

    /// Seizes and stops all threads, until there is none that is not stopped. `tell` is given [`Reply::Interrupted`] once, when all that
    /// were there at first have been asked to stop, and [`Reply::Waiting`] every [`TICK`] in which one has not.
    ///
    /// On an error some may be seized and running: [`Tracees::release`].
    pub(super) fn attach(&mut self, target: Target, skip_io_workers: bool, tell: impl Fn(Reply)) -> Result<(), InjectError> {
        let mut told = false;
        loop {
            let listed = match target {
                Target::Process(_) => proc::threads(self.tgid),
                Target::Thread(tid) => vec![tid],
            };
            self.skipped = 0;
            let mut new = 0;
            let known = self.tids.len();
            for tid in listed {
                if Instant::now() >= self.end {
                    return Err(InjectError::Unsettled { tid: self.tgid });
                }
                // A number that is gone may be used again: by a new thread, or by one that has executed a program.
                let known = self.index.get(&tid).is_some_and(|i| self.states[*i] != State::Gone);
                if !known && self.seize(tid, skip_io_workers)? {
                    new += 1;
                }
            }
            // Not before: a thread that is refused ends the pass without having disturbed those before it.
            self.interrupt_from(known);
            if !std::mem::replace(&mut told, true) {
                tell(Reply::Interrupted);
            }
            if new == 0 && self.all_hold() && self.is_complete(target) {
                break;
            }
            if new == 0 {
                // Whoever is about to end, or to be listed, may need this CPU for it.
                thread::sleep(TAKE);
            }
            self.wait_stopped(&tell)?;
            if Instant::now() >= self.deadline() {
                return Err(InjectError::Unsettled { tid: self.tgid });
            }
        }
        if self.stopped().next().is_none() {
            return Err(InjectError::Gone { tid: target.tid() });
        }
        Ok(())
    }

    /// Whether the process has no other threads than those that have stopped: the kernel ends the list early at a thread that is reaped
    /// meanwhile, and one that has died since may have created another before. A dead leader counts until all are.
    fn is_complete(&self, target: Target) -> bool {
        let Target::Process(_) = target else { return true };
        let leader_is_dead = self.index.get(&self.tgid).is_none_or(|i| !self.is_stopped(*i));
        let known = self.stopped().count() + self.skipped + usize::from(leader_is_dead);
        proc::stat(self.tgid, self.tgid).is_none_or(|stat| stat.threads == known)
    }

    /// Whether those that have stopped still are: not killed, nor replaced by one that has executed a program.
    fn all_hold(&mut self) -> bool {
        let lost: Vec<usize> = self.stopped().filter(|i| ptrace::signal_mask(self.tids[*i]).is_err()).collect();
        lost.iter().for_each(|i| self.states[*i] = State::Gone);
        lost.is_empty()
    }

    /// Asks those to stop that have been added since there were `known`; the main thread, which is listed first, last: until then signals for
    /// the process are given to it.
    fn interrupt_from(&mut self, known: usize) {
        for i in (known..self.tids.len()).rev() {
            if self.is_running(i) {
                if self.since.is_none() {
                    self.since = Some(Instant::now());
                }
                // If it has ended meanwhile, an event will tell.
                let _ = ptrace::interrupt(self.tids[i]);
            }
        }
    }

    /// Whether a thread's death is news. It may have created another after the threads were listed, so they have to be listed again.
    fn is_dead(&mut self, tid: Tid) -> bool {
        let news = !self.index.contains_key(&tid);
        self.add(tid, State::Gone);
        news
    }

    /// Whether there is a reason for another pass: a new tracee, or one that has died before it could be one. Workers that may stay behind are
    /// none.
    fn seize(&mut self, tid: Tid, skip_io_workers: bool) -> Result<bool, InjectError> {
        let Some(stat) = proc::stat(self.tgid, tid).filter(|stat| !stat.is_dead()) else { return Ok(self.is_dead(tid)) };
        if stat.is_kernel_thread() {
            return Err(InjectError::KernelThread { tid });
        }
        if stat.is_worker() {
            self.skipped += 1;
            return if skip_io_workers { Ok(false) } else { Err(InjectError::IoWorker { tid }) };
        }
        match self.ticks.seize(tid, ptrace::TRACESYSGOOD) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(self.is_dead(tid)),
            Err(errno) => return self.refused(tid, errno),
        }
        self.seized(tid);
        Ok(true)
    }

    /// Notes a new tracee, which is to be asked to stop.
    fn seized(&mut self, tid: Tid) {
        // A number that was gone: at the end of the list again, where those are that are to be asked.
        if let Some(i) = self.index.remove(&tid) {
            self.tids[i] = 0;
        }
        self.add(tid, State::Running);
        self.beat();
        self.got_on = Instant::now();
    }

    /// Why a thread could not be seized, unless it is dead, or a tracee already.
    fn refused(&mut self, tid: Tid, errno: Errno) -> Result<bool, InjectError> {
        match (errno, proc::tracer(tid), proc::stat(self.tgid, tid)) {
            (Errno::ESRCH, _, _) => Ok(self.is_dead(tid)),
            // It has executed a program and goes on under this number.
            (Errno::EPERM, Some(tracer), _) if tracer == getpid().as_raw() => {
                self.seized(tid);
                Ok(true)
            }
            (Errno::EPERM, Some(tracer), _) => Err(InjectError::Traced { tid, tracer }),
            // A dead leader is refused too; its number may by now be that of one that has executed a program, which the next pass finds.
            (Errno::EPERM, None, Some(stat)) if !stat.is_dead() => match ptrace::read_memory(tid, 0, &mut [0]) {
                Err(Errno::EPERM) => Err(InjectError::NotPermitted { tid }),
                _ => Ok(true),
            },
            (Errno::EPERM, None, _) => Ok(self.is_dead(tid)),
            _ => Err(InjectError::System(errno)),
        }
    }

    /// Notes a tracee; its index.
    fn add(&mut self, tid: Tid, state: State) -> usize {
        let i = *self.index.entry(tid).or_insert(self.tids.len());
        if i == self.tids.len() {
            self.tids.push(tid);
            self.states.push(state);
        }
        self.states[i] = state;
        if state != State::Gone {
            self.ticks.lives(tid);
        }
        i
    }

    pub(super) fn is_stopped(&self, i: usize) -> bool {
        self.states[i] == State::Stopped
    }

    pub(super) fn is_running(&self, i: usize) -> bool {
        self.states[i] == State::Running
    }

    /// Those that are stopped, by index.
    pub(super) fn stopped(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.tids.len()).filter(|i| self.is_stopped(*i))
    }

    /// Lets a stopped thread run to its next system call stop.
    pub(super) fn resume_to_syscall(&mut self, i: usize, signal: i32) {
        // ESRCH: it is being killed, and an event will tell.
        let _ = ptrace::resume_to_syscall(self.tids[i], signal);
        self.states[i] = State::Running;
    }

    fn wait_stopped(&mut self, tell: impl Fn(Reply)) -> Result<(), InjectError> {
        let mut i = 0;
        while i < self.states.len() {
            if !self.is_running(i) {
                i += 1;
                continue;
            }
            let waited = self.wait(i);
            // Also if nothing has happened: it is the others who do not get on.
            self.beat();
            match waited {
                Some((other, event)) if self.takes(other, event) => i = i.min(other),
                Some(_) => self.got_on = Instant::now(),
                None if Instant::now() >= self.deadline() + if self.told { GRACE } else { Duration::ZERO } && self.is_running(i) => {
                    // Who has stopped is to be known: calls that it has ended are mended, a writer is told.
                    while let Ok(Some((tid, event))) = ptrace::poll() {
                        let (other, event) = self.happened(tid, event);
                        self.takes(other, event);
                    }
                    let tid = self.tids[i];
                    return Err(InjectError::NotStopping { tid, state: proc::stat(self.tgid, tid).map_or('?', |stat| stat.state) });
                }
                None if arch::TURNS_AWAY && self.is_running(i) && Instant::now() < self.deadline() => {
                    self.told = true;
                    let running = (0..self.tids.len()).filter(|i| self.is_running(*i)).take(MAX_WAITING);
                    tell(Reply::Waiting(running.map(|i| self.tids[i]).collect()));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Whether it was a signal that the thread stopped for. Any stop ends the request for one: it takes the signal, then stops as asked again.
    fn takes(&mut self, i: usize, event: Event) -> bool {
        let Event::Signal(signal) = event else { return false };
        let _ = ptrace::interrupt(self.tids[i]);
        let _ = ptrace::resume(self.tids[i], signal);
        self.states[i] = State::Running;
        true
    }

    /// Waits for a running thread's next event. It returns from time to time: with another thread's event, or with none. Their
    /// states are brought up to date.
    pub(super) fn wait(&mut self, i: usize) -> Option<(usize, Event)> {
        self.wait_by(ptrace::wait, i)
    }

    /// The same for one that blocks all signals that can be.
    pub(super) fn wait_blocking(&mut self, i: usize) -> Option<(usize, Event)> {
        self.wait_by(ptrace::wait_blocking, i)
    }

    fn wait_by(&mut self, wait: fn(Tid) -> Result<Option<Event>, Errno>, i: usize) -> Option<(usize, Event)> {
        match wait(self.tids[i]) {
            Ok(Some(event)) => {
                self.beat();
                Some(self.happened(self.tids[i], event))
            }
            Ok(None) => {
                // Whoever executes a program waits until its dead siblings are reaped.
                let other = ptrace::poll().ok().flatten();
                if other.is_none() {
                    self.look_for_the_dead();
                }
                other.map(|(tid, event)| self.happened(tid, event))
            }
            // ECHILD: reaped while another was seized, or it has executed a program and goes on under another number.
            Err(_) => {
                self.states[i] = State::Gone;
                None
            }
        }
    }

    fn happened(&mut self, tid: Tid, event: Event) -> (usize, Event) {
        let state = if event == Event::Gone { State::Gone } else { State::Stopped };
        // It may be new: a thread that has executed a program goes on under the leader's number.
        let i = self.add(tid, state);
        (i, event)
    }

    /// Marks running threads as gone that end without an event: reaped by the timer, replaced by execve(2), or a leader whose threads
    /// outlive it.
    fn look_for_the_dead(&mut self) {
        for i in 0..self.tids.len() {
            let tid = self.tids[i];
            if self.states[i] == State::Running && (self.ticks.has_reaped(tid) || proc::has_ended(self.tgid, tid)) {
                self.states[i] = State::Gone;
            }
        }
    }

    fn let_go(&mut self, i: usize) {
        // ESRCH: killed.
        let _ = ptrace::detach(self.tids[i]);
        self.states[i] = State::Gone;
    }

    /// Waits for the main thread, which has been let go before the others, to take the signals for the process that have come meanwhile: the kernel
    /// would have given them to it (`complete_signal`), and now gives them to whoever is the first to look.
    fn let_take_signals(&self) {
        let deadline = Instant::now() + PATIENCE;
        while proc::is_about_to_take_signals(self.tgid) && Instant::now() < deadline {
            thread::sleep(TAKE);
        }
    }

    /// Lets all stopped threads go. False if this process still traces somebody: one that has not stopped, or a dead leader whose
    /// threads live. Then only its end releases them.
    #[must_use]
    pub(super) fn release(&mut self) -> bool {
        if let Some(&main) = self.index.get(&self.tgid)
            && self.is_stopped(main)
        {
            self.let_go(main);
            if self.stopped().next().is_some() {
                self.let_take_signals();
            }
        }
        for i in 0..self.tids.len() {
            if self.is_stopped(i) {
                self.let_go(i);
            }
        }
        // Whoever has died is still to be reaped.
        loop {
            match ptrace::poll() {
                Ok(Some((_, Event::Gone))) => {}
                Ok(_) => return false,
                Err(errno) => return errno == Errno::ECHILD,
            }
        }
    }
}
