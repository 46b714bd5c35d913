//! Namespaces: the process that holds a group's.
//!
//! A process of our own program is started, enters what there is, makes what is new, and forks a child that becomes a program of some
//! hundred bytes: it waits for the end of its standard input, which lasts as long as the server has the other end. As the init of a pid
//! namespace it goes on until it is alone there, since its death would be everybody's.
//!
//! A process of its own, because setns(2) into a user namespace wants to be alone, and because a server's threads and namespaces are
//! its own.

use super::Ns;
use crate::inject::Namespace;
use crate::sys::process::{self, Fork};
use crate::sys::{Errno, Tid, nsfs, ptrace};
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, send, sendmsg, setsockopt, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setsid, write};
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// The first argument that makes the program a holder: `main` then calls [`main`] and nothing else.
pub const HOLDER_ARG: &str = "--holder";

/// How long its birth may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a holder is to be in.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Existing namespaces to enter.
    pub enter: Vec<Ns>,
    /// Kinds to make anew.
    pub new: Vec<Namespace>,
}

/// What failed: the step, and its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {errno}")]
pub struct HolderError {
    /// Which.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

/// The steps of a holder's birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum Step {
    #[error("starting a process")]
    Start,
    #[error("entering a namespace (setns)")]
    Enter,
    #[error("making a user namespace (unshare; see user.max_user_namespaces)")]
    User,
    #[error("writing the maps of a user namespace")]
    Maps,
    #[error("making namespaces (unshare; who is not root needs ns.user first)")]
    Unshare,
    #[error("forking in a pid namespace; is its init dead?")]
    Fork,
    #[error("executing the holder")]
    Exec,
}

impl Step {
    const ALL: [Self; 7] = [Self::Start, Self::Enter, Self::User, Self::Maps, Self::Unshare, Self::Fork, Self::Exec];
}

/// A process that is in a group's namespaces, and does nothing. It ends when this is dropped.
#[derive(Debug)]
pub struct Holder {
    /// Its pid, as the server sees it.
    pub pid: Tid,
    /// The same as a descriptor.
    pub pidfd: std::sync::Arc<OwnedFd>,
    /// Its standard input has the other end.
    _alive: OwnedFd,
}

// What the two say to each other: one byte of these, and what belongs to it.
const MAPS: u8 = b'm';
const CHILD: u8 = b'c';
const FAILED: u8 = b'f';

fn failed(step: Step) -> impl Fn(Errno) -> HolderError {
    move |errno| HolderError { step, errno }
}

fn raw(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The CLONE_ flag of a kind.
#[must_use]
pub fn flag(kind: Namespace) -> CloneFlags {
    match kind {
        Namespace::Mnt => CloneFlags::CLONE_NEWNS,
        Namespace::Uts => CloneFlags::CLONE_NEWUTS,
        Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
        Namespace::Net => CloneFlags::CLONE_NEWNET,
        Namespace::User => CloneFlags::CLONE_NEWUSER,
        Namespace::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Namespace::PidForChildren => CloneFlags::CLONE_NEWPID,
        Namespace::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
    }
}

impl Holder {
    /// Starts a holder; `program` is one whose `main` heeds [`HOLDER_ARG`].
    ///
    /// # Errors
    /// The step that failed, with its errno.
    pub fn new(program: &std::path::Path, wanted: &Wanted) -> Result<Self, HolderError> {
        let start = failed(Step::Start);
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(&start)?;
        setsockopt(&ours, PassCred, &true).map_err(&start)?;
        let (stdin, alive) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(&start)?;
        let mut helper =
            Command::new(program).arg(HOLDER_ARG).current_dir("/").env_clear().stdin(theirs).spawn().map_err(|error| start(raw(error)))?;
        let born = wanted.send(&ours, &stdin).map_err(&start).and_then(|()| {
            drop(stdin);
            attend(&ours, helper.id().cast_signed(), wanted)
        });
        if born.is_err() {
            let _ = helper.kill();
        }
        let _ = helper.wait();
        let (pid, pidfd) = born?;
        Ok(Self { pid, pidfd: pidfd.into(), _alive: alive })
    }
}

impl Holder {
    /// Whether it lives: its user may kill it, and so does the end of a pid namespace that it is in.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }
}

impl Wanted {
    /// One message: the new kinds, and the descriptors of what is to be entered behind the standard input.
    fn send(&self, socket: &OwnedFd, stdin: &OwnedFd) -> Result<(), Errno> {
        let new = self.new.iter().map(|kind| flag(*kind)).collect::<CloneFlags>();
        let fds: Vec<RawFd> = std::iter::once(stdin.as_raw_fd()).chain(self.enter.iter().map(|ns| ns.file().as_raw_fd())).collect();
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&new.bits().to_ne_bytes())],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map(drop)
    }
}

