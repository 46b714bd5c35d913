//! System layer: bpf(2), as far as a tracker needs it, and the reading end of a BPF ring buffer.

use super::shared::Words;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::{CStr, CString, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

// enum bpf_cmd
const BPF_MAP_CREATE: i32 = 0;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
/// enum bpf_attach_type
const BPF_TRACE_FEXIT: u32 = 25;

/// The programs call helpers that only these licences may.
const LICENCE: &CStr = c"Dual MIT/GPL";
/// Names of maps and programs have fewer bytes than this.
const BPF_OBJ_NAME_LEN: usize = 16;

/// One instruction (struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// The operation.
    pub code: u8,
    regs: u8,
    /// The distance of a memory access from its base, or of a jump from the next instruction.
    pub off: i16,
    /// A number.
    pub imm: i32,
}

impl Insn {
    /// An instruction with the numbers of its two registers.
    pub fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        let regs = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        Self { code, regs, off, imm }
    }

    /// The numbers of the two registers.
    pub fn registers(&self) -> (usize, usize) {
        let (low, high) = (usize::from(self.regs & 15), usize::from(self.regs >> 4));
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
    }
}

/// The members of union bpf_attr that BPF_MAP_CREATE looks at.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; BPF_OBJ_NAME_LEN],
}

/// Those of BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; BPF_OBJ_NAME_LEN],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Where a program is to run.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// At a raw tracepoint.
    Tracepoint(&'a str),
    /// Behind a function of the kernel (fexit), which its description of types knows under this number too. Linux 5.5; needs a kernel that may
    /// patch its functions (DYNAMIC_FTRACE_WITH_DIRECT_CALLS).
    Exit(&'a str, u32),
}

impl Place<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Tracepoint(name) | Self::Exit(name, _) => name,
        }
    }
}

/// Those of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
#[derive(Default)]
struct ObjGetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Those of BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

/// The beginning of struct bpf_map_info.
#[repr(C)]
#[derive(Default)]
struct BpfMapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; BPF_OBJ_NAME_LEN],
}

/// bpf(2). The result is a descriptor for most commands.
///
/// # Safety
/// `attr` must be laid out as the command wants it, and every address in it must be valid for what the command does with it.
unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than the given size of `attr`; for the addresses the caller answers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    Ok(Errno::result(result)? as i32)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with a descriptor that bpf(2) has just made, and that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<c_void>().addr() as u64
}

/// The name as bpf(2) wants it, cut where it is too long.
fn object_name(name: &str) -> [u8; BPF_OBJ_NAME_LEN] {
    let mut bytes = [0; BPF_OBJ_NAME_LEN];
    bytes.iter_mut().zip(name.bytes().take(BPF_OBJ_NAME_LEN - 1)).for_each(|(to, from)| *to = from);
    bytes
}

/// An error of bpf(2) that says what was tried.
fn explain(what: &str, error: &io::Error, more: &str) -> io::Error {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let hint = if errno == Errno::EPERM { " (needs CAP_BPF and CAP_PERFMON)" } else { "" };
    io::Error::new(error.kind(), format!("bpf: {what}: {}{hint}{more}", errno.desc()))
}

fn create(name: &str, mut attr: MapCreate) -> io::Result<OwnedFd> {
    attr.map_name = object_name(name);
    // SAFETY: the layout is that of the command, which follows no address.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) };
    fd.map(owned).map_err(|error| explain(&format!("BPF_MAP_CREATE of {name}"), &error, ""))
}

/// An array of values that can be mapped, all zero.
///
/// # Errors
/// Those of BPF_MAP_CREATE: EPERM, ENOMEM.
pub fn array(name: &str, value_size: usize, max_entries: usize) -> io::Result<OwnedFd> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (value_size, max_entries) = (value_size.try_into().map_err(too_large)?, max_entries.try_into().map_err(too_large)?);
    let attr =
        MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size, max_entries, map_flags: BPF_F_MMAPABLE, ..Default::default() };
    create(name, attr)
}

