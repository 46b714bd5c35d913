//! The tables of control files: what every row must be.

use crate::fake::FakeMachine;
use crate::world::World;
use cgfuse::cgroup::FILES;
use cgfuse::controllers::{CftFlags, Cftype, SUBSYS, Show, Store, names};
use std::collections::{BTreeMap, BTreeSet};

/// Every file with its full name.
fn rows() -> Vec<(String, &'static Cftype)> {
    let core = FILES.iter().map(|cft| (cft.name.to_owned(), cft));
    core.chain(SUBSYS.iter().flat_map(|ss| ss.files.iter().map(|cft| (format!("{}.{}", ss.name, cft.name), cft)))).collect()
}

#[test]
fn names_are_unique_and_plain() {
    let rows = rows();
    let unique: BTreeSet<_> = rows.iter().map(|(name, _)| name).collect();
    assert_eq!(unique.len(), rows.len());
    assert_eq!(names().collect::<BTreeSet<_>>().len(), SUBSYS.len());
    let plain = |name: &str| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._".contains(&c));
    for (name, cft) in &rows {
        assert!(!cft.name.is_empty() && plain(name), "{name}");
        assert!(SUBSYS.iter().all(|ss| !cft.name.starts_with(ss.name)), "{name}: the prefix comes from the controller");
    }
    assert!(rows.len() < 255, "a group's inodes have room for no more");
}

#[test]
fn names_are_unique_without_prefixes_too() {
    let bare: BTreeSet<_> = rows().iter().map(|(_, cft)| cft.name).collect();
    assert_eq!(bare.len(), rows().len());
}

#[test]
fn rows_are_sane() {
    let machine = FakeMachine::new(4096, 8);
    for (name, cft) in rows() {
        assert_ne!(cft.flags, CftFlags::all(), "{name} is nowhere");
        let writable = !matches!(cft.store, Store::None);
        assert_eq!(cft.mode(), if writable { 0o644 } else { 0o444 }, "{name}");
        assert!((4095..=1 << 17).contains(&(cft.max_write)(&machine)), "{name}");
        match (cft.show, cft.store) {
            (Show::Members(shown), Store::Attach(taken)) => assert_eq!(shown, taken, "{name}"),
            (Show::Members(_), _) | (_, Store::Attach(_)) => panic!("{name} is half a membership file"),
            _ => {}
        }
    }
}

/// SEMANTICS.md's list: name, mode, limit, in the root only.
#[test]
fn the_files_are_those_of_the_kernel() {
    let machine = FakeMachine::new(2, 1);
    let want = [
        ("tasks", 0o644, 4096, false),
        ("cgroup.procs", 0o644, 4096, false),
        ("cgroup.clone_children", 0o644, 4096, false),
        ("notify_on_release", 0o644, 4096, false),
        ("cgroup.sane_behavior", 0o444, 4096, true),
        ("release_agent", 0o644, 4095, true),
        ("cgfuse.stat", 0o444, 4096, true),
        ("cpuset.cpus", 0o644, 1636, false),
        ("cpuset.mems", 0o644, 6244, false),
        ("cpuset.cpu_exclusive", 0o644, 4096, false),
        ("cpuset.mem_exclusive", 0o644, 4096, false),
        ("cpuset.mem_hardwall", 0o644, 4096, false),
        ("cpuset.memory_migrate", 0o644, 4096, false),
        ("cpuset.memory_spread_page", 0o644, 4096, false),
        ("cpuset.memory_spread_slab", 0o644, 4096, false),
        ("cpuset.sched_load_balance", 0o644, 4096, false),
        ("cpuset.sched_relax_domain_level", 0o644, 4096, false),
        ("cpuset.effective_cpus", 0o444, 4096, false),
        ("cpuset.effective_mems", 0o444, 4096, false),
        ("cpuset.memory_pressure", 0o444, 4096, false),
        ("cpuset.memory_pressure_enabled", 0o644, 4096, true),
    ];
    let row = |cft: &Cftype| (cft.mode(), (cft.max_write)(&machine), cft.flags.contains(CftFlags::ONLY_ON_ROOT));
    let have: BTreeMap<_, _> = rows().into_iter().map(|(name, cft)| (name, row(cft))).collect();
    let want: BTreeMap<_, _> = want.into_iter().map(|(name, mode, max, root)| (name.to_owned(), (mode, max, root))).collect();
    for (name, row) in &want {
        assert_eq!(have.get(name), Some(row), "{name}");
    }
}

#[test]
fn every_file_is_where_its_row_says() {
    let world = World::with(2, 1);
    world.mkdir("/a").expect("mkdir");
    for (name, cft) in rows() {
        for (group, is_root) in [("", true), ("/a", false)] {
            let text = world.read(&format!("{group}/{name}"));
            assert_eq!(text.is_ok(), cft.is_in(is_root), "{group}/{name}");
            let lines = text.is_ok_and(|text| {
                text.ends_with('\n') || (matches!(cft.show, Show::Members(_)) || name == "ns.effective") && text.is_empty()
            });
            assert_eq!(lines, cft.is_in(is_root), "{group}/{name}");
        }
    }
}

#[test]
fn every_file_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/doc/SEMANTICS.md");
    let text = std::fs::read_to_string(path).expect("doc/SEMANTICS.md");
    let mentions = |name: &str| {
        let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        text.split(|c| !part_of_name(c)).any(|word| word.trim_matches('.') == name)
    };
    let missing: Vec<_> = rows().into_iter().map(|(name, _)| name).filter(|name| !mentions(name)).collect();
    assert!(missing.is_empty(), "doc/SEMANTICS.md says nothing of {missing:?}");
}
