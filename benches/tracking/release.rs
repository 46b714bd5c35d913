//! How long after the last member's exit the release agent starts, ours and the kernel's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::Run;
use crate::report::Time;
use crate::roles::{Worker, now};
use crate::server::{BackEnd, Server, beat};
use crate::table::{Row, Sorted, Tables};

/// Names of the agent and, beside it, of the FIFO that it writes to.
const AGENT: &str = "agent";
const TIMES: &str = "times";

/// How long to wait for an agent.
const PATIENCE: u16 = 3000;

/// If this process is the release agent: says when it was started.
pub(crate) fn play_agent() -> Option<ExitCode> {
    let name = PathBuf::from(std::env::args_os().next()?);
    if name.file_name()? != AGENT {
        return None;
    }
    let told =
        now().and_then(|now| OpenOptions::new().write(true).open(name.with_file_name(TIMES))?.write_all(format!("{now}\n").as_bytes()));
    Some(if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The agent, and what it says.
struct Agent {
    dir: TempDir,
    times: File,
}

impl Agent {
    /// On the file system that the kernel sees as well.
    fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-agent-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        fs::copy(std::env::current_exe()?, dir.path().join(AGENT))?;
        let fifo = dir.path().join(TIMES);
        mkfifo(&fifo, Mode::empty())?;
        fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666))?;
        let times = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo)?;
        Ok(Self { dir, times })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(AGENT)
    }

    /// When agents have started, waiting for the first.
    fn times(&self, patience: u16) -> io::Result<Vec<i64>> {
        poll(&mut [PollFd::new(self.times.as_fd(), PollFlags::POLLIN)], PollTimeout::from(patience))?;
        let mut text = [0; 4096];
        let n = match (&self.times).read(&mut text) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            n => n?,
        };
        Ok(String::from_utf8_lossy(&text[..n]).lines().filter_map(|line| line.parse().ok()).collect())
    }
}

/// A hierarchy of the kernel without controllers, gone on drop.
struct Named {
    dir: TempDir,
    name: String,
}

/// Our hierarchies are called so, with our pid behind it.
const PREFIX: &str = "cgfuse-bench-";

impl Named {
    fn new(agent: &Path) -> io::Result<Self> {
        remove_stale_hierarchies()?;
        let named = Self::mounted(format!("{PREFIX}{}", std::process::id()))?;
        fs::write(named.dir.path().join("release_agent"), agent.as_os_str().as_bytes())?;
        fs::create_dir(named.group())?;
        fs::write(named.group().join("notify_on_release"), "1")?;
        Ok(named)
    }

    fn mounted(name: String) -> io::Result<Self> {
        let named = Self { dir: tempfile::Builder::new().prefix("bench-named-").tempdir()?, name };
        named.mount()?;
        Ok(named)
    }

    fn mount(&self) -> io::Result<()> {
        let options = format!("none,name={}", self.name);
        mount(Some("none"), self.dir.path(), Some("cgroup"), MsFlags::empty(), Some(options.as_str())).map_err(io::Error::from)
    }

    fn group(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    fn exists(&self) -> bool {
        hierarchies().is_ok_and(|names| names.contains(&self.name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.group());
        // One whose group dies while it is unmounted stays; it can be had again, and unmounted once more.
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(100));
            let _ = umount2(self.dir.path(), MntFlags::empty());
            let mut looks = (0..50).inspect(|_| thread::sleep(Duration::from_millis(10)));
            if looks.any(|_| !self.exists()) || self.mount().is_err() {
                return;
            }
        }
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
        eprintln!("the hierarchy {} is left behind", self.name);
    }
}

/// The names of the named hierarchies.
fn hierarchies() -> io::Result<Vec<String>> {
    let list = fs::read_to_string("/proc/self/cgroup")?;
    let name = |line: &str| line.split_once(":name=")?.1.split(':').next().map(str::to_owned);
    Ok(list.lines().filter_map(name).collect())
}

/// Removes what a benchmark that was killed has left behind.
fn remove_stale_hierarchies() -> io::Result<()> {
    for name in hierarchies()? {
        let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(Named::mounted(name)?);
        }
    }
    Ok(())
}

/// Latencies in nanoseconds.
#[derive(Default)]
struct Latencies {
    known: Vec<f64>,
    never: usize,
    twice: usize,
}

impl Latencies {
    /// A member comes, stays, and exits.
    fn sample(&mut self, run: &Run, agent: &Agent, uid: Option<u32>, group: &Path, stay: Duration) -> io::Result<()> {
        self.twice += agent.times(0)?.len();
        let worker = Worker::new(&run.stage.program(), uid, &run.stage.path(""))?;
        fs::write(group.join("cgroup.procs"), worker.pid().to_string())?;
        thread::sleep(stay);
        let exit = worker.end()?;
        match agent.times(PATIENCE)?[..] {
            [] => self.never += 1,
            [first, ref more @ ..] => {
                self.known.push((first - exit) as f64);
                self.twice += more.len();
            }
        }
        Ok(())
    }

    fn show(&self) -> String {
        let sorted = Sorted::new(self.known.clone());
        format!("median {}, p99 {}", Time(sorted.median()), Time(sorted.quantile(0.99)))
    }
}

/// The latencies, interleaved with the kernel's.
pub(crate) fn release(run: &Run, tables: &mut Tables) -> io::Result<()> {
    let agent = Agent::new()?;
    let named = Named::new(&agent.path()).inspect_err(|e| tables.remark(format!("skipped: the kernel's release agent: {e}"))).ok();
    for back_end in &run.back_ends {
        match compare(run, *back_end, &agent, named.as_ref(), tables) {
            Ok(row) => tables.push(back_end, row),
            Err(e) => tables.remark(format!("{back_end}: release agent: not measured: {e}")),
        }
    }
    Ok(())
}

fn compare(run: &Run, back_end: BackEnd, agent: &Agent, named: Option<&Named>, tables: &mut Tables) -> io::Result<Row> {
    let uid = back_end.uid(&run.stage);
    let server = Server::new(back_end, &run.stage, &format!(",release_agent={}", agent.path().display()))?;
    let group = server.group("r", "0-1")?;
    fs::write(group.join("notify_on_release"), "1")?;
    let (mut ours, mut kernels) = (Latencies::default(), Latencies::default());
    for i in 0..run.scale.releases {
        beat();
        // Whoever looks at regular intervals is met at any time of them.
        let stay = Duration::from_micros(20_000 + i as u64 * 7919 % 110_000);
        ours.sample(run, agent, uid, &group, stay)?;
        if let Some(named) = named {
            kernels.sample(run, agent, uid, &named.group(), stay / 10)?;
        }
    }
    for (whose, latencies) in [("ours", &ours), ("the kernel's", &kernels)] {
        if latencies.never + latencies.twice > 0 {
            let Latencies { never, twice, .. } = latencies;
            tables.remark(format!("{back_end}: of {} agents of {whose} {never} did not start, {twice} started twice", run.scale.releases));
        }
    }
    let floor = if named.is_some() { format!("kernel: {}", kernels.show()) } else { "-".into() };
    let ratio = Sorted::new(ours.known.clone()).median() / Sorted::new(kernels.known).median();
    let what = "from the last member's exit to the start of the release agent";
    let ratio = if ratio.is_nan() { "-".into() } else { format!("{ratio:.2}") };
    Ok(Row { floor, ratio, ..Row::figure(what, ours.show()) })
}
