//! Random histories: after each step the same result, the same text in every file, the same members, and each thread
//! with the CPUs that the rule gives it, as in the reference.

use crate::fake::{At, FakeMachine, INIT, KTHREADD, MIGRATION};
use crate::reference::{FLAGS, Reference, Set, Thread, list};
use crate::world::{Outcome, World, client};
use cgfuse::sys::{Errno, Tid};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest::test_runner::TestCaseError;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// A step. Numbers choose among what there is at the time.
#[derive(Clone, Debug)]
enum Step {
    Mkdir { parent: u8, name: u8 },
    Rmdir { group: u8 },
    Rename { group: u8, parent: Option<u8>, name: u8 },
    Set { group: u8, cpus: bool, ids: u8, form: u8 },
    BadSet { group: u8, cpus: bool, text: u8 },
    Flag { group: u8, flag: u8, number: u8 },
    Relax { group: u8, number: u8 },
    Core { group: u8, clone: bool, number: u8 },
    Pressure { number: u8 },
    ReadOnly { group: u8, file: u8 },
    Attach { group: u8, whole: bool, who: u8, opener: u8, writer: u8, refused: Option<u8> },
    Self_ { group: u8, whole: bool, who: u8, opener: u8 },
    BadAttach { group: u8, whole: bool, text: u8 },
    Births { creator: u8, births: Vec<(u8, bool)> },
    Exit { who: u8 },
    ExitGroup { who: u8 },
    Reap { who: u8 },
    SetAffinity { who: u8, ids: u8 },
    Setuid { who: u8, uid: u8 },
    RefusedCpus { group: u8, ids: u8, refused: u8 },
    Raced { step: Box<Step>, moment: u8, of: u8, skip: u8, event: Event, who: u8 },
    Cpu { cpu: u8, online: bool },
    Node { node: u8, online: bool },
}

/// What happens in the middle of another step.
#[derive(Clone, Copy, Debug)]
enum Event {
    Fork,
    Thread,
    Exit,
}

/// What the histories are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Wishes,
    Hotplug,
    Races,
}

const NAMES: [&str; 8] = ["a", "b", "c", "d", "a", "b", "d e", "new\nline"];
const UIDS: [u32; 3] = [0, 1000, 1001];
/// More threads than this make a history slow and no wiser.
const MANY: usize = 14;

/// Texts of unsigned numbers, and what they mean.
const UNSIGNED: [(&str, Result<u64, Errno>); 14] = [
    ("0", Ok(0)),
    ("1", Ok(1)),
    ("0\n", Ok(0)),
    ("1\n", Ok(1)),
    ("+2", Ok(2)),
    ("0x10", Ok(16)),
    ("4294967296", Ok(1 << 32)),
    ("4294967297", Ok((1 << 32) + 1)),
    ("1\0x", Ok(1)),
    ("-1", Err(Errno::EINVAL)),
    (" 1", Err(Errno::EINVAL)),
    ("08", Err(Errno::EINVAL)),
    ("\n", Err(Errno::EINVAL)),
    ("18446744073709551616", Err(Errno::ERANGE)),
];

/// Half of the time a plain 0 or 1.
fn unsigned(number: u8) -> (&'static str, Result<u64, Errno>) {
    let plain = usize::from(number & 1);
    UNSIGNED[if number & 2 == 0 { plain } else { usize::from(number / 4) % UNSIGNED.len() }]
}

/// Texts of signed numbers.
const SIGNED: [(&str, Result<i64, Errno>); 9] = [
    ("-1\n", Ok(-1)),
    ("0", Ok(0)),
    ("+1", Ok(1)),
    ("0x2", Ok(2)),
    ("3", Ok(3)),
    ("-2", Ok(-2)),
    ("4294967296", Ok(1 << 32)),
    ("9223372036854775808", Err(Errno::ERANGE)),
    ("--1", Err(Errno::EINVAL)),
];

/// Lists that no machine takes.
const BAD_LISTS: [(&str, Errno); 12] = [
    ("x", Errno::EINVAL),
    ("0-", Errno::EINVAL),
    ("1-0", Errno::EINVAL),
    ("0:1/2", Errno::EINVAL),
    ("0-1:2/1", Errno::EINVAL),
    ("4294967295", Errno::EINVAL),
    ("4294967296", Errno::EOVERFLOW),
    ("99999", Errno::ERANGE),
    ("0-99999", Errno::ERANGE),
    ("99999,x", Errno::ERANGE),
    ("x,99999", Errno::EINVAL),
    ("0 - 1", Errno::EINVAL),
];

