//! Random histories against a reference that knows one rule: a task is in the nearest namespace on the way from its group up to the root, and
//! where nobody has one, where it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use libc::{EBUSY, EINVAL, ENOENT, EUSERS};

use crate::common::namespaces::{enter, group, link, mine, mount, process, set, value};
use crate::common::random::Random;
use crate::common::{Mount, Target, ids};
use crate::target::{report, rounds};

const KINDS: [&str; 7] = ["mnt", "uts", "ipc", "net", "cgroup", "pid", "time"];
const ROOTS: [&str; 3] = ["/usr", "/etc", "/nowhere"];
const GROUPS: usize = 6;

/// A group: its parent, and what it has of its own.
#[derive(Clone, Debug)]
struct Group {
    path: String,
    parent: usize,
    own: BTreeMap<&'static str, String>,
    root: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    tids: Vec<i32>,
    group: usize,
}

/// What is to be. Group 0 is the root; those that were removed keep their numbers.
#[derive(Clone, Debug)]
struct Reference {
    groups: Vec<Option<Group>>,
    processes: Vec<Process>,
}

impl Reference {
    fn up(&self, id: usize) -> Vec<&Group> {
        let mut way = Vec::new();
        let mut next = id;
        while let Some(group) = &self.groups[next] {
            way.push(group);
            if next == 0 {
                break;
            }
            next = group.parent;
        }
        way
    }

    fn namespace(&self, id: usize, kind: &'static str) -> Option<&String> {
        self.up(id).into_iter().find_map(|group| group.own.get(kind))
    }

    fn root(&self, id: usize) -> &'static str {
        self.up(id).into_iter().find_map(|group| group.root).unwrap_or("/")
    }

    /// Where a process of this group is to be.
    fn place(&self, id: usize) -> Vec<String> {
        let own = KINDS.iter().map(|kind| self.namespace(id, kind).cloned().unwrap_or_else(|| mine(kind)));
        own.chain([self.root(id).to_owned()]).collect()
    }

    /// Why the world cannot become like this, coming from `before`: the errnos of those who cannot go.
    fn refusals(&self, before: &Reference) -> Vec<i32> {
        let mut errnos = Vec::new();
        for (was, is) in before.processes.iter().zip(&self.processes) {
            let (from, to) = (before.place(was.group), self.place(is.group));
            let changes = |kind: &str| KINDS.iter().position(|other| *other == kind).is_some_and(|at| from[at] != to[at]);
            if is.tids.len() > 1 && changes("time") {
                errnos.push(EUSERS);
            }
            // Who comes home can make threads again.
            if is.tids.len() > 1 && changes("pid") && self.namespace(is.group, "pid").is_some() {
                errnos.push(EINVAL);
            }
            let enters_mnt = changes("mnt") && self.root(is.group) != "/";
            if self.root(is.group) == "/nowhere" && (before.root(was.group) != "/nowhere" || enters_mnt) {
                errnos.push(ENOENT);
            }
        }
        errnos
    }

    fn children(&self, id: usize) -> bool {
        self.groups.iter().skip(1).flatten().any(|group| group.parent == id)
    }
}

struct World {
    /// They go before the mount, of which their mount namespaces have copies.
    _targets: Vec<Target>,
    mount: Mount,
    reference: Reference,
    said: Vec<String>,
}

impl World {
    fn dir(&self, id: usize) -> PathBuf {
        self.mount.dir().join(&self.reference.groups[id].as_ref().expect("a group").path)
    }

    fn living(&self) -> Vec<usize> {
        (0..self.reference.groups.len()).filter(|id| self.reference.groups[*id].is_some()).collect()
    }

    /// Does something; it works if and only if the reference says so.
    fn step(&mut self, what: String, next: Reference, done: impl FnOnce(&World) -> Result<usize, i32>) -> bool {
        self.said.push(what);
        let refusals = next.refusals(&self.reference);
        let result = done(self);
        match result {
            Ok(_) => {
                assert!(refusals.is_empty(), "it worked, against {refusals:?}: {}", self.history());
                self.reference = next;
                true
            }
            Err(errno) => {
                assert!(refusals.contains(&errno), "errno {errno}, not one of {refusals:?}: {}\n{}", self.history(), self.mount.log());
                false
            }
        }
    }

    fn history(&self) -> String {
        self.said.join("; ")
    }

    /// Everybody and every file is as the reference says.
    fn check(&self) {
        for process in &self.reference.processes {
            let place = self.reference.place(process.group);
            for tid in &process.tids {
                let now: Vec<String> = KINDS
                    .iter()
                    .map(|kind| format!("ns/{}", link(kind)))
                    .chain(["root".to_owned()])
                    .map(|link| std::fs::read_link(format!("/proc/{tid}/{link}")).expect("it lives").display().to_string())
                    .collect();
                assert_eq!(now, place, "{tid} of {}: {}", process.pid, self.history());
            }
        }
        for id in self.living() {
            let group = self.reference.groups[id].as_ref().expect("a group");
            let mut members: Vec<i32> =
                self.reference.processes.iter().filter(|process| process.group == id).map(|process| process.pid).collect();
            members.sort_unstable();
            if id == 0 {
                continue;
            }
            assert_eq!(ids(self.dir(id).join("cgroup.procs")), members, "{}: {}", group.path, self.history());
            let mut effective = 0;
            for kind in KINDS {
                let shown = value(&self.dir(id), &format!("ns.{kind}"));
                assert_eq!(shown, group.own.get(kind).map_or("inherit", String::as_str), "{}/ns.{kind}: {}", group.path, self.history());
                effective += usize::from(self.reference.namespace(id, kind).is_some());
            }
            assert_eq!(value(&self.dir(id), "ns.root"), group.root.unwrap_or("inherit"), "{}", self.history());
            effective += usize::from(self.reference.root(id) != "/");
            assert_eq!(value(&self.dir(id), "ns.effective").lines().count(), effective, "{}: {}", group.path, self.history());
        }
    }
}

