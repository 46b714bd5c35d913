//! VFS layer: extended attributes, kept in memory (`simple_xattrs` of kernfs).

use super::{Client, Ino, Vfs, locate};
use crate::error::{Error, Result};
use crate::sys::{CAP_SYS_ADMIN, Errno};
use std::collections::BTreeMap;

/// KERNFS_MAX_USER_XATTRS and KERNFS_USER_XATTR_SIZE_LIMIT, for each inode.
const MAX_USER_XATTRS: usize = 128;
const MAX_USER_BYTES: usize = 128 << 10;

/// The attributes of one inode.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// How setxattr(2) treats an existing attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}

/// Checks that a name is one that kernfs has a handler for.
fn check(name: &[u8]) -> Result<()> {
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match prefixes.iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) if name.len() > prefix.len() => Ok(()),
        Some(_) => Err(Error::Invalid),
        None => Err(Error::NotSupported),
    }
}

impl Vfs {
    /// Sets an attribute.
    ///
    /// # Errors
    /// EOPNOTSUPP for another name space, EINVAL for an empty name, EEXIST or ENODATA as `mode` says, ENOSPC for too many.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        check(name)?;
        self.with_xattrs(ino, |xattrs| {
            match (mode, xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(Error::Exists),
                (XattrMode::Replace, false) => return Err(Error::NoData),
                _ => {}
            }
            if name.starts_with(b"user.") {
                // Linux counts first, and looks later whether something is replaced.
                let user = xattrs.iter().filter(|(key, _)| key.starts_with(b"user."));
                let (count, bytes) = user.fold((0, 0), |(count, bytes), (_, value)| (count + 1, bytes + value.len()));
                if count >= MAX_USER_XATTRS || bytes + value.len() > MAX_USER_BYTES {
                    return Err(Error::AttrSpace);
                }
            }
            xattrs.insert(name.to_vec(), value.to_vec());
            Ok(())
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// ENODATA if there is none, else as for setting it.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check(name)?;
        self.with_xattrs(ino, |xattrs| xattrs.remove(name).map(drop).ok_or(Error::NoData))
    }

    fn with_xattrs<T>(&self, ino: Ino, f: impl FnOnce(&mut Xattrs) -> Result<T>) -> Result<T> {
        let (id, slot) = locate(ino);
        let mut nodes = self.nodes.write();
        let node = nodes.get_mut(&id).ok_or(Error::NotFound)?;
        f(node.xattrs.get_or_insert_default().entry(slot).or_default())
    }

    /// An attribute's value.
    ///
    /// # Errors
    /// ENODATA if there is none, EOPNOTSUPP for another name space.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check(name)?;
        let (id, slot) = locate(ino);
        let nodes = self.nodes.read();
        let xattrs = nodes.get(&id).and_then(|node| node.xattrs.as_ref()?.get(&slot));
        xattrs.and_then(|xattrs| xattrs.get(name)).cloned().ok_or(Error::NoData)
    }

    /// The names of the attributes that the client may see, each with a NUL behind it: trusted ones are shown to CAP_SYS_ADMIN only.
    pub fn list_xattr(&self, ino: Ino, client: Client) -> Vec<u8> {
        let (id, slot) = locate(ino);
        let names: Vec<Vec<u8>> = {
            let nodes = self.nodes.read();
            let xattrs = nodes.get(&id).and_then(|node| node.xattrs.as_ref()?.get(&slot));
            xattrs.into_iter().flat_map(BTreeMap::keys).cloned().collect()
        };
        let is_trusted = |name: &Vec<u8>| name.starts_with(b"trusted.");
        let admin = || {
            let caller = self.callers.get(self.hierarchy().machine(), client);
            caller.is_ok_and(|caller| caller.creds.cap_effective & CAP_SYS_ADMIN != 0)
        };
        let trusted = names.iter().any(is_trusted) && admin();
        names.into_iter().filter(|name| trusted || !is_trusted(name)).flat_map(|name| name.into_iter().chain([0])).collect()
    }
}

impl XattrMode {
    /// From setxattr(2)'s flags.
    ///
    /// # Errors
    /// EINVAL for flags that do not exist.
    pub fn from_flags(flags: i32) -> Result<Self> {
        match flags {
            0 => Ok(Self::Any),
            1 => Ok(Self::Create),
            2 => Ok(Self::Replace),
            _ => Err(Error::Sys(Errno::EINVAL)),
        }
    }
}