const BAD_PIDS: [(&str, Errno); 9] = [
    ("x", Errno::EINVAL),
    ("\n", Errno::EINVAL),
    ("-1", Errno::EINVAL),
    ("1 1", Errno::EINVAL),
    ("2147483648", Errno::EINVAL),
    ("32000", Errno::ESRCH),
    ("2", Errno::EINVAL),
    ("3", Errno::EINVAL),
    ("0x3", Errno::EINVAL),
];

fn steps(about: About) -> impl Strategy<Value = Vec<Step>> {
    let index = || any::<u8>();
    let family = proptest::collection::vec((index(), any::<bool>()), 1..4);
    let tree = prop_oneof![
        4 => (index(), 0..8u8).prop_map(|(parent, name)| Step::Mkdir { parent, name }),
        1 => index().prop_map(|group| Step::Rmdir { group }),
        1 => (index(), proptest::option::weighted(0.2, index()), 0..8u8).prop_map(|(group, parent, name)| Step::Rename { group, parent, name }),
    ];
    let files = prop_oneof![
        10 => (index(), any::<bool>(), index(), 0..6u8).prop_map(|(group, cpus, ids, form)| Step::Set { group, cpus, ids, form }),
        1 => (index(), any::<bool>(), index()).prop_map(|(group, cpus, text)| Step::BadSet { group, cpus, text }),
        4 => (index(), index(), index()).prop_map(|(group, flag, number)| Step::Flag { group, flag, number }),
        1 => (index(), index()).prop_map(|(group, number)| Step::Relax { group, number }),
        2 => (index(), any::<bool>(), index()).prop_map(|(group, clone, number)| Step::Core { group, clone, number }),
        1 => index().prop_map(|number| Step::Pressure { number }),
        1 => (index(), index()).prop_map(|(group, file)| Step::ReadOnly { group, file }),
        2 => (index(), index(), index()).prop_map(|(group, ids, refused)| Step::RefusedCpus { group, ids, refused }),
    ];
    let attach = prop_oneof![
        10 => (index(), any::<bool>(), index(), 0..6u8, 0..6u8, proptest::option::weighted(0.1, index()))
            .prop_map(|(group, whole, who, opener, writer, refused)| Step::Attach { group, whole, who, opener, writer, refused }),
        1 => (index(), any::<bool>(), index(), 0..6u8).prop_map(|(group, whole, who, opener)| Step::Self_ { group, whole, who, opener }),
        1 => (index(), any::<bool>(), index()).prop_map(|(group, whole, text)| Step::BadAttach { group, whole, text }),
    ];
    let tasks = prop_oneof![
        4 => (index(), family).prop_map(|(creator, births)| Step::Births { creator, births }),
        2 => index().prop_map(|who| Step::Exit { who }),
        1 => index().prop_map(|who| Step::ExitGroup { who }),
        1 => index().prop_map(|who| Step::Reap { who }),
        1 => (index(), index()).prop_map(|(who, uid)| Step::Setuid { who, uid }),
    ];
    let machine = match about {
        About::Hotplug => prop_oneof![
            3 => (index(), any::<bool>()).prop_map(|(cpu, online)| Step::Cpu { cpu, online }),
            1 => (index(), any::<bool>()).prop_map(|(node, online)| Step::Node { node, online }),
        ]
        .boxed(),
        About::Wishes => (index(), index()).prop_map(|(who, ids)| Step::SetAffinity { who, ids }).boxed(),
        About::Races => races().boxed(),
    };
    proptest::collection::vec(prop_oneof![4 => tree, 8 => files, 8 => attach, 6 => tasks, 4 => machine], 1..60)
}

