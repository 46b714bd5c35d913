//! Command line: the programs `cgfuse` and `mount.cgfuse`. Arguments, start in the background, exit codes.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::panic::catch_unwind;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::options;
use exit::{Exit, Failure};
use mount::Request;

pub mod daemon;
pub mod exec;
pub mod exit;
pub mod logging;
pub mod mount;
pub mod mountinfo;
pub mod serve;
pub mod umount;

const EXAMPLES: &str = "\
Examples:
  cgfuse mount /cg                           mount on the directory /cg
  mkdir /cg/web                              make a group
  echo 0-1 > /cg/web/cpuset.cpus             with these CPUs
  echo 0 > /cg/web/cpuset.mems               and this memory node
  echo $$ > /cg/web/tasks                    and the shell in it
  cgfuse exec /cg/web -- make -j2            a command in it
  cgfuse umount /cg

  cgfuse mount -o uid=anna,mode=755 /cg      anna may make groups
  cgfuse mount -f -v /cg                     in the foreground, logging to the terminal";

#[derive(Debug, Parser)]
#[command(name = "cgfuse", version, about = "The cgroup v1 file interface, in user space", long_about = None)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", exit::help()))]
struct Cgfuse {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Mount a hierarchy on a directory; returns when it answers
    Mount(MountArgs),
    /// Unmount a hierarchy
    #[command(after_long_help = exit::help())]
    Umount(UmountArgs),
    /// Run a command as a member of a group
    Exec(exec::ExecArgs),
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "'cgfuse mount --help' lists the mount options.")]
#[command(after_long_help = format!("{}\n{EXAMPLES}\n\n{}", options::help(), exit::help()))]
struct MountArgs {
    /// Name to show as the source in /proc/mounts [default: cgfuse]
    spec: Option<String>,
    /// Directory to mount on
    dir: PathBuf,
    /// Mount options, comma separated; may be repeated
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Stay in the foreground, log to standard error (RUST_LOG is honoured)
    #[arg(short, long)]
    foreground: bool,
    /// Log more; twice: each request
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Args)]
struct UmountArgs {
    /// Where it is mounted
    dir: PathBuf,
    /// If it is in use, take it out of sight now and end it with its last user
    #[arg(short, long)]
    lazy: bool,
}

/// What mount(8) calls its helpers with.
#[derive(Debug, Parser)]
#[command(name = "mount.cgfuse", bin_name = "mount.cgfuse", version, about = "Mount helper of mount(8) for the types cgfuse and fuse.cgfuse", long_about = None)]
#[command(after_help = "People call 'mount -t cgfuse SPEC DIR' or 'cgfuse mount'; --help lists the mount options.")]
#[command(after_long_help = format!("{}\n{}", options::help(), exit::help()))]
struct MountHelper {
    /// Name to show as the source in /proc/mounts
    spec: String,
    /// Directory to mount on
    dir: PathBuf,
    /// Pass over unknown mount options
    #[arg(short)]
    sloppy: bool,
    /// Fake: check everything, mount nothing
    #[arg(short)]
    fake: bool,
    /// Do not write /etc/mtab (it never is)
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say what was done
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,
    /// Mount in this mount namespace: a path or a pid
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// Mount options, comma separated; may be repeated
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Type of the file system
    #[arg(short = 't', value_name = "TYPE", value_parser = ["cgfuse", "fuse.cgfuse"])]
    fstype: Option<String>,
}

/// The program `cgfuse`.
pub fn cgfuse(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_exec = args.get(1).is_some_and(|verb| verb == "exec");
    let exit = run("cgfuse", args, |cgfuse: Cgfuse| match cgfuse.command {
        Verb::Mount(args) => mount::run(&Request {
            spec: args.spec,
            dir: args.dir,
            options: args.options,
            foreground: args.foreground,
            verbosity: args.verbose,
            ..Request::default()
        }),
        Verb::Umount(args) => {
            let urgency = if args.lazy { umount::Urgency::Lazy } else { umount::Urgency::Wait };
            umount::run(&args.dir, urgency)
        }
        Verb::Exec(args) => match exec::run(&args)? {},
    });
    // The other codes are the command's.
    if is_exec && exit != Exit::Success && !Exit::EXEC.contains(&exit) { Exit::Exec } else { exit }
}

/// The program `mount.cgfuse`.
pub fn mount_helper(args: impl IntoIterator<Item = OsString>) -> Exit {
    run("mount.cgfuse", args, |helper: MountHelper| {
        let request = Request {
            spec: Some(helper.spec),
            dir: helper.dir,
            options: helper.options,
            sloppy: helper.sloppy,
            verbosity: 0,
            namespace: helper.namespace,
            fake: helper.fake,
            ..Request::default()
        };
        mount::run(&request)?;
        if helper.verbose > 0 {
            let done = if helper.fake { "would be mounted" } else { "mounted" };
            // Mounted is mounted, whether or not somebody reads it.
            let _ = writeln!(io::stdout(), "mount.cgfuse: {} {done} on {}", request.spec.unwrap_or_default(), request.dir.display());
        }
        Ok(())
    })
}

/// Parses, runs, and turns whatever happens into an exit code, with the reason on standard error.
fn run<P: Parser>(program: &str, args: impl IntoIterator<Item = OsString>, body: impl FnOnce(P) -> Result<(), Failure>) -> Exit {
    let parsed = match P::try_parse_from(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nobody is left to hear of a closed standard error.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    // The panic's message is on standard error already.
    let outcome = catch_unwind(std::panic::AssertUnwindSafe(|| body(parsed)));
    match outcome.unwrap_or_else(|_| Err(Failure::new(Exit::Internal, "this is a bug; please report it"))) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{program}: {failure}");
            failure.exit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cgfuse::command().debug_assert();
        MountHelper::command().debug_assert();
    }

    fn mount_args(args: &[&str]) -> MountArgs {
        match Cgfuse::try_parse_from([&["cgfuse", "mount"], args].concat()).unwrap().command {
            Verb::Mount(args) => args,
            Verb::Umount(_) | Verb::Exec(_) => unreachable!(),
        }
    }

    #[test]
    fn spec_may_be_left_out() {
        let args = mount_args(&["/cg", "-o", "ro", "-o", "uid=1", "-vv"]);
        assert_eq!((args.spec, args.dir, args.verbose), (None, PathBuf::from("/cg"), 2));
        assert_eq!(args.options, ["ro", "uid=1"]);
        let args = mount_args(&["web", "/cg", "-f"]);
        assert_eq!((args.spec.as_deref(), args.foreground), (Some("web"), true));
    }

    #[test]
    fn helper_takes_what_mount_passes() {
        let args = "mount.cgfuse web /cg -sfnv -N 1 -o rw,x-a=b -t fuse.cgfuse".split(' ');
        let helper = MountHelper::try_parse_from(args).unwrap();
        assert!(helper.sloppy && helper.fake && helper.no_mtab && helper.verbose == 1);
        assert_eq!((helper.spec.as_str(), helper.namespace), ("web", Some(PathBuf::from("1"))));
        assert_eq!((helper.options, helper.fstype.as_deref()), (vec!["rw,x-a=b".to_owned()], Some("fuse.cgfuse")));
        assert!(MountHelper::try_parse_from(["mount.cgfuse", "web", "/cg", "-t", "ext4"]).is_err());
    }
}
