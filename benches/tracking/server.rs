//! The back ends, and servers that use them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Gid, Pid, Uid, chown};

use crate::children::{Served, end_servers, threads};
use crate::roles::{Worker, as_user};
use crate::stage::Stage;
use crate::world::{control, put};

/// A source of events, and who runs the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackEnd {
    /// The value of the option `tracker`.
    pub(crate) tracker: &'static str,
    /// An ordinary user.
    pub(crate) user: bool,
}

/// All there are.
pub(crate) const BACK_ENDS: [BackEnd; 7] = [
    BackEnd { tracker: "bpf", user: false },
    BackEnd { tracker: "perf", user: false },
    BackEnd { tracker: "netlink", user: false },
    BackEnd { tracker: "scan", user: false },
    BackEnd { tracker: "perf", user: true },
    BackEnd { tracker: "netlink", user: true },
    BackEnd { tracker: "scan", user: true },
];

impl Display for BackEnd {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}, as {}", self.tracker, if self.user { "an ordinary user" } else { "root" })
    }
}

impl BackEnd {
    /// The user that its server and members run as.
    pub(crate) fn uid(self, stage: &Stage) -> Option<u32> {
        self.user.then_some(stage.uid)
    }

    /// Whether it works here: serves, is the one asked for, and moves a process.
    pub(crate) fn try_out(self, stage: &Stage) -> io::Result<()> {
        let server = Server::new(self, stage, "")?;
        let said = server.stat("tracker")?;
        if said != self.tracker {
            return Err(io::Error::other(format!("the server uses {said}")));
        }
        let worker = Worker::new(&stage.program(), self.uid(stage), &std::env::temp_dir())?;
        server.group("try", "0-1")?;
        server.enter("try", worker.pid())?;
        server.check("try", worker.pid())
    }
}

/// A server with a back end.
pub(crate) struct Server(Served);

impl Deref for Server {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Server {
    /// Starts one, with more options.
    pub(crate) fn new(back_end: BackEnd, stage: &Stage, options: &str) -> io::Result<Self> {
        let uid = back_end.uid(stage);
        Served::start(back_end.tracker, |dir| {
            if let Some(uid) = uid {
                chown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
            }
            let mut command = Command::new(stage.server());
            as_user(&mut command, uid).arg("mount").arg(dir).args(["-f", "-o"]).env("RUST_LOG", "error");
            let allow = if back_end.user { ",allow_other" } else { "" };
            command.arg(format!("cpuset,tracker={}{allow}{options}", back_end.tracker));
            Ok(command)
        })
        .map(Self)
    }

    /// The path of a file or group.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Makes a group with those CPUs.
    pub(crate) fn group(&self, name: &str, cpus: &str) -> io::Result<PathBuf> {
        let group = self.path(name);
        fs::create_dir(&group)?;
        put(&control(&group, "cpuset.cpus")?, cpus.as_bytes())?;
        put(&control(&group, "cpuset.mems")?, b"0")?;
        Ok(group)
    }

    /// Moves a process to a group.
    pub(crate) fn enter(&self, group: &str, pid: i32) -> io::Result<()> {
        put(&control(&self.path(group), "cgroup.procs")?, pid.to_string().as_bytes())
    }

    /// The members of a group.
    pub(crate) fn members(&self, group: &str) -> io::Result<Vec<i32>> {
        Ok(fs::read_to_string(self.path(group).join("tasks"))?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Whether a task is a member.
    pub(crate) fn check(&self, group: &str, tid: i32) -> io::Result<()> {
        let members = self.members(group)?;
        if members.contains(&tid) { Ok(()) } else { Err(io::Error::other(format!("{tid} is not among {members:?}"))) }
    }

    /// A value of `cgfuse.stat`.
    pub(crate) fn stat(&self, key: &str) -> io::Result<String> {
        let text = fs::read_to_string(self.path("cgfuse.stat"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.map(str::to_owned).ok_or_else(|| io::Error::other(format!("cgfuse.stat has no {key}: {text:?}")))
    }

    /// What `cgfuse.stat` says.
    pub(crate) fn stats(&self) -> String {
        fs::read_to_string(self.path("cgfuse.stat")).unwrap_or_default().trim_end().replace('\n', ", ")
    }

    /// The CPU time the server has used.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        Ok(clock_gettime(clock_getcpuclockid(Pid::from_raw(self.pid()))?)?.into())
    }

    /// How often each thread of the server has gone to sleep, with its name.
    pub(crate) fn sleeps(&self) -> io::Result<Vec<(String, u64)>> {
        let of = |tid: i32| -> io::Result<(String, u64)> {
            let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid()))?;
            let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
            let count = value("voluntary_ctxt_switches").and_then(|n| n.parse().ok()).unwrap_or(0);
            Ok((format!("{} {tid}", value("Name").unwrap_or("?")), count))
        };
        threads(self.pid())?.into_iter().map(of).collect()
    }
}

/// When something was last known to go on.
static BEAT: Mutex<Option<Instant>> = Mutex::new(None);

/// Nothing may take longer.
const STUCK: Duration = Duration::from_secs(120);

/// Something goes on.
pub(crate) fn beat() {
    *BEAT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// Ends all servers when nothing goes on any more, so that whoever waits for one gets an error.
pub(crate) fn watch() {
    beat();
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_secs(5));
            if BEAT.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|beat| beat.elapsed() > STUCK) {
                eprintln!("nothing has gone on for {STUCK:?}: all servers are ended");
                end_servers();
                beat();
            }
        }
    });
}