/// Moves and changes of CPUs, in the middle of which something happens.
fn races() -> impl Strategy<Value = Step> {
    let index = || any::<u8>();
    let step = prop_oneof![
        (index(), any::<bool>(), index()).prop_map(|(group, whole, who)| Step::Attach {
            group,
            whole,
            who,
            opener: 0,
            writer: 0,
            refused: None
        }),
        (index(), index()).prop_map(|(group, ids)| Step::Set { group, cpus: true, ids, form: 0 }),
        index().prop_map(|group| Step::Rmdir { group }),
    ];
    let event = prop_oneof![Just(Event::Fork), Just(Event::Thread), Just(Event::Exit)];
    (step, 0..3u8, index(), 0..3u8, event, index()).prop_map(|(step, moment, of, skip, event, who)| Step::Raced {
        step: Box::new(step),
        moment,
        of,
        skip,
        event,
        who,
    })
}

/// Runs `f` when something has happened `skip` times more, if it does.
fn stage(machine: &FakeMachine, at: At, skip: u8, f: impl FnOnce(&FakeMachine) + Send + 'static) {
    match skip {
        0 => machine.at(at, f),
        _ => machine.at(at, move |machine| stage(machine, at, skip - 1, f)),
    }
}

/// A step that can be raced, with what it is about.
enum Plan {
    Attach { group: u32, whole: bool, tid: Tid },
    Set { group: u32, cpus: Set },
    Rmdir { group: u32 },
}

impl Plan {
    fn wanted(&self, reference: &mut Reference) -> Outcome {
        match self {
            Self::Attach { group, whole, tid } => reference.attach(*group, *tid, *whole, 0, 0),
            Self::Set { group, cpus } => reference.write_set(*group, true, Ok(cpus.clone())),
            Self::Rmdir { group } => reference.rmdir(*group),
        }
    }
}

/// A world and its reference, side by side.
struct Pair {
    world: World,
    reference: Reference,
    cpus: usize,
    nodes: usize,
    online: Set,
    mems: Set,
}

/// The one of `all` that a number chooses.
fn choose<T: Clone>(all: &[T], number: u8) -> Option<T> {
    (!all.is_empty()).then(|| all[usize::from(number) % all.len()].clone())
}

/// Eight bits as ids below `n`: one each, or an eighth of all, with edges off the words' boundaries.
fn ids(bits: u8, n: usize) -> Set {
    let edge = |i: usize| if n <= 8 || i == 0 || i == 8 { (i * n.max(8) / 8).min(n) } else { i * n / 8 - 3 };
    (0..8).filter(|i| bits >> i & 1 == 1).flat_map(|i| edge(i)..edge(i + 1)).collect()
}

/// A list in one of the forms in which it can be written.
fn write_list(set: &Set, form: u8) -> String {
    let text = list(set);
    match form {
        0 => text + "\n",
        1 => format!(" {} \n", text.replace(',', " , ")),
        2 if !set.is_empty() => format!(",{text}\nrest"),
        3 => format!("{text}\0x"),
        4 if set.len() < 64 => set.iter().rev().map(|id| format!("{id:03}")).collect::<Vec<_>>().join(",") + "\n",
        _ => text + "\u{b}",
    }
}

impl Pair {
    fn new(world: World, cpus: usize, nodes: usize) -> Self {
        let mut reference = Reference::new(cpus, nodes);
        for uid in UIDS {
            let tid = world.machine.process(uid);
            reference.birth(INIT, tid, false);
            reference.threads.entry(tid).and_modify(|thread| thread.uid = uid);
        }
        world.write("/release_agent", "/agent").expect("agent");
        for name in &NAMES[..2] {
            world.group(&format!("/{name}"), "all");
            let group = reference.mkdir(0, name).expect("a new group");
            for cpus in [true, false] {
                let all = (0..if cpus { reference.possible.len() } else { nodes }).collect();
                reference.write_set(group, cpus, Ok(all)).expect("all that there is");
            }
        }
        let (online, mems) = ((0..cpus).collect(), (0..nodes).collect());
        Self { world, reference, cpus, nodes, online, mems }
    }

    fn groups(&self) -> Vec<u32> {
        self.reference.groups.keys().copied().collect()
    }

    /// The root is chosen less often than the others.
    fn group(&self, number: u8) -> u32 {
        let all = self.groups();
        let below = if number.is_multiple_of(8) { &all[..] } else { &all[1..] };
        choose(below, number / 8).unwrap_or(0)
    }

    fn file(&self, group: u32, name: &str) -> String {
        format!("{}/{name}", self.reference.path(group))
    }

    /// The threads that are neither the kernel's nor init.
    fn threads(&self) -> Vec<Tid> {
        self.reference.threads.keys().copied().filter(|tid| *tid > 99).collect()
    }