/// One step; whether it changed anything.
fn one(world: &mut World, random: &mut Random) -> bool {
    let living = world.living();
    let id = living[random.below(living.len())];
    let mut next = world.reference.clone();
    match random.below(16) {
        0 | 1 if living.len() <= GROUPS => {
            let number = next.groups.len();
            let parent = next.groups[id].as_ref().expect("a group").path.clone();
            let path = format!("{parent}/g{number}").trim_start_matches('/').to_owned();
            group(&world.mount, &path);
            next.groups.push(Some(Group { path: path.clone(), parent: id, own: BTreeMap::new(), root: None }));
            world.step(format!("mkdir {path}"), next, |_| Ok(0))
        }
        2 if id != 0 => {
            let busy = next.children(id) || next.processes.iter().any(|process| process.group == id);
            let removed = std::fs::remove_dir(world.dir(id)).map_err(|error| error.raw_os_error().expect("an errno"));
            assert_eq!(removed, if busy { Err(EBUSY) } else { Ok(()) }, "{}", world.history());
            let path = world.dir(id).display().to_string();
            if busy {
                return false;
            }
            next.groups[id] = None;
            world.step(format!("rmdir {path}"), next, |_| Ok(0))
        }
        3..=8 => {
            let n = random.below(next.processes.len());
            next.processes[n].group = id;
            let pid = next.processes[n].pid;
            world.step(format!("{pid} to {}", world.dir(id).display()), next, |world| enter(&world.dir(id), "cgroup.procs", pid))
        }
        9 if id != 0 => {
            let root = [None, Some(ROOTS[0]), Some(ROOTS[1]), Some(ROOTS[2])][random.below(4)];
            next.groups[id].as_mut().expect("a group").root = root;
            let text = root.unwrap_or("inherit");
            world.step(format!("{} ns.root {text}", world.dir(id).display()), next, |world| set(&world.dir(id), "root", text))
        }
        _ if id != 0 => {
            let kind = KINDS[random.below(KINDS.len())];
            let group = next.groups[id].as_mut().expect("a group");
            let adopted = &world.reference.processes[random.below(world.reference.processes.len())];
            let text = match random.below(6) {
                0 | 1 => {
                    group.own.remove(kind);
                    "inherit".to_owned()
                }
                2 => {
                    // The pid namespace that a process is in itself never changes.
                    let is = if kind == "pid" {
                        mine(kind)
                    } else {
                        world.reference.namespace(adopted.group, kind).cloned().unwrap_or_else(|| mine(kind))
                    };
                    group.own.insert(kind, is);
                    if random.below(2) == 0 { adopted.pid.to_string() } else { format!("/proc/{}/ns/{kind}", adopted.pid) }
                }
                _ => {
                    group.own.insert(kind, "new".to_owned());
                    "new".to_owned()
                }
            };
            let changed =
                world.step(format!("{} ns.{kind} {text}", world.dir(id).display()), next, |world| set(&world.dir(id), kind, &text));
            if changed && text == "new" {
                let made = value(&world.dir(id), &format!("ns.{kind}"));
                let known = |group: &Group| group.own.get(kind) == Some(&made);
                assert!(made.starts_with(kind) && made != mine(kind) && !world.reference.groups.iter().flatten().any(known), "{made}");
                world.reference.groups[id].as_mut().expect("a group").own.insert(kind, made);
            }
            changed
        }
        _ => false,
    }
}

#[test]
fn histories() {
    const TEST: &str = "histories";
    let mut random = Random::new();
    let seed = random.seed;
    let (mut steps, mut changed) = (0, 0);
    for _ in 0..rounds(18) {
        let Some(mount) = mount() else { return };
        let (targets, processes): (Vec<Target>, Vec<Process>) = [0, 0, 3]
            .map(|threads| {
                let (target, tids) = process(threads);
                let pid = target.pid();
                (target, Process { pid, tids, group: 0 })
            })
            .into_iter()
            .unzip();
        let root = Group { path: String::new(), parent: 0, own: BTreeMap::new(), root: None };
        let mut world = World {
            mount,
            reference: Reference { groups: vec![Some(root)], processes },
            _targets: targets,
            said: vec![format!("seed {seed}")],
        };
        for _ in 0..60 {
            changed += usize::from(one(&mut world, &mut random));
            steps += 1;
            world.check();
        }
    }
    report(TEST, &format!("seed {seed}: {steps} steps, {changed} changes"));
}