/// Serves the helper until its child executes the holder, which closes the socket's other end.
fn attend(socket: &OwnedFd, helper: Tid, wanted: &Wanted) -> Result<(Tid, OwnedFd), HolderError> {
    let start = failed(Step::Start);
    let mut child = None;
    let mut maps = wanted.new.contains(&Namespace::User);
    let mut buffer = [0; 16];
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).map_err(|_| start(Errno::EINVAL))?;
        if poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout).map_err(&start)? == 0 {
            return Err(start(Errno::ETIMEDOUT));
        }
        let received = ptrace::receive_from(socket, &mut buffer).map_err(|error| start(raw(error)))?;
        let sender = received.as_ref().map_or(0, |(_, _, sender)| *sender);
        match received.map(|(len, ..)| &buffer[..len]) {
            Some([MAPS]) if std::mem::take(&mut maps) => {
                write_maps(helper).map_err(failed(Step::Maps))?;
                send(socket.as_raw_fd(), &[MAPS], MsgFlags::MSG_NOSIGNAL).map_err(&start)?;
            }
            Some([CHILD]) => {
                // It waits for our answer, so it is the one.
                child = Some((sender, super::pidfd_open(sender).map_err(&start)?));
                send(socket.as_raw_fd(), &[CHILD], MsgFlags::MSG_NOSIGNAL).map_err(&start)?;
            }
            Some([FAILED, step, errno @ ..]) => {
                let step = Step::ALL.get(usize::from(*step)).copied().unwrap_or(Step::Start);
                let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
                return Err(HolderError { step, errno: Errno::from_raw(errno) });
            }
            Some(_) => return Err(start(Errno::EPROTO)),
            None => return child.ok_or(start(Errno::ECHILD)),
        }
    }
}

/// Ids are themselves: all of them where we may, else our own two.
fn write_maps(helper: Tid) -> Result<(), Errno> {
    let put = |file: &str, text: &str| fs::write(format!("/proc/{helper}/{file}"), text).map_err(raw);
    let all = "0 0 4294967295\n";
    match put("uid_map", all) {
        Ok(()) => put("gid_map", all),
        Err(_) => map_two((Uid::effective().as_raw(), Gid::effective().as_raw()), put),
    }
}

fn map_two((uid, gid): (u32, u32), put: impl Fn(&str, &str) -> Result<(), Errno>) -> Result<(), Errno> {
    put("setgroups", "deny")?;
    put("uid_map", &format!("{uid} {uid} 1\n"))?;
    put("gid_map", &format!("{gid} {gid} 1\n"))
}

/// The helper process.
#[must_use]
pub fn main() -> ExitCode {
    let socket = io::stdin();
    match prepare(socket.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(HolderError { step, errno }) => {
            tell(socket.as_fd(), &[&[FAILED, step as u8], &(errno as i32).to_ne_bytes()[..]].concat());
            ExitCode::FAILURE
        }
    }
}

fn tell(socket: BorrowedFd<'_>, message: &[u8]) {
    let _ = send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL);
}

/// Says something and waits for the answer.
fn ask(socket: BorrowedFd<'_>, message: u8) -> Result<(), Errno> {
    tell(socket, &[message]);
    match ptrace::receive(socket, &mut [0]) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Errno::EPIPE),
        Err(error) => Err(raw(error)),
    }
}