    /// The same, and those that are dead but not reaped.
    fn anybody(&self) -> Vec<Tid> {
        self.threads().into_iter().chain(self.reference.zombies.keys().copied()).collect()
    }

    /// Whether a look can tell who has created a child: no other thread of the process shows the same affinity and has another
    /// place or wish. Of a process that is spread over groups, the kernel tells which thread a child process is of.
    fn creator_shows(&self, tid: Tid, is_thread: bool) -> bool {
        let creator = &self.reference.threads[&tid];
        let process = || self.reference.threads.values().filter(|thread| thread.tgid == creator.tgid);
        let shown = |thread: &Thread| thread.mask.intersection(&self.online).copied().collect::<Set>();
        let other = |thread: &Thread| (thread.group, &thread.user) != (creator.group, &creator.user);
        let told = !is_thread && process().any(|thread| thread.group != creator.group);
        told || !process().any(|thread| shown(thread) == shown(creator) && other(thread))
    }

    /// Somebody with this uid who can write.
    fn somebody(&self, uid: u32) -> Option<Tid> {
        let of = |(tid, thread): (&Tid, &Thread)| (thread.uid == uid).then_some(*tid);
        if uid == 0 { Some(INIT) } else { self.reference.threads.iter().find_map(of) }
    }

    fn same(&self, step: &Step, have: Outcome, want: Outcome) -> Result<(), TestCaseError> {
        prop_assert_eq!(have, want, "{:?}", step);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Mkdir { .. } | Step::Rmdir { .. } | Step::Rename { .. } => self.tree_step(step),
            Step::Attach { .. } | Step::Self_ { .. } | Step::BadAttach { .. } => self.attach_step(step),
            Step::Births { .. }
            | Step::Exit { .. }
            | Step::ExitGroup { .. }
            | Step::Reap { .. }
            | Step::SetAffinity { .. }
            | Step::Setuid { .. } => {
                self.task_step(step);
                Ok(())
            }
            Step::Raced { .. } => self.raced(step),
            Step::Cpu { cpu, online } => {
                change(&mut self.online, usize::from(cpu) % self.cpus, online);
                (0..self.cpus).for_each(|cpu| self.world.machine.set_online(cpu, self.online.contains(&cpu)));
                self.hotplug();
                Ok(())
            }
            Step::Node { node, online } => {
                change(&mut self.mems, usize::from(node) % self.nodes, online);
                (0..self.nodes).for_each(|node| self.world.machine.set_node(node, self.mems.contains(&node)));
                self.hotplug();
                Ok(())
            }
            _ => self.file_step(step),
        }
    }

    fn hotplug(&mut self) {
        self.world.vfs.hierarchy().lock().hotplug();
        self.reference.hotplug(&self.online, &self.mems);
    }

    fn tree_step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Mkdir { parent, name } => {
                let (parent, name) = (self.group(parent), NAMES[usize::from(name)]);
                let have = self.world.mkdir(&self.file(parent, name));
                let want = self.reference.mkdir(parent, name).map(drop);
                self.same(step, have, want)
            }
            Step::Rmdir { group } => {
                let group = self.group(group);
                if group == 0 {
                    return Ok(());
                }
                let have = self.world.rmdir(&self.reference.path(group));
                let want = self.reference.rmdir(group);
                self.same(step, have, want)
            }
            Step::Rename { group, parent, name } => {
                let (group, name) = (self.group(group), NAMES[usize::from(name)]);
                let own = self.reference.groups[&group].parent;
                let to = parent.map_or(own, |parent| self.group(parent));
                // What the VFS above answers without asking: onto itself, and into or above itself.
                let taken = |id: &u32| self.reference.groups[id].parent == to && self.reference.groups[id].name == name;
                let above = |path: &str, other: &str| format!("{other}/").starts_with(&format!("{path}/"));
                let (from, target) = (self.reference.path(group), self.file(to, name));
                if group == 0 || taken(&group) || above(&from, &target) || above(&target, &from) {
                    return Ok(());
                }
                let have = self.world.rename(&from, &target);
                let want = self.reference.rename(group, to, name);
                self.same(step, have, want)
            }
            _ => unreachable!("not of the tree"),
        }
    }

    fn file_step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (file, text, want) = match *step {
            Step::Set { group, cpus, ids: bits, form } => {
                let (group, n) = (self.group(group), if cpus { self.cpus } else { self.nodes });
                // Mostly something that the parent has, so that it is often accepted.
                let above = &self.reference.groups[&self.reference.groups[&group].parent];
                let above = if cpus { &above.cpus } else { &above.mems };
                let set: Set = ids(bits, n).into_iter().filter(|id| form == 5 || above.contains(id)).collect();
                let text = write_list(&set, form);
                (self.file(group, if cpus { "cpuset.cpus" } else { "cpuset.mems" }), text, self.reference.write_set(group, cpus, Ok(set)))
            }
            Step::BadSet { group, cpus, text } => {
                let (group, (text, errno)) = (self.group(group), BAD_LISTS[usize::from(text) % BAD_LISTS.len()]);
                let want = self.reference.write_set(group, cpus, Err(errno));
                (self.file(group, if cpus { "cpuset.cpus" } else { "cpuset.mems" }), text.to_owned(), want)
            }
            Step::Flag { group, flag, number } => {
                let (group, flag) = (self.group(group), FLAGS[usize::from(flag) % if flag < 128 { 2 } else { FLAGS.len() }].0);
                let (text, value) = unsigned(number);
                let want = value.and_then(|value| self.reference.write_flag(group, flag, value as u32 != 0));
                (self.file(group, &format!("cpuset.{flag}")), text.to_owned(), want)
            }
            Step::Pressure { number } => {
                let (text, value) = unsigned(number);
                let want = value.map(|value| self.reference.write_pressure_enabled(value as u32 != 0));
                (self.file(0, "cpuset.memory_pressure_enabled"), text.to_owned(), want)
            }
            Step::Relax { group, number } => {
                let (group, (text, value)) = (self.group(group), SIGNED[usize::from(number) % SIGNED.len()]);
                let want = value.and_then(|value| self.reference.write_relax(group, value));
                (self.file(group, "cpuset.sched_relax_domain_level"), text.to_owned(), want)
            }
            Step::Core { group, clone, number } => {
                let (group, (text, value)) = (self.group(group), unsigned(number));
                let record = self.reference.groups.get_mut(&group).expect("a group");
                let flag = if clone { &mut record.clone } else { &mut record.notify };
                let want = value.map(|value| *flag = value != 0);
                (self.file(group, if clone { "cgroup.clone_children" } else { "notify_on_release" }), text.to_owned(), want)
            }
            Step::ReadOnly { group, file } => {
                let group = self.group(group);
                let file = ["cpuset.effective_cpus", "cpuset.effective_mems", "cpuset.memory_pressure"][usize::from(file) % 3];
                (self.file(group, file), "0".to_owned(), Err(Errno::EINVAL))
            }
            Step::RefusedCpus { group, ids: bits, refused } => return self.refused_cpus(step, group, bits, refused),
            _ => unreachable!("not of a file"),
        };
        self.same(step, self.world.write(&file, text), want)
    }

    /// A change of CPUs that one thread refuses: nothing has happened, or the thread had nothing to refuse.
    fn refused_cpus(&mut self, step: &Step, group: u8, bits: u8, refused: u8) -> Result<(), TestCaseError> {
        let (group, set) = (self.group(group), self.given_above(group, bits));
        let members: Vec<Tid> = self.threads().into_iter().filter(|tid| self.reference.threads[tid].group == group).collect();
        let Some(refused) = choose(&members, refused) else { return Ok(()) };
        self.world.machine.refuse(refused, Errno::EPERM);
        let have = self.world.write(&self.file(group, "cpuset.cpus"), list(&set) + "\n");
        self.world.machine.allow(refused);
        if have == Err(Errno::EPERM) {
            return Ok(());
        }
        let before = self.reference.threads[&refused].mask.clone();
        let want = self.reference.write_set(group, true, Ok(set));
        prop_assert_eq!(&before, &self.reference.threads[&refused].mask, "{:?}: changed although refused", step);
        self.same(step, have, want)
    }

    fn attach_step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let file = |whole| if whole { "cgroup.procs" } else { "tasks" };
        match *step {
            Step::Attach { group, whole, who, opener, writer, refused } => {
                let Some(tid) = choose(&self.anybody(), who) else { return Ok(()) };
                let uid = |number: u8| UIDS[usize::from(number).saturating_sub(3)];
                let (group, opener, writer) = (self.group(group), uid(opener), uid(writer));
                let (Some(opening), Some(writing)) = (self.somebody(opener), self.somebody(writer)) else { return Ok(()) };
                let refused = refused.and_then(|number| choose(&self.threads(), number));
                refused.into_iter().for_each(|tid| self.world.machine.refuse(tid, Errno::EPERM));
                let path = self.file(group, file(whole));
                let have = self.world.write_by(client(opener, opening), client(writer, writing), &path, format!("{tid}\n"));
                refused.into_iter().for_each(|tid| self.world.machine.allow(tid));
                let process = |tid: Tid| self.reference.threads.get(&tid).map_or(tid, |thread| thread.tgid);
                let meant = |refused: Tid| refused == tid || whole && process(refused) == process(tid);
                if have == Err(Errno::EPERM) && refused.is_some_and(meant) {
                    return Ok(());
                }
                let want = self.reference.attach(group, tid, whole, opener, writer);
                self.same(step, have, want)
            }
            Step::Self_ { group, whole, who, opener } => {
                let Some(tid) = choose(&self.threads(), who) else { return Ok(()) };
                let (group, uid) = (self.group(group), self.reference.threads[&tid].uid);
                let opener = if opener == 0 { uid } else { 0 };
                let have = self.world.write_by(client(opener, INIT), client(uid, tid), &self.file(group, file(whole)), "0");
                let want = self.reference.attach(group, tid, whole, opener, uid);
                // A user may set his own scheduling.
                self.same(step, have, want)
            }
            Step::BadAttach { group, whole, text } => {
                let (text, errno) = BAD_PIDS[usize::from(text) % BAD_PIDS.len()];
                self.same(step, self.world.write(&self.file(self.group(group), file(whole)), text), Err(errno))
            }
            _ => unreachable!("not a move"),
        }
    }

    fn task_step(&mut self, step: &Step) {
        let machine = &self.world.machine;
        match *step {
            Step::Births { creator, ref births } => {
                let mut family: Vec<Tid> = choose(&self.threads(), creator).into_iter().collect();
                for &(number, is_thread) in births {
                    let Some(creator) = choose(&family, number).filter(|tid| self.creator_shows(*tid, is_thread)) else { return };
                    if self.anybody().len() < MANY {
                        let child = machine.appear(machine.begin(creator, is_thread));
                        self.reference.birth(creator, child, is_thread);
                        family.push(child);
                    }
                }
            }
            Step::Exit { who } => {
                if let Some(tid) = choose(&self.threads(), who) {
                    machine.exit(tid);
                    self.reference.exit(tid);
                }
            }
            Step::ExitGroup { who } => {
                if let Some(tid) = choose(&self.threads(), who) {
                    let tgid = self.reference.threads[&tid].tgid;
                    machine.exit_group(tgid);
                    let threads = self.threads().into_iter().filter(|tid| self.reference.threads[tid].tgid == tgid);
                    threads.collect::<Vec<_>>().into_iter().for_each(|tid| self.reference.exit(tid));
                }
            }
            Step::Reap { who } => {
                let threads = &self.reference.threads;
                let ended = |tgid: &Tid| !threads.values().any(|thread| thread.tgid == *tgid);
                let ended: Vec<Tid> = self.reference.zombies.keys().copied().filter(ended).collect();
                if let Some(tgid) = choose(&ended, who) {
                    machine.reap(tgid);
                    self.reference.zombies.remove(&tgid);
                }
            }
            Step::SetAffinity { who, ids: bits } => self.set_affinity(who, &ids(bits, self.cpus)),
            Step::Setuid { who, uid } => {
                let (Some(tid), uid) = (choose(&self.threads(), who), UIDS[usize::from(uid) % 3]) else { return };
                let tgid = self.reference.threads[&tid].tgid;
                machine.setuid(tgid, uid);
                self.reference.threads.values_mut().filter(|thread| thread.tgid == tgid).for_each(|thread| thread.uid = uid);
                self.reference.zombies.entry(tgid).and_modify(|owner| *owner = uid);
            }
            _ => unreachable!("not of tasks"),
        }
    }

    /// A thread asks for CPUs, unless nobody who only looks could tell that it has: it has or was given just these.
    fn set_affinity(&mut self, who: u8, mask: &Set) {
        let Some(tid) = choose(&self.threads(), who) else { return };
        let thread = &self.reference.threads[&tid];
        let unseen = thread.group != 0 && (thread.mask == *mask || thread.given[0] == *mask);
        if mask.is_empty() || unseen {
            return;
        }
        self.world.machine.sched_setaffinity(tid, mask.iter().copied()).expect("CPUs that are online");
        self.reference.set_affinity(tid, mask);
    }

    /// A step in the middle of which something happens: everything is as if that had happened before it or after it.
    fn raced(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Step::Raced { step: inner, moment, of, skip, event, who } = step else { unreachable!("not raced") };
        let Some(plan) = self.plan(inner) else { return Ok(()) };
        // Mostly where it matters: in the middle of what is being changed.
        let concerned = |tid: &Tid| match plan {
            Plan::Attach { tid: target, .. } => self.reference.threads[tid].tgid == self.tgid(target),
            Plan::Set { group, .. } | Plan::Rmdir { group } => self.reference.threads[tid].group == group,
        };
        let concerned: Vec<Tid> = self.threads().into_iter().filter(concerned).collect();
        let (Some(of), Some(who)) = (choose(&concerned, *of), choose(&concerned, *who)) else { return Ok(()) };
        let together = |tgid: Tid| {
            let groups = self.reference.threads.values().filter(|thread| thread.tgid == tgid).map(|thread| thread.group);
            groups.collect::<BTreeSet<_>>().len() == 1
        };
        let whole = !matches!(plan, Plan::Attach { whole: false, .. });
        // Which thread has created another shows only where all are in one group.
        let shows = !matches!(event, Event::Thread) || whole && together(self.reference.threads[&who].tgid);
        if !shows || self.anybody().len() >= MANY {
            return Ok(());
        }
        let at = [At::BeforeSet(of), At::AfterSet(of), At::Listed(self.reference.threads[&of].tgid)][usize::from(*moment)];
        let (child, event) = (Arc::new(Mutex::new(None)), *event);
        let born = child.clone();
        let happen = move |machine: &FakeMachine| match event {
            Event::Exit => machine.exit(who),
            Event::Fork | Event::Thread => {
                *born.lock().expect("no panic") = Some(machine.appear(machine.begin(who, matches!(event, Event::Thread))))
            }
        };
        stage(&self.world.machine, at, *skip, happen);
        let before = self.reference.clone();
        let have = (self.carry_out(&plan), plan.wanted(&mut self.reference));
        if self.world.machine.hooks_left() > 0 {
            self.world.machine.clear_hooks();
            return self.same(inner, have.0, have.1);
        }
        self.world.settle();
        let child = *child.lock().expect("no panic");
        let happened = |reference: &mut Reference| match child {
            Some(child) => reference.birth(who, child, matches!(event, Event::Thread)),
            None => reference.exit(who),
        };
        happened(&mut self.reference);
        let (after, done) = (self.reference.clone(), have.0);
        let mut differ = if done == have.1 { self.compare_state(step) } else { self.same(step, done, have.1) };
        if differ.is_err() {
            self.reference = before;
            happened(&mut self.reference);
            let want = plan.wanted(&mut self.reference);
            if done == want {
                differ = self.compare_state(step);
            }
            if differ.is_err() {
                self.reference = after;
            }
        }
        // When a group was empty in between depends on the order.
        self.reference.released.clear();
        self.world.released();
        differ
    }

    fn tgid(&self, tid: Tid) -> Tid {
        self.reference.threads.get(&tid).map_or(tid, |thread| thread.tgid)
    }

    /// What one of the steps that can be raced means now.
    fn plan(&self, step: &Step) -> Option<Plan> {
        match *step {
            Step::Attach { group, whole, who, .. } => {
                Some(Plan::Attach { group: self.group(group), whole, tid: choose(&self.anybody(), who)? })
            }
            Step::Set { group, ids, .. } => Some(Plan::Set { group: self.group(group), cpus: self.given_above(group, ids) }),
            Step::Rmdir { group } => Some(Plan::Rmdir { group: self.group(group) }).filter(|_| self.group(group) != 0),
            _ => None,
        }
    }

    fn carry_out(&self, plan: &Plan) -> Outcome {
        match plan {
            Plan::Attach { group, whole: true, tid } => self.world.write(&self.file(*group, "cgroup.procs"), tid.to_string()),
            Plan::Attach { group, whole: false, tid } => self.world.write(&self.file(*group, "tasks"), tid.to_string()),
            Plan::Set { group, cpus } => self.world.write(&self.file(*group, "cpuset.cpus"), list(cpus) + "\n"),
            Plan::Rmdir { group } => self.world.rmdir(&self.reference.path(*group)),
        }
    }

    /// CPUs that the parent has.
    fn given_above(&self, group: u8, bits: u8) -> Set {
        let group = self.group(group);
        let above = &self.reference.groups[&self.reference.groups[&group].parent].cpus;
        ids(bits, self.cpus).intersection(above).copied().collect()
    }

    /// Everything that a program can see, on both sides.
    fn compare(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.compare_state(step)?;
        let mut want = std::mem::take(&mut self.reference.released);
        want.sort();
        prop_assert_eq!(self.world.released(), want, "released after {:?}", step);
        Ok(())
    }

    fn compare_state(&self, step: &Step) -> Result<(), TestCaseError> {
        for id in self.groups() {
            for (name, want) in self.reference.texts(id) {
                prop_assert_eq!(self.world.read(&self.file(id, &name)), Ok(want), "{} after {:?}", self.file(id, &name), step);
            }
        }
        for (tid, thread) in &self.reference.threads {
            let mask: Set = self.world.machine.mask(*tid).iter().collect();
            prop_assert_eq!(&mask, &thread.mask, "CPUs of {} {:?} after {:?}", tid, thread, step);
        }
        Ok(())
    }
}

