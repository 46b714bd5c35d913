//! Controller layer: what a thread has to call to be elsewhere, and to be back.

use crate::inject::{Arg, Descriptor, Invocation, Namespace, Plan, Syscall};
use crate::nsproxy::{Dir, Holder, Ns, flag, ino_of};
use crate::sys::{Errno, Tid};
use nix::sched::CloneFlags;

/// The root and the working directory of a thread.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) root: Dir,
    pub(super) cwd: Dir,
}

/// What a step takes back, if it comes to that.
#[derive(Clone, Copy)]
pub(super) struct Took<'a> {
    pub(super) old: &'a [Ns],
    /// A process that is in them.
    pub(super) keeper: Option<&'a Holder>,
    /// Where a mount namespace is among them.
    pub(super) place: Option<&'a Place>,
}

/// A plan in the making.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub(super) plan: Plan,
    /// The threads that move may share a root directory with each other.
    pub(super) shares_fs: bool,
    /// And can go on sharing it in another mount namespace; if not, each gets its own.
    pub(super) together: bool,
    /// The target's numbers are ours.
    pub(super) same_pids: bool,
    /// Who moves.
    pub(super) tids: Vec<Tid>,
}

impl Steps {
    /// A thread that gets directories of its own does not move the others with it.
    pub(super) fn unshare_fs(&mut self) {
        self.plan.step(unshare_fs(), Vec::new());
    }

    /// Into these: together if somebody is there who can be followed, else one by one.
    pub(super) fn enter(&mut self, to: &[Ns], holder: Option<&Holder>, took: Took<'_>) {
        if to.is_empty() {
            return;
        }
        let kinds: Vec<Namespace> = to.iter().map(Ns::kind).collect();
        let undo = self.undo(&kinds, took);
        let Some(holder) = holder else {
            if kinds.contains(&Namespace::Mnt) && self.shares_fs && !self.together {
                self.unshare_fs();
            }
            for ns in to {
                let fd = self.plan.fd(Descriptor::File(ns.share()));
                let undo = self.undo(&[ns.kind()], took);
                self.plan.step(setns(fd, flag(ns.kind())), undo);
            }
            return;
        };
        let (mask, alone) = self.mask(&kinds, holder);
        if alone {
            self.unshare_fs();
        }
        let file = Descriptor::File(holder.pidfd.clone());
        let fd = self.plan.fd(if self.same_pids { Descriptor::Pidfd(holder.pid) } else { file });
        self.plan.step(setns(fd, mask), undo);
    }

    /// To this root directory, or below it if there is a path, with `/` as the working directory.
    pub(super) fn change_root(&mut self, base: Option<&Dir>, path: Option<&[u8]>, place: &Place) {
        let undo = self.restore(place);
        let mut calls = base.map(|dir| self.chroot(dir)).unwrap_or_default();
        if let Some(path) = path {
            let path = self.plan.data([path, b"\0"].concat());
            calls.push(Invocation::new(Syscall::Chroot, [path]));
        }
        let slash = self.plan.data(&b"/\0"[..]);
        calls.push(Invocation::new(Syscall::Chdir, [slash]));
        for call in calls {
            self.plan.step(call, undo.clone());
        }
    }

    /// Back to these directories.
    pub(super) fn go_back(&mut self, place: &Place) {
        for call in self.restore(place) {
            self.plan.step(call, Vec::new());
        }
    }

    /// The flags for entering these kinds of a holder's, and whether each thread must have directories of its own for that: threads that share
    /// them cannot enter a mount namespace alone, but on many kernels with another kind, which may be one that they have in common with the holder.
    fn mask(&self, kinds: &[Namespace], holder: &Holder) -> (CloneFlags, bool) {
        let mask: CloneFlags = kinds.iter().map(|kind| flag(*kind)).collect();
        if !mask.contains(CloneFlags::CLONE_NEWNS) || !self.shares_fs {
            return (mask, false);
        }
        if !self.together || mask != CloneFlags::CLONE_NEWNS {
            return (mask, !self.together);
        }
        // The dead are nowhere.
        let is_in = |tid: Tid, kind, ino| ino_of(tid, kind).map_or_else(|errno| errno == Errno::ESRCH, |now| now == ino);
        let common = |kind: &Namespace| ino_of(holder.pid, *kind).is_ok_and(|ino| self.tids.iter().all(|tid| is_in(*tid, *kind, ino)));
        match [Namespace::Uts, Namespace::Ipc, Namespace::Net, Namespace::Cgroup].into_iter().find(common) {
            Some(kind) => (mask | flag(kind), false),
            None => (mask, true),
        }
    }

    /// The calls that bring a thread back from these kinds.
    fn undo(&mut self, kinds: &[Namespace], took: Took<'_>) -> Vec<Invocation> {
        let old: Vec<&Ns> = took.old.iter().filter(|ns| kinds.contains(&ns.kind())).collect();
        let mounts = kinds.contains(&Namespace::Mnt);
        let mut calls = Vec::new();
        match took.keeper {
            Some(keeper) if mounts => {
                let kinds: Vec<Namespace> = old.iter().map(|ns| ns.kind()).collect();
                let (mask, alone) = self.mask(&kinds, keeper);
                calls.extend(alone.then(unshare_fs));
                let fd = self.plan.fd(Descriptor::File(keeper.pidfd.clone()));
                calls.push(setns(fd, mask));
            }
            _ => {
                for ns in old {
                    let fd = self.plan.fd(Descriptor::File(ns.share()));
                    calls.push(setns(fd, flag(ns.kind())));
                }
            }
        }
        calls.extend(took.place.filter(|_| mounts).map(|place| self.restore(place)).unwrap_or_default());
        calls
    }

    /// The calls that bring root and working directory back.
    fn restore(&mut self, place: &Place) -> Vec<Invocation> {
        let mut calls = self.chroot(&place.root);
        let fd = self.plan.fd(Descriptor::File(place.cwd.share()));
        calls.push(Invocation::new(Syscall::Fchdir, [fd]));
        calls
    }

    fn chroot(&mut self, root: &Dir) -> Vec<Invocation> {
        let fd = self.plan.fd(Descriptor::File(root.share()));
        let here = self.plan.data(&b".\0"[..]);
        vec![Invocation::new(Syscall::Fchdir, [fd]), Invocation::new(Syscall::Chroot, [here])]
    }
}

fn setns(fd: Arg, kinds: CloneFlags) -> Invocation {
    Invocation::new(Syscall::Setns, [fd, kinds.bits().into()])
}

fn unshare_fs() -> Invocation {
    Invocation::new(Syscall::Unshare, [CloneFlags::CLONE_FS.bits().into()])
}