fn prepare(socket: BorrowedFd<'_>) -> Result<(), HolderError> {
    let start = failed(Step::Start);
    let mut numbers = [0; 4];
    let (_, fds) = ptrace::receive(socket, &mut numbers).map_err(|error| start(raw(error)))?.ok_or(start(Errno::EPIPE))?;
    let mut fds = fds.into_iter();
    let stdin = fds.next().ok_or(start(Errno::EPROTO))?;
    // /proc may be another one, or none, in what is entered.
    let mut alone = process::Alone::new().map_err(|error| start(raw(error)))?;
    let new = CloneFlags::from_bits_retain(i32::from_ne_bytes(numbers));
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(&start)?;
    let program = program(new.contains(CloneFlags::CLONE_NEWPID)).map_err(&start)?;
    let proc = open("/proc/self", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(&start)?;
    // A user namespace comes last: in it, we have no rights over what belongs to others.
    let (user, mut others): (Vec<OwnedFd>, Vec<OwnedFd>) = fds.partition(|ns| nsfs::kind(ns) == Ok(libc::CLONE_NEWUSER));
    let in_user = !user.is_empty();
    let in_pid = others.iter().any(|ns| nsfs::kind(ns) == Ok(libc::CLONE_NEWPID));
    others.extend(user);
    enter(others).map_err(failed(Step::Enter))?;
    if new.contains(CloneFlags::CLONE_NEWUSER) {
        let own = (Uid::effective().as_raw(), Gid::effective().as_raw());
        unshare(CloneFlags::CLONE_NEWUSER).map_err(failed(Step::User))?;
        // Only from here and from the user namespace above.
        let put = |file: &str, text: &str| {
            let file = openat(&proc, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            write(&file, text.as_bytes()).map(drop)
        };
        let mapped = if in_user { map_two(own, put) } else { ask(socket, MAPS) };
        mapped.map_err(failed(Step::Maps))?;
    }
    let fork = |alone: &mut process::Alone| alone.fork().map_err(|error| failed(Step::Fork)(raw(error)));
    unshare(new - CloneFlags::CLONE_NEWUSER - CloneFlags::CLONE_NEWPID).map_err(failed(Step::Unshare))?;
    if new.contains(CloneFlags::CLONE_NEWPID) {
        // Only who is in a pid namespace himself can make one below it.
        if in_pid && fork(&mut alone)? != Fork::Child {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWPID).map_err(failed(Step::Unshare))?;
    }
    // Whoever is its parent from now on reaps it.
    if fork(&mut alone)? == Fork::Child {
        ask(socket, CHILD).map_err(start)?;
        become_holder(socket, &stdin, &null, &program).map_err(failed(Step::Exec))?;
    }
    Ok(())
}

/// In this order, as far as that is possible: where our rights are in a user namespace, that comes first.
fn enter(mut left: Vec<OwnedFd>) -> Result<(), Errno> {
    while !left.is_empty() {
        let before = left.len();
        let mut refused = Ok(());
        left.retain(|ns| match setns(ns, CloneFlags::empty()) {
            Ok(()) => false,
            Err(errno) => {
                refused = Err(errno);
                true
            }
        });
        if left.len() == before {
            return refused;
        }
    }
    Ok(())
}

/// In the child. Without capabilities, whoever has as few may enter its namespaces too; and orphans that it gets are reaped by themselves.
fn become_holder(socket: BorrowedFd<'_>, stdin: &OwnedFd, null: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    // Until the program is executed.
    let report = socket.try_clone_to_owned().map_err(raw)?;
    let done = setsid().and_then(|_| {
        process::ignore_children()?;
        dup2_stdin(stdin)?;
        dup2_stdout(null)?;
        dup2_stderr(null)?;
        process::execute_without_capabilities(program)
    });
    if let Err(errno) = done {
        tell(report.as_fd(), &[&[FAILED, Step::Exec as u8], &(errno as i32).to_ne_bytes()[..]].concat());
    }
    process::exit_at_once(1)
}

/// The holder's program, as a file.
fn program(is_init: bool) -> Result<OwnedFd, Errno> {
    let file = memfd_create(c"cgfuse-holder", MFdFlags::MFD_CLOEXEC)?;
    let image = image(is_init);
    match write(&file, &image)? {
        len if len == image.len() => Ok(file),
        _ => Err(Errno::EIO),
    }
}

/// An ELF file of one segment.
fn image(is_init: bool) -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let code = code(is_init);
    let len = HEADERS + code.len() as u64;
    let mut image = Vec::new();
    // e_ident: 64 bits, this machine's byte order.
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    image.extend([0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // ET_EXEC, the machine.
    image.extend([2_u16, MACHINE].map(u16::to_ne_bytes).as_flattened());
    image.extend(1_u32.to_ne_bytes());
    // Entry, program headers, no section headers.
    image.extend([ADDRESS + HEADERS, 64, 0].map(u64::to_ne_bytes).as_flattened());
    image.extend(0_u32.to_ne_bytes());
    image.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_ne_bytes).as_flattened());
    // PT_LOAD, readable and executable; the whole file.
    image.extend([1_u32, 5].map(u32::to_ne_bytes).as_flattened());
    image.extend([0, ADDRESS, ADDRESS, len, len, 0x1000].map(u64::to_ne_bytes).as_flattened());
    image.extend(code);
    image
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// ```text
/// start: n = read(0, stack, 1); if (n > 0 || n == -EINTR) goto start;
/// alone: if (kill(-1, 0) == -ESRCH) goto exit; nanosleep(1 s); goto alone;      (an init only)
/// exit:  exit_group(0);
/// ```
#[cfg(target_arch = "x86_64")]
fn code(is_init: bool) -> Vec<u8> {
    let wait = [
        0x31, 0xff, // start: xor edi, edi
        0x48, 0x8d, 0x74, 0x24, 0xf8, // lea rsi, [rsp - 8]
        0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
        0x31, 0xc0, // xor eax, eax (read)
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x7f, 0xec, // jg start
        0x83, 0xf8, 0xfc, // cmp eax, -EINTR
        0x74, 0xe7, // je start
    ];
    let alone = [
        0x6a, 0xff, 0x5f, // alone: rdi = -1
        0x31, 0xf6, // xor esi, esi
        0xb8, 0x3e, 0x00, 0x00, 0x00, // mov eax, 62 (kill)
        0x0f, 0x05, // syscall
        0x83, 0xf8, 0xfd, // cmp eax, -ESRCH
        0x74, 0x14, // je exit
        0x6a, 0x00, 0x6a, 0x01, // push 0; push 1
        0x48, 0x89, 0xe7, // mov rdi, rsp
        0x31, 0xf6, // xor esi, esi
        0xb8, 0x23, 0x00, 0x00, 0x00, // mov eax, 35 (nanosleep)
        0x0f, 0x05, // syscall
        0x58, 0x58, // pop rax; pop rax
        0xeb, 0xdb, // jmp alone
    ];
    let exit = [0x31, 0xff, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0x0f, 0x05];
    [&wait[..], if is_init { &alone } else { &[] }, &exit].concat()
}

/// As for x86-64.
#[cfg(target_arch = "aarch64")]
fn code(is_init: bool) -> Vec<u8> {
    let wait: [u32; 9] = [
        0xd280_0000, // start: mov x0, #0
        0xd100_43e1, // sub x1, sp, #16
        0xd280_0022, // mov x2, #1
        0xd280_07e8, // mov x8, #63 (read)
        0xd400_0001, // svc #0
        0xf100_001f, // cmp x0, #0
        0x54ff_ff4c, // b.gt start
        0xb100_101f, // cmn x0, #4 (EINTR)
        0x54ff_ff00, // b.eq start
    ];
    let alone: [u32; 14] = [
        0x9280_0000, // alone: mov x0, #-1
        0xd280_0001, // mov x1, #0
        0xd280_1028, // mov x8, #129 (kill)
        0xd400_0001, // svc #0
        0xb100_0c1f, // cmn x0, #3 (ESRCH)
        0x5400_0120, // b.eq exit
        0xd280_0029, // mov x9, #1
        0xa9bf_7fe9, // stp x9, xzr, [sp, #-16]!
        0x9100_03e0, // mov x0, sp
        0xd280_0001, // mov x1, #0
        0xd280_0ca8, // mov x8, #101 (nanosleep)
        0xd400_0001, // svc #0
        0x9100_43ff, // add sp, sp, #16
        0x17ff_fff3, // b alone
    ];
    let exit: [u32; 3] = [0xd280_0000, 0xd280_0bc8, 0xd400_0001];
    let all = [&wait[..], if is_init { &alone } else { &[] }, &exit].concat();
    all.into_iter().flat_map(u32::to_le_bytes).collect()
}