/// An id goes or comes; the last one stays.
fn change(set: &mut Set, id: usize, present: bool) {
    if present {
        set.insert(id);
    } else if set.len() > 1 {
        set.remove(&id);
    }
}

fn run(world: World, cpus: usize, nodes: usize, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(world, cpus, nodes);
    for step in steps {
        pair.step(step)?;
        // Who has given himself CPUs outside his group is put back within a second.
        pair.world.settle();
        pair.compare(step)?;
    }
    Ok(())
}

/// So many histories, unless PROPTEST_CASES says otherwise; CGFUSE_SEED=NUMBER gives others.
fn cases(n: u32) -> ProptestConfig {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let cases = number("PROPTEST_CASES").map_or(n, |cases| cases as u32);
    // The same histories each time, unless asked for more or for others.
    let rng_seed = match number("CGFUSE_SEED") {
        Some(seed) => RngSeed::Fixed(seed),
        None if cases == n => RngSeed::Fixed(0),
        None => RngSeed::Random,
    };
    ProptestConfig { cases, rng_seed, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn small_machine(steps in steps(About::Wishes)) {
        run(World::new(FakeMachine::new(4, 2).with_pid_max(340)), 4, 2, &steps)?;
    }

    #[test]
    fn machine_that_tells(steps in steps(About::Wishes)) {
        run(World::told(FakeMachine::new(4, 2).with_pid_max(340)), 4, 2, &steps)?;
    }

    #[test]
    fn machine_that_tells_of_births_and_deaths_in_the_middle(steps in steps(About::Races)) {
        run(World::told(FakeMachine::new(4, 2).with_pid_max(340)), 4, 2, &steps)?;
    }

    #[test]
    fn machine_that_does_not_tell_its_last_pid(steps in steps(About::Wishes)) {
        run(World::new(FakeMachine::new(4, 2).with_pid_max(340).without_last_pid()), 4, 2, &steps)?;
    }

    #[test]
    fn births_and_deaths_in_the_middle(steps in steps(About::Races)) {
        run(World::new(FakeMachine::new(4, 2).with_pid_max(340)), 4, 2, &steps)?;
    }

    #[test]
    fn cpus_and_nodes_that_come_and_go(steps in steps(About::Hotplug)) {
        run(World::new(FakeMachine::new(3, 2).with_pid_max(340)), 3, 2, &steps)?;
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn large_machine(steps in steps(About::Wishes)) {
        run(World::new(FakeMachine::new(4096, 8)), 4096, 8, &steps)?;
    }
}

#[test]
fn bound_kernel_threads_are_where_the_texts_say() {
    assert_eq!((KTHREADD, MIGRATION), (2, 3), "BAD_PIDS names them");
}