/// A ring buffer of `size` bytes: a power of two and a multiple of the page size.
///
/// # Errors
/// Those of BPF_MAP_CREATE: EPERM, EINVAL for another size, ENOMEM.
pub fn ring_buffer(name: &str, size: u32) -> io::Result<OwnedFd> {
    create(name, MapCreate { map_type: BPF_MAP_TYPE_RINGBUF, max_entries: size, ..Default::default() })
}

/// Loads a program for a place; bpftool(8) shows it under the last word of the place's name.
///
/// # Errors
/// Those of BPF_PROG_LOAD; if the verifier refuses the program, with the end of what it says.
pub fn load(place: Place<'_>, code: &[Insn]) -> io::Result<OwnedFd> {
    let name = place.name();
    let (prog_type, expected_attach_type, attach_btf_id) = match place {
        Place::Tracepoint(_) => (BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
        Place::Exit(_, id) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT, id),
    };
    let mut attr = ProgLoad {
        prog_type,
        expected_attach_type,
        attach_btf_id,
        insn_cnt: code.len() as u32,
        insns: address(code.as_ptr()),
        license: address(LICENCE.as_ptr()),
        prog_name: object_name(&format!("cgfuse_{}", name.rsplit('_').next().unwrap_or(name))),
        ..Default::default()
    };
    // SAFETY: the layout is that of the command; the code and the licence live until it returns, and it only reads them.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) };
    fd.map(owned).or_else(|error| {
        let mut log = vec![0; 1 << 20];
        if error.kind() != io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(libc::EACCES) {
            (attr.log_level, attr.log_size, attr.log_buf) = (1, log.len() as u32, address(log.as_mut_ptr()));
            // SAFETY: as above; the command writes at most `log_size` bytes to the log, which has them.
            if let Ok(fd) = unsafe { bpf(BPF_PROG_LOAD, &mut attr) } {
                return Ok(owned(fd));
            }
        }
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        log::debug!("verifier: {log}");
        let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("processed ")).collect();
        let more: String = lines[lines.len().saturating_sub(2)..].iter().map(|line| format!("; {line}")).collect();
        Err(explain(&format!("BPF_PROG_LOAD of {name}"), &error, &more))
    })
}

/// Lets a program run at the place that it was loaded for until the last copy of the descriptor is closed.
///
/// # Errors
/// Those of BPF_RAW_TRACEPOINT_OPEN: ENOENT for a tracepoint that there is not.
pub fn attach(program: &OwnedFd, place: Place<'_>) -> io::Result<OwnedFd> {
    let name = CString::new(place.name())?;
    let tracepoint = matches!(place, Place::Tracepoint(_)).then_some(&name);
    let mut attr = RawTracepointOpen {
        name: tracepoint.map_or(0, |name| address(name.as_ptr())),
        prog_fd: program.as_raw_fd().cast_unsigned(),
        pad: 0,
    };
    // SAFETY: the layout is that of the command; the name lives until it returns, and it only reads it.
    let fd = unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr) };
    fd.map(owned).map_err(|error| explain(&format!("BPF_RAW_TRACEPOINT_OPEN of {}", place.name()), &error, ""))
}

/// What a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Its name.
    pub name: String,
    /// The bytes of a value; 0 for a ring buffer.
    pub value_size: usize,
    /// The number of values; of a ring buffer, its bytes.
    pub max_entries: usize,
}

/// Asks what map a descriptor is.
///
/// # Errors
/// Those of BPF_OBJ_GET_INFO_BY_FD: EINVAL, or EBADF, if it is none.
pub fn map_info(map: impl AsFd) -> io::Result<MapInfo> {
    let mut info = BpfMapInfo::default();
    let info_len = size_of_val(&info) as u32;
    let mut attr = ObjGetInfo { bpf_fd: map.as_fd().as_raw_fd().cast_unsigned(), info_len, info: address(std::ptr::from_mut(&mut info)) };
    // SAFETY: the layout is that of the command, which writes at most `info_len` bytes to `info`, all of them numbers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map_err(|error| explain("BPF_OBJ_GET_INFO_BY_FD", &error, ""))?;
    let name = String::from_utf8_lossy(&info.name).trim_end_matches('\0').to_owned();
    Ok(MapInfo { name, value_size: info.value_size as usize, max_entries: info.max_entries as usize })
}

