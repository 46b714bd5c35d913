//! Command line: which mount a directory is on, asked of the kernel and never of a file system's server, so that
//! the answer comes for dead mounts too.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::options::SUBTYPE;

/// A line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, unique while it lives and given to another one at once afterwards.
    pub id: u64,
    /// `major:minor`, which all mounts of one file system share.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type, `fuse.cgfuse` for ours.
    pub fstype: String,
}

impl Mount {
    /// Whether it is that mount as it was seen before. Its file system must be alive: until then nobody else has its device.
    pub fn is(&self, before: &Mount) -> bool {
        self.id == before.id && self.device == before.device
    }

    /// Whether it is one of ours.
    pub fn is_cgfuse(&self) -> bool {
        self.fstype.strip_prefix("fuse.") == Some(SUBTYPE)
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path without symbolic links.
    pub path: PathBuf,
    /// The uppermost mount whose root the path is; `None` if it is just a directory somewhere.
    pub mount: Option<Mount>,
}

/// Follows a path to its end without asking the file system there for anything.
pub fn locate(path: &Path) -> io::Result<Place> {
    place_of(&open(path)?)
}

/// Opens a path's end (O_PATH), in the same way.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Where an open directory is.
pub fn place_of(dir: &File) -> io::Result<Place> {
    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    let mount = mount_of(dir)?.filter(|mount| mount.point == path);
    Ok(Place { path, mount })
}

/// The mount that an open file is on; `None` if it is not in this mount namespace.
pub fn mount_of(file: &impl AsRawFd) -> io::Result<Option<Mount>> {
    let id = mount_id(&fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?)?;
    Ok(list()?.into_iter().find(|mount| mount.id == id))
}

fn mount_id(fdinfo: &str) -> io::Result<u64> {
    let number = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no mnt_id in /proc/self/fdinfo"))
}

/// All mounts of this mount namespace.
pub fn list() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /point options [optional...] - type source super`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let fstype = text(&unescape(fields.next()?))?;
    Some(Mount { id, device, point, fstype })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = br"36 35 0:98 / /a\040b\134c rw,nosuid shared:7 master:1 - fuse.cgfuse my\040cg rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.device.as_str(), mount.fstype.as_str()), (36, "0:98", "fuse.cgfuse"));
        assert_eq!(mount.point, Path::new(r"/a b\c"));
        assert!(mount.is_cgfuse());
        let after = |line| parse(line).unwrap().is(&mount);
        assert!(after(br"36 35 0:98 / /moved rw - fuse.cgfuse cg rw"));
        assert!(!after(br"36 35 0:99 / /imposter rw - tmpfs none rw") && !after(br"37 35 0:98 / /copy rw - fuse.cgfuse cg rw"));
        assert_eq!(parse(b""), None);
        assert!(!parse(br"1 1 0:1 / /proc rw - proc proc rw").unwrap().is_cgfuse());
    }

    #[test]
    fn places_are_found() {
        let root = locate(Path::new("/")).unwrap();
        assert_eq!(root.path, Path::new("/"));
        assert!(root.mount.is_some());
        let dir = tempfile::tempdir().unwrap();
        let place = locate(&dir.path().join(".")).unwrap();
        assert_eq!(place, Place { path: dir.path().canonicalize().unwrap(), mount: None });
        assert_eq!(locate(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
