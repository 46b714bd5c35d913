//! What other copies of this program do: workloads, the last member of a group, a fork bomb.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::setsid;

use crate::children::{Killed, myself};
use crate::forks::{fork_and_wait, fork_bomb};

/// First arguments of the roles.
const WORK: &str = "--work";
const BOMB: &str = "--bomb";
const BOMB_INIT: &str = "--bomb-init";

/// Processes of a bomb that never exit.
const SEEDS: usize = 100;

/// Stacks of threads that do nothing.
const STACK: usize = 64 * 1024;

/// Runs the role this process was started for, if any.
pub(crate) fn play(args: &[String]) -> Option<io::Result<()>> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [WORK] => Some(work()),
        [BOMB, uid, limit] => Some(uid.parse().map_err(io::Error::other).and_then(|uid| bomb(uid, limit))),
        [BOMB_INIT, limit] => Some(limit.parse().map_err(io::Error::other).and_then(bomb_init)),
        _ => None,
    }
}

/// Nanoseconds of the monotonic clock, the same in all processes.
pub(crate) fn now() -> io::Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// What a worker can be told to do, a number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A fork, an exit, and waiting for it.
    Fork,
    /// A thread created and joined.
    Thread,
    /// make(1) or sh(1), whatever the file in the working directory says.
    Make,
}

impl Job {
    const ALL: [(&str, Job); 3] = [("fork", Job::Fork), ("thread", Job::Thread), ("make", Job::Make)];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, job)| *job == self).map_or("", |(name, _)| name)
    }

    fn once(self) -> io::Result<()> {
        match self {
            Job::Fork => fork_and_wait(),
            Job::Thread => {
                let thread = thread::Builder::new().stack_size(STACK).spawn(|| ())?;
                thread.join().map_err(|_| io::Error::other("a thread has panicked"))
            }
            Job::Make => {
                let run = |program: &str, args: &[&str]| Command::new(program).args(args).stdin(Stdio::null()).status();
                let status = match run("make", &["-s", "-j2", "-f", "load.mk"]) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => run("sh", &["load.sh"]),
                    status => status,
                }?;
                if status.success() { Ok(()) } else { Err(io::Error::other(format!("make: {status}"))) }
            }
        }
    }
}

/// Reads orders `JOB NUMBER` and answers with nanoseconds; says when it ends.
fn work() -> io::Result<()> {
    println!("ready");
    for order in io::stdin().lines() {
        let order = order?;
        let (job, times) = order.split_once(' ').unwrap_or_default();
        let job = Job::ALL.into_iter().find(|(name, _)| *name == job).ok_or(io::ErrorKind::InvalidInput)?.1;
        let times: usize = times.parse().map_err(io::Error::other)?;
        let start = Instant::now();
        (0..times).try_for_each(|_| job.once())?;
        println!("{}", start.elapsed().as_nanos());
    }
    println!("{}", now()?);
    io::stdout().flush()
}

/// A process that works when told, and does nothing else.
pub(crate) struct Worker {
    process: Killed,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one as a user, or as ourselves, in a directory.
    pub(crate) fn new(program: &Path, uid: Option<u32>, dir: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        as_user(&mut command, uid).arg(WORK).current_dir(dir);
        let (process, orders, answers) = talk(&mut command)?;
        let mut worker = Self { process, orders: Some(orders), answers };
        match worker.answer()?.as_str() {
            "ready" => Ok(worker),
            other => Err(io::Error::other(format!("a worker says {other:?}"))),
        }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().into())
    }

    fn time(&mut self) -> io::Result<i64> {
        self.answer()?.parse().map_err(|_| io::Error::other("a worker has died"))
    }

    /// Has it do a job so many times; how long that took.
    pub(crate) fn run(&mut self, job: Job, times: usize) -> io::Result<Duration> {
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(orders, "{} {times}", job.name())?;
        Ok(Duration::from_nanos(self.time()?.unsigned_abs()))
    }

    /// How often it does a job in that time.
    pub(crate) fn calibrate(&mut self, job: Job, time: Duration) -> io::Result<usize> {
        let mut times = 1;
        loop {
            let spent = self.run(job, times)?;
            if spent * 4 >= time {
                return Ok(((times as f64 * time.as_secs_f64() / spent.as_secs_f64()) as usize).max(1));
            }
            times *= 2;
        }
    }

    /// Has it exit; the time of the monotonic clock right before.
    pub(crate) fn end(mut self) -> io::Result<i64> {
        self.orders = None;
        self.time()
    }
}

/// Starts a child that we talk with through its standard input and output.
fn talk(command: &mut Command) -> io::Result<(Killed, ChildStdin, BufReader<ChildStdout>)> {
    let mut process = Killed::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    match (process.0.stdin.take(), process.0.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok((process, stdin, BufReader::new(stdout))),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Has a program run as a user, if it is given.
pub(crate) fn as_user(command: &mut Command, uid: Option<u32>) -> &mut Command {
    match uid {
        Some(uid) => command.gid(uid).uid(uid),
        None => command,
    }
}

/// A fork bomb in a pid namespace of its own: whatever it has become, it ends with its first process, and that with us.
pub(crate) struct Bomb {
    _guard: Killed,
    fuse: ChildStdin,
    /// Its first process.
    pub(crate) pid: i32,
}

impl Bomb {
    /// One that is not burning yet.
    pub(crate) fn new(program: &Path, uid: u32, limit: usize) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(BOMB).arg(uid.to_string()).arg(limit.to_string());
        let (guard, fuse, mut answers) = talk(&mut command)?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let pid = line.trim().parse().map_err(|_| io::Error::other("no fork bomb"))?;
        Ok(Self { _guard: guard, fuse, pid })
    }

    /// Lights it.
    pub(crate) fn light(&mut self) -> io::Result<()> {
        writeln!(self.fuse)
    }
}

fn bomb(uid: u32, limit: &str) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut init = Killed::start(as_user(&mut myself()?, Some(uid)).args([BOMB_INIT, limit]))?;
    println!("{}", init.pid());
    init.0.wait().map(drop)
}

fn bomb_init(limit: u64) -> io::Result<()> {
    // Of another login, which the scheduler shares the CPUs with by session.
    setsid()?;
    setrlimit(Resource::RLIMIT_NPROC, limit, limit)?;
    match io::stdin().read_line(&mut String::new())? {
        0 => Ok(()),
        _ => fork_bomb(SEEDS),
    }
}
