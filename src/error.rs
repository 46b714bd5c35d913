//! Base layer: why an operation on the hierarchy failed, and the errno that tells it.

use crate::sys::Errno;

/// The result of an operation on the hierarchy.
pub type Result<T> = std::result::Result<T, Error>;

/// A closed list of reasons. [`Error::errno`] is the only place where a reason becomes an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text or number written is not one that the file takes.
    #[error("invalid value")]
    Invalid,
    /// A number in a list does not fit 32 bits.
    #[error("number too large for this file")]
    Overflow,
    /// A number does not fit its type, or an id is not one the machine can have.
    #[error("number out of range")]
    Range,
    /// More bytes than the file takes in one write.
    #[error("longer than the file's limit")]
    TooBig,
    /// The group has been removed while the file was open.
    #[error("the group has been removed")]
    Removed,
    /// No such task (any more).
    #[error("no such task")]
    NoTask,
    /// The opener may not do this: not the target's owner, the hierarchy's root, or outside the parent's set.
    #[error("not allowed here")]
    Access,
    /// The caller lacks a privilege.
    #[error("operation not permitted")]
    Perm,
    /// In use: tasks or child groups, a child that needs what would be taken away.
    #[error("in use")]
    Busy,
    /// The cpuset has no CPUs or no memory nodes to run its tasks on.
    #[error("the cpuset has no CPUs or memory nodes")]
    NoSpace,
    /// No such name.
    #[error("no such file or group")]
    NotFound,
    /// The name is taken.
    #[error("exists already")]
    Exists,
    /// Not a group.
    #[error("not a group")]
    NotDir,
    /// A group would have to change its parent.
    #[error("a group cannot be moved to another parent")]
    OtherParent,
    /// Past the largest size a control file can be truncated to.
    #[error("file too large")]
    FileTooBig,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoData,
    /// The reader's buffer is too small for the attribute.
    #[error("buffer too small")]
    BufferTooSmall,
    /// Not offered by this file system.
    #[error("not supported")]
    NotSupported,
    /// Too many or too large extended attributes.
    #[error("no room for more attributes")]
    AttrSpace,
    /// More different places of tasks than there are numbers for.
    #[error("too many different sets of tasks")]
    NoMemory,
    /// The client is to be stopped while it waits, and is made to ask again: see [`crate::inject`].
    #[error("to be made again")]
    Restart,
    /// Somebody has to be waited for, and others would wait behind us: to be done again where they do not.
    #[error("not at once")]
    Later,
    /// What the system call that did the work said.
    #[error("{0}")]
    Sys(Errno),
}

impl Error {
    /// The errno the kernel's hierarchy gives for this reason.
    pub fn errno(self) -> Errno {
        match self {
            Self::Invalid => Errno::EINVAL,
            Self::Overflow => Errno::EOVERFLOW,
            Self::Range => Errno::ERANGE,
            Self::TooBig => Errno::E2BIG,
            Self::Removed => Errno::ENODEV,
            Self::NoTask => Errno::ESRCH,
            Self::Access => Errno::EACCES,
            Self::Perm => Errno::EPERM,
            Self::Busy => Errno::EBUSY,
            Self::NoSpace | Self::AttrSpace => Errno::ENOSPC,
            Self::NotFound => Errno::ENOENT,
            Self::Exists => Errno::EEXIST,
            Self::NotDir => Errno::ENOTDIR,
            Self::OtherParent => Errno::EIO,
            Self::FileTooBig => Errno::EFBIG,
            Self::NoData => Errno::ENODATA,
            Self::BufferTooSmall => Errno::ERANGE,
            Self::NotSupported => Errno::EOPNOTSUPP,
            Self::NoMemory => Errno::ENOMEM,
            Self::Restart => Errno::ERESTART,
            Self::Later => Errno::EAGAIN,
            Self::Sys(errno) => errno,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => Self::NoTask,
            other => Self::Sys(other),
        }
    }
}
