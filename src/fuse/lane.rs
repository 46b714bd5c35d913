//! FUSE layer: lanes, threads beside the one that takes the requests, for work that others must not wait behind.

use crate::sys::Tid;
use crate::vfs::Vfs;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

/// What becomes of a request that has waited.
pub(super) enum Turn<'a> {
    /// It is carried out.
    Now(&'a Vfs),
    /// Its client is to stop, and makes it again afterwards: it is answered with ERESTART. See [`crate::inject`].
    Again,
}

/// A request's work and answer.
type Work = Box<dyn FnOnce(Turn<'_>) + Send>;

/// A thread and the requests that it serves one after the other. It ends, and those that wait are answered with an error, when this is dropped.
pub(super) struct Lane(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// With the threads that wait for them.
    requests: VecDeque<(Tid, Work)>,
    ended: bool,
}

impl Lane {
    /// Starts the thread.
    pub(super) fn new(name: &str, vfs: &Arc<Vfs>) -> io::Result<Self> {
        let queue: Arc<Queue> = Arc::default();
        let (served, vfs) = (queue.clone(), vfs.clone());
        let serve = move || {
            while let Some(work) = served.next() {
                // A bug in one costs its client an error, not everybody the lane.
                if catch_unwind(AssertUnwindSafe(|| work(Turn::Now(&vfs)))).is_err() {
                    log::error!("a request has panicked; its client gets EIO");
                }
            }
        };
        thread::Builder::new().name(name.into()).spawn(serve)?;
        Ok(Self(queue))
    }

    /// Puts a request of this thread at the end.
    pub(super) fn put(&self, client: Tid, work: impl FnOnce(Turn<'_>) + Send + 'static) {
        self.0.waiting.lock().requests.push_back((client, Box::new(work)));
        self.0.more.notify_one();
    }

    /// Has those of these threads that wait here make their requests again. They must have been asked to stop: they would see the answer otherwise.
    pub(super) fn turn_away(&self) -> impl Fn(&[Tid]) + Send + Sync + 'static {
        let queue = self.0.clone();
        move |threads| {
            let away: Vec<Work> = {
                let mut waiting = queue.waiting.lock();
                let (away, stay) = std::mem::take(&mut waiting.requests).into_iter().partition(|(tid, _)| threads.contains(tid));
                waiting.requests = stay;
                let away: VecDeque<(Tid, Work)> = away;
                away.into_iter().map(|(_, work)| work).collect()
            };
            away.into_iter().for_each(|work| work(Turn::Again));
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.waiting.lock().ended = true;
        self.0.more.notify_one();
    }
}

impl Queue {
    /// The next request; `None` at the end.
    fn next(&self) -> Option<Work> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.ended {
                waiting.requests.clear();
                return None;
            }
            match waiting.requests.pop_front() {
                Some((_, work)) => return Some(work),
                None => self.more.wait(&mut waiting),
            }
        }
    }
}
