//! VFS layer: who the clients are, remembered for a moment.

use super::Client;
use crate::sys::{Caller, Errno, Machine, Tid};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::time::{Duration, Instant};

/// Far less than it takes until a pid can be used again, and as long as a process may seem to have a capability that it has dropped.
const VALID: Duration = Duration::from_millis(100);

/// More clients than this at a time are not remembered.
const MANY: usize = 256;

/// Asking /proc costs more than a whole request; a script that writes many files is asked once.
#[derive(Default)]
pub(super) struct Callers(Mutex<FxHashMap<(Tid, u32), (Instant, Caller)>>);

impl Callers {
    /// Who the client is. ESRCH if it cannot be seen from here.
    pub(super) fn get(&self, machine: &dyn Machine, client: Client) -> Result<Caller, Errno> {
        if client.tid == 0 {
            return Err(Errno::ESRCH);
        }
        let key = (client.tid, client.uid);
        let now = machine.now();
        if let Some((since, caller)) = self.0.lock().get(&key)
            && now.duration_since(*since) < VALID
        {
            return Ok(caller.clone());
        }
        let caller = machine.caller(client.tid)?;
        let mut known = self.0.lock();
        // They hold descriptors of pid namespaces, which would live on.
        known.retain(|_, (since, _)| now.duration_since(*since) < VALID);
        if known.len() >= MANY {
            known.clear();
        }
        known.insert(key, (now, caller.clone()));
        Ok(caller)
    }
}
