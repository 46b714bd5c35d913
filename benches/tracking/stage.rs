//! What ordinary users need to mount: programs they may execute, the device, a name, and a fuse.conf that lets
//! root look inside.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;

/// A directory with copies of the programs. All mounts are made in our own mount namespace.
pub(crate) struct Stage {
    dir: TempDir,
    mounted: Vec<PathBuf>,
    /// An ordinary user who has no process.
    pub(crate) uid: u32,
}

impl Stage {
    /// Sets it up.
    pub(crate) fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-tracking-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let mut stage = Self { dir, mounted: Vec::new(), uid: 60_000 + std::process::id() % 5000 };
        fs::copy(std::env::current_exe()?, stage.program())?;
        fs::copy(env!("CARGO_BIN_EXE_cgfuse"), stage.server())?;
        let own = stage.path("own");
        fs::create_dir(&own)?;
        stage.mount(None, &own, "tmpfs", MsFlags::empty())?;
        let (device, config, users) = (own.join("fuse"), own.join("fuse.conf"), own.join("passwd"));
        mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(10, 229))?;
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666))?;
        fs::write(&config, "user_allow_other\n")?;
        let (known, uid) = (fs::read_to_string("/etc/passwd")?, stage.uid);
        fs::write(&users, format!("{known}\nbench:x:{uid}:{uid}::/:/bin/false\n"))?;
        stage.mount(Some(&device), Path::new("/dev/fuse"), "", MsFlags::MS_BIND)?;
        stage.mount(Some(&config), Path::new("/etc/fuse.conf"), "", MsFlags::MS_BIND)?;
        stage.mount(Some(&users), Path::new("/etc/passwd"), "", MsFlags::MS_BIND)?;
        Ok(stage)
    }

    fn mount(&mut self, source: Option<&Path>, target: &Path, kind: &str, flags: MsFlags) -> io::Result<()> {
        mount(source, target, Some(kind), flags, None::<&str>)
            .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("mount on {}: {e}", target.display())))?;
        self.mounted.push(target.into());
        Ok(())
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A copy of this program.
    pub(crate) fn program(&self) -> PathBuf {
        self.path("bench")
    }

    /// A copy of the server.
    pub(crate) fn server(&self) -> PathBuf {
        self.path("cgfuse")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for target in self.mounted.iter().rev() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}
