//! A directory with servers that are killed, one after the other.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, umount2};

use super::{CpusHeld, TempDir, hold_cpus, is_mounted, read, spawn, wait_until};

/// Dropped, its server and its mounts are gone.
pub struct Place {
    temp: TempDir,
    server: Option<Child>,
    _cpus: CpusHeld,
}

impl Place {
    /// An empty directory.
    pub fn new() -> Place {
        let temp = TempDir::new();
        std::fs::create_dir(temp.path().join("mnt")).expect("a mount point");
        Place { temp, server: None, _cpus: hold_cpus() }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> PathBuf {
        self.temp.path().join("mnt")
    }

    /// Mounts with these options, be there a dead mount or none. The server's pid.
    pub fn serve(&mut self, options: &[&str]) -> i32 {
        let dir = self.dir();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cgfuse"));
        command.args(["mount", "-f"]).args(options).arg(&dir).stdin(Stdio::null());
        command.stderr(File::create(self.temp.path().join("log")).expect("a log"));
        let mut server = spawn(command).expect("cgfuse starts");
        wait_until("the mount answers", || {
            assert!(server.try_wait().expect("wait").is_none(), "cgfuse ended without mounting");
            read(dir.join("notify_on_release")).is_ok()
        });
        let lines = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert_eq!(lines.matches(&format!(" {} ", dir.display())).count(), 1, "the dead mounts are gone");
        let pid = server.id().cast_signed();
        self.server = Some(server);
        pid
    }

    /// What the server has written on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.temp.path().join("log")).unwrap_or_default()
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("a server");
        server.kill().expect("kill");
        server.wait().expect("a child of ours");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        while is_mounted(&self.dir()) && umount2(&self.dir(), MntFlags::MNT_DETACH).is_ok() {}
    }
}
