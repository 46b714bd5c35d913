//! Command line: exit codes, and failures that carry one.

use std::fmt;
use std::process::ExitCode;

use crate::options::OptionError;

/// The exit codes of mount(8) and umount(8), as both programs use them, and those of env(1) for `cgfuse exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Wrong invocation, or not permitted.
    Usage = 1,
    /// A system call failed that should not: out of memory, no fork, no log file.
    System = 2,
    /// A bug: a panic, or a server that died without a word.
    Internal = 4,
    /// Interrupted by the user.
    Interrupted = 8,
    /// mount(8)'s trouble with /etc/mtab; never used, none is written.
    Mtab = 16,
    /// Mounting or unmounting failed.
    Failure = 32,
    /// mount(8)'s "some succeeded"; never used, one call is one mount.
    Partial = 64,
    /// `exec` failed before its command was started.
    Exec = 125,
    /// The command of `exec` was found but cannot be executed.
    NotExecutable = 126,
    /// The command of `exec` was not found.
    NotFound = 127,
}

impl Exit {
    /// The codes of mount(8), for the help text and the tests.
    pub const ALL: [Exit; 8] =
        [Exit::Success, Exit::Usage, Exit::System, Exit::Internal, Exit::Interrupted, Exit::Mtab, Exit::Failure, Exit::Partial];
    /// The codes of env(1), which leave the others to the command.
    pub const EXEC: [Exit; 3] = [Exit::Exec, Exit::NotExecutable, Exit::NotFound];

    /// The number the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reverse of [`Exit::code`].
    pub fn from_code(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| exit.code() == code)
    }

    fn help(self) -> &'static str {
        match self {
            Exit::Success => "success: the mount answers, or is gone",
            Exit::Usage => "wrong invocation or option, or no permission",
            Exit::System => "system error (no fork, no memory, log file not writable)",
            Exit::Internal => "internal bug",
            Exit::Interrupted => "interrupted by the user",
            Exit::Mtab => "(mount(8): trouble with /etc/mtab; never used here)",
            Exit::Failure => "mounting or unmounting failed",
            Exit::Partial => "(mount(8): some mounts succeeded; never used here)",
            Exit::Exec => "cgfuse itself failed: wrong invocation, no such group, the group does not take the process",
            Exit::NotExecutable => "the command is there but cannot be executed",
            Exit::NotFound => "the command is not found",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// The exit codes as a help text.
pub fn help() -> String {
    let lines = Exit::ALL.map(|exit| format!("  {:<3} {}\n", exit.code(), exit.help()));
    format!("Exit codes:\n{}", lines.concat())
}

/// The exit codes of `cgfuse exec` as a help text.
pub fn help_of_exec() -> String {
    let lines = Exit::EXEC.map(|exit| format!("  {:<3} {}\n", exit.code(), exit.help()));
    format!("Exit codes:\n{}  else the command's own; a signal that ends the command ends cgfuse too\n", lines.concat())
}

/// Why a command failed: what a person reads, and what a script reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the script.
    pub exit: Exit,
    /// For the person; says what to do about it where that is known.
    pub message: String,
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }

    /// Something that should not fail failed.
    pub fn system(what: &str, error: impl fmt::Display) -> Failure {
        Failure::new(Exit::System, format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Failure {
        Failure::new(Exit::Usage, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_mount() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 4, 8, 16, 32, 64]);
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
            assert!(help().contains(exit.help()));
        }
        assert_eq!(Exit::from_code(3), None);
    }
}