/// The reading end of a ring buffer whose records are words of 64 bits.
#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    /// One word: up to where it has been read.
    consumer: Words,
    written: Written,
}

impl Ring {
    const BUSY: u32 = 1 << 31;
    const DISCARD: u32 = 1 << 30;
    /// The bytes before a record: its length with the two bits above, and something of the kernel's.
    const HEADER: u64 = 8;

    /// Maps a ring buffer.
    ///
    /// # Errors
    /// Those of mmap(2), and EINVAL for what is no ring buffer.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let size = map_info(&map)?.max_entries;
        let written = Written::new(&map, size)?;
        Ok(Self { consumer: Words::shared(&map, 1)?, map, written })
    }

    /// Takes all words whose writing began before the call. It waits for those that are being written: records that are finished
    /// may stand behind one that is not.
    pub fn drain(&mut self, mut each: impl FnMut(u64)) {
        let end = self.written.end();
        let mut at = self.consumer[0].load(SeqCst);
        while at < end {
            let mut len = self.written.header(at);
            for round in 1_u32.. {
                if len & Self::BUSY == 0 {
                    break;
                }
                // The writer cannot be preempted, but the machine that its CPU is may be.
                if round.is_multiple_of(1000) {
                    std::thread::yield_now()
                } else {
                    std::hint::spin_loop()
                }
                len = self.written.header(at);
            }
            if len & Self::DISCARD == 0 {
                each(self.written.word(at + Self::HEADER));
            }
            at += (u64::from(len & !Self::DISCARD) + Self::HEADER).next_multiple_of(8);
            self.consumer[0].store(at, SeqCst);
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// What the kernel has written: a page with the position up to which it has, and the records, twice one behind the other.
#[derive(Debug)]
struct Written {
    memory: NonNull<c_void>,
    page: usize,
    /// The bytes of all records, a power of two.
    size: usize,
}

// SAFETY: the memory is only read, as atomic words.
unsafe impl Send for Written {}
// SAFETY: the same.
unsafe impl Sync for Written {}

impl Written {
    fn new(map: &OwnedFd, size: usize) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as usize;
        let len = NonZeroUsize::new(page + 2 * size).ok_or(Errno::EINVAL)?;
        let offset = page as libc::off_t;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, offset) }?;
        Ok(Self { memory, page, size })
    }

    fn end(&self) -> u64 {
        // SAFETY: the position is the first word of the mapping, which lives as long as `self`; the kernel writes it as a whole.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().cast()) }.load(SeqCst)
    }

    /// Where a position is; records begin at multiples of 8.
    fn at(&self, position: u64) -> NonNull<c_void> {
        let offset = self.page + (position as usize & (self.size - 1) & !7);
        // SAFETY: the offset is less than the page and the size, and the mapping has the size twice.
        unsafe { self.memory.byte_add(offset) }
    }

    fn header(&self, position: u64) -> u32 {
        // SAFETY: the pointer is inside the mapping, aligned to 8, and lives as long as `self`; the kernel writes a header as a whole.
        unsafe { AtomicU32::from_ptr(self.at(position).as_ptr().cast()) }.load(Acquire)
    }

    fn word(&self, position: u64) -> u64 {
        // SAFETY: as in `header`; nobody writes a record that is finished until it is consumed.
        unsafe { AtomicU64::from_ptr(self.at(position).as_ptr().cast()) }.load(Acquire)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference to it is left.
        let unmapped = unsafe { munmap(self.memory, self.page + 2 * self.size) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
