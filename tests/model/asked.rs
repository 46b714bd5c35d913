//! Where the tracker tells of members whose CPUs somebody has set, nobody waits for the regular look.

use crate::fake::{FakeMachine, Told};
use crate::world::World;
use cgfuse::sys::{Machine, Tid};
use cgfuse::tracker::events::EventLog;
use cgfuse::tracker::table::{CssSetId, Slot, Table};
use cgfuse::tracker::{Stats, Tracker};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Tells what the test has it tell.
struct Telling {
    log: EventLog<Told>,
    asked: Arc<Mutex<Vec<Tid>>>,
}

impl Tracker for Telling {
    fn name(&self) -> &'static str {
        self.log.name()
    }

    fn table(&self) -> &Arc<Table> {
        self.log.table()
    }

    fn activate(&mut self, machine: &dyn Machine, on: bool) -> io::Result<()> {
        self.log.activate(machine, on)
    }

    fn is_active(&self) -> bool {
        self.log.is_active()
    }

    fn knows_all(&self) -> bool {
        self.log.knows_all()
    }

    fn tells_exits(&self) -> bool {
        self.log.tells_exits()
    }

    fn is_prompt(&self) -> bool {
        self.log.is_prompt()
    }

    fn sync(&mut self, machine: &dyn Machine) {
        self.log.sync(machine);
    }

    fn know(&mut self, machine: &dyn Machine, tgid: Tid) {
        self.log.know(machine, tgid);
    }

    fn reap(&mut self, machine: &dyn Machine, members: &[(Tid, Slot)]) -> bool {
        self.log.reap(machine, members)
    }

    fn exited(&mut self, tid: Tid) {
        self.log.exited(tid);
    }

    fn redirect(&mut self, process: Option<(Tid, CssSetId)>) {
        self.log.redirect(process);
    }

    fn take_emptied(&mut self) -> Vec<CssSetId> {
        self.log.take_emptied()
    }

    fn take_asked(&mut self) -> Vec<Tid> {
        std::mem::take(&mut *self.asked.lock().expect("whole"))
    }

    fn has_asked(&self) -> bool {
        !self.asked.lock().expect("whole").is_empty()
    }

    fn stats(&self) -> Stats {
        self.log.stats()
    }
}

/// A world with the groups a, on CPU 0, and b, on all; and what to tell.
fn world() -> (World, Arc<Mutex<Vec<Tid>>>) {
    let (machine, asked) = (Arc::new(FakeMachine::new(4, 1)), Arc::new(Mutex::default()));
    let log = EventLog::new(Told(machine.clone()), machine.pid_max()).expect("memory");
    let world = World::tracked_by(machine, Box::new(Telling { log, asked: Arc::clone(&asked) }), 0);
    world.group("/a", "0");
    world.group("/b", "0-3");
    (world, asked)
}

/// Has a task set its CPUs, and that told.
fn sets(world: &World, asked: &Mutex<Vec<Tid>>, tid: Tid, cpus: &[usize]) {
    world.machine.sched_setaffinity(tid, cpus.iter().copied()).expect("setaffinity");
    asked.lock().expect("whole").push(tid);
}

#[test]
fn who_is_told_of_is_put_back_at_once() {
    let (world, asked) = world();
    let task = world.machine.process(0);
    world.attach("/a", task).expect("attach");
    world.vfs.hierarchy().housekeeping();
    sets(&world, &asked, task, &[0, 1]);
    world.vfs.hierarchy().listen();
    assert_eq!(world.machine.mask(task).to_string(), "0");
    assert!(world.read("/cgfuse.stat").expect("readable").contains("\ndrift 1\n"));
    // It is a wish, too.
    world.write("/a/cpuset.cpus", "0-3").expect("cpus");
    assert_eq!(world.machine.mask(task).to_string(), "0-1");
}

#[test]
fn who_does_it_again_and_again_waits() {
    let (world, asked) = world();
    let hierarchy = world.vfs.hierarchy();
    let task = world.machine.process(0);
    world.attach("/a", task).expect("attach");
    world.machine.pass(Duration::from_millis(1500));
    hierarchy.housekeeping();
    let now = |world: &World| world.machine.now();
    let regular = hierarchy.next_housekeeping().expect("a member");
    sets(&world, &asked, task, &[1]);
    assert_eq!(hierarchy.next_housekeeping().map(|due| due <= now(&world)), Some(true), "nobody else would look");
    hierarchy.housekeeping();
    assert_eq!(world.machine.mask(task).to_string(), "0");
    sets(&world, &asked, task, &[1]);
    let due = hierarchy.next_housekeeping().expect("a member");
    assert!(due > now(&world) && due < regular, "not at once, and before the regular look");
    hierarchy.listen();
    hierarchy.housekeeping();
    assert_eq!(world.machine.mask(task).to_string(), "1", "not yet");
    world.machine.pass(due.duration_since(now(&world)));
    hierarchy.housekeeping();
    assert_eq!(world.machine.mask(task).to_string(), "0");
}

#[test]
fn who_is_moved_before_he_is_looked_at_has_what_he_has_there() {
    let (world, asked) = world();
    let hierarchy = world.vfs.hierarchy();
    // Who stays keeps the css_set.
    let (task, other) = (world.machine.process(0), world.machine.process(0));
    [task, other].into_iter().for_each(|tid| world.attach("/a", tid).expect("attach"));
    hierarchy.housekeeping();
    let fh = world.open("/b/tasks").expect("open");
    thread::scope(|scope| {
        let mut locked = hierarchy.lock();
        sets(&world, &asked, task, &[0, 1]);
        let looks = scope.spawn(|| hierarchy.listen());
        let end = Instant::now() + Duration::from_secs(20);
        while !asked.lock().expect("whole").is_empty() {
            assert!(Instant::now() < end, "nobody takes what is told");
            thread::yield_now();
        }
        let moved = world.vfs.write(&mut locked, fh, task.to_string().as_bytes(), crate::world::root(), &|| ());
        moved.expect("attach");
        drop(locked);
        looks.join().expect("no panic");
    });
    let has = |world: &World| world.machine.mask(task).to_string();
    assert_eq!(has(&world), "0-1", "what it has asked for");
    world.machine.pass(Duration::from_millis(1500));
    hierarchy.housekeeping();
    assert_eq!(has(&world), "0-1");
    world.vfs.release(fh);
}
