//! Runs a script on both hierarchies and tells the first difference.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use super::common::{self, KernelCpuset, Mount, OursSub};
use super::step::{Outcome, Step};
use super::world;

/// A script.
pub struct Script {
    /// The test's name.
    pub name: &'static str,
    /// Whether the group must have no siblings, since it becomes exclusive.
    pub alone: bool,
    /// What is done.
    pub steps: Vec<Step>,
}

/// Runs the script on both sides and panics at the first difference. Where the kernel has no
/// such hierarchy, ours still has to give what the steps expect.
pub fn check(script: &Script) {
    if !common::is_root() {
        return common::skipped(script.name, "some steps are another user's");
    }
    let kernel = kernel(script);
    let ours = ours(&mount(), script);
    if std::env::var_os("CGFUSE_PARITY_SHOW").is_some() {
        eprintln!("{}", report(&script.steps, &ours, ours.len() - 1, "all"));
    }
    let found = difference(&script.steps, kernel.as_deref(), &ours);
    let found = found.or_else(|| unexpected(&script.steps, &ours));
    assert!(found.is_none(), "{}: {}", script.name, found.unwrap_or_default());
}

/// Runs the script at the root of our own hierarchy, where nobody may play with the kernel's.
pub fn check_root(name: &str, steps: &[Step]) {
    if !common::is_root() {
        return common::skipped(name, "some steps are another user's");
    }
    let mount = Mount::with_options("cpuset");
    let ours = world::run(mount.dir(), steps);
    let found = unexpected(steps, &ours);
    assert!(found.is_none(), "{name}: {}", found.unwrap_or_default());
}

/// Our file system, or None with CGFUSE_PARITY_ORACLE=1: the kernel is compared with itself,
/// which tells a script with a race in it from a difference.
pub fn mount() -> Option<Arc<Mount>> {
    let oracle_only = std::env::var_os("CGFUSE_PARITY_ORACLE").is_some();
    (!oracle_only).then(|| Arc::new(Mount::with_options("cpuset")))
}

/// The outcomes on the kernel's hierarchy.
pub fn kernel(script: &Script) -> Option<Vec<Outcome>> {
    let group = if script.alone { KernelCpuset::alone() } else { KernelCpuset::new() };
    group.map(|group| world::run(group.dir(), &script.steps))
}

/// The outcomes on our file system.
pub fn ours(mount: &Option<Arc<Mount>>, script: &Script) -> Vec<Outcome> {
    match mount {
        Some(mount) => world::run(OursSub::below(mount).dir(), &script.steps),
        None => kernel(script).unwrap_or_default(),
    }
}

/// The first step with different outcomes, with all that led to it, and the later ones (which
/// may be its consequences).
pub fn difference(steps: &[Step], kernel: Option<&[Outcome]>, ours: &[Outcome]) -> Option<String> {
    let kernel = kernel?;
    let mut differing = (0..ours.len()).filter(|&i| kernel[i] != ours[i]);
    let at = differing.next()?;
    let what = format!("kernel: {:?}\n    ours:   {:?}", kernel[at], ours[at]);
    let mut text = report(steps, ours, at, &what);
    for i in differing {
        let _ = writeln!(text, "later, step {i}: {:?}: kernel {:?}, ours {:?}", steps[i], kernel[i], ours[i]);
    }
    Some(text)
}

/// The first step that did not give what it names.
fn unexpected(steps: &[Step], ours: &[Outcome]) -> Option<String> {
    if !is_reference_machine() || ours.is_empty() {
        return None;
    }
    let differs = |i: &usize| steps[*i].expect.as_ref().is_some_and(|e| *e != ours[*i]);
    let at = (0..steps.len()).find(differs)?;
    let expected = steps[at].expect.as_ref().expect("compared");
    Some(report(steps, ours, at, &format!("expected: {expected:?}\n     got: {:?}", ours[at])))
}

/// The steps' expectations hold for the CPUs 0-1 and the node 0.
fn is_reference_machine() -> bool {
    let list = |path: &str| common::text(Path::new("/sys/devices/system").join(path));
    list("cpu/possible") == "0-1" && list("cpu/online") == "0-1" && list("node/possible") == "0"
}

fn report(steps: &[Step], outcomes: &[Outcome], at: usize, what: &str) -> String {
    let mut text = format!("step {at}: {:?}\n    {what}\nthe script up to there, with our outcomes:\n", steps[at]);
    for i in 0..=at {
        let _ = writeln!(text, "{i:4}  {:<60}  {:?}", format!("{:?}", steps[i]), outcomes[i]);
    }
    text
}
