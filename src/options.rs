//! Mount options: one static table drives the parser, the help text and the tests that walk it.
//!
//! The grammar is mount(8)'s: a comma separated list, given any number of times, the last word on a subject
//! wins, `"a,b"` and `a\,b` keep a comma inside a value.

use std::fmt::Write as _;
use std::path::PathBuf;

use bitflags::bitflags;
use nix::unistd::{Group, User};
use thiserror::Error;

use crate::controllers;
use crate::tracker::Kind;

/// The subtype, shown in /proc/self/mountinfo as `fuse.cgfuse`.
pub const SUBTYPE: &str = "cgfuse";

/// The longest path a kernel hierarchy accepts as its release agent.
const RELEASE_AGENT_MAX: usize = libc::PATH_MAX as usize - 1;

bitflags! {
    /// The per-mount flags of mount(2) that a hierarchy can have.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// No write of any kind.
        const READ_ONLY = 1 << 0;
        /// Set-user-id bits have no effect.
        const NOSUID = 1 << 1;
        /// Device nodes have no effect.
        const NODEV = 1 << 2;
        /// Nothing can be executed.
        const NOEXEC = 1 << 3;
        /// Access times are not updated.
        const NOATIME = 1 << 4;
        /// All writes are synchronous.
        const SYNC = 1 << 5;
        /// All changes of directories are synchronous.
        const DIRSYNC = 1 << 6;
    }
}

impl Default for MountFlags {
    /// What FUSE defaults to: a user's server must not hand out set-user-id files or devices.
    fn default() -> Self {
        MountFlags::NOSUID | MountFlags::NODEV
    }
}

/// How a hierarchy is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// What /proc/mounts shows in its first column.
    pub source: String,
    /// The controllers of the hierarchy, in table order and without duplicates; `None` is all of them.
    pub controllers: Option<Vec<String>>,
    /// Name the files of the controllers without the controller's name in front.
    pub noprefix: bool,
    /// Initial value of `cgroup.clone_children` in the root group.
    pub clone_children: bool,
    /// Initial value of the root's `release_agent`.
    pub release_agent: Option<String>,
    /// Owner of the root group; `None` is the one who mounts.
    pub uid: Option<u32>,
    /// Owning group of the root group; `None` is that of the one who mounts.
    pub gid: Option<u32>,
    /// Permissions of the root group's directory; `None` is the kernel's 0555.
    pub mode: Option<u32>,
    /// Whether others than the mounting user may enter; `None` is yes for root, no for everybody else.
    pub allow_other: Option<bool>,
    /// Whether groups and files have extended attributes. Without, an `echo` costs one request less: the kernel asks for
    /// `security.capability` whenever a file is opened with O_TRUNC.
    pub xattr: bool,
    /// How forks and exits are followed; `None` for the best way that works.
    pub tracker: Option<Kind>,
    /// The mount flags.
    pub flags: MountFlags,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            source: SUBTYPE.to_owned(),
            controllers: None,
            noprefix: false,
            clone_children: false,
            release_agent: None,
            uid: None,
            gid: None,
            mode: None,
            allow_other: None,
            xattr: true,
            tracker: None,
            flags: MountFlags::default(),
        }
    }
}

/// All that an option list can say: the mount itself, and what only the server's start-up needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The mount.
    pub mount: MountOptions,
    /// Where a server in the background logs, instead of syslog.
    pub log_file: Option<PathBuf>,
}

/// Why an option list was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionError {
    /// Nobody knows this name.
    #[error("unknown mount option '{name}'; known are: {}", known().join(", "))]
    Unknown {
        /// The option's name.
        name: String,
    },
    /// `name` where `name=VALUE` is wanted.
    #[error("mount option '{name}' needs a value: {name}={metavar}")]
    NeedsValue {
        /// The option's name.
        name: String,
        /// What the value stands for.
        metavar: &'static str,
    },
    /// `name=VALUE` where `name` is wanted.
    #[error("mount option '{name}' takes no value")]
    TakesNoValue {
        /// The option's name.
        name: String,
    },
    /// The value does not fit.
    #[error("mount option '{name}={value}': {why}")]
    BadValue {
        /// The option's name.
        name: String,
        /// The value as given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Known to mount(8), impossible here.
    #[error("mount option '{name}' is not supported: {why}")]
    Refused {
        /// The option's name.
        name: String,
        /// The reason, and what to do instead.
        why: &'static str,
    },
    /// A quotation mark without its partner.
    #[error("unbalanced quotation mark in mount options '{list}'")]
    Quote {
        /// The list as given.
        list: String,
    },
    /// Options that exclude each other.
    #[error("mount option 'noprefix' is for the cpuset controller alone: add 'cpuset'")]
    Noprefix,
}

/// What an option does.
#[derive(Clone, Copy)]
pub enum Effect {
    /// Adds a mount flag.
    Set(MountFlags),
    /// Removes a mount flag.
    Clear(MountFlags),
    /// Changes a setting; no value.
    Switch(fn(&mut Parsed)),
    /// Changes a setting with a value; the first field names the value in help texts. An error says what is wrong with it.
    Value(&'static str, fn(&mut Parsed, &str) -> Result<(), String>),
    /// Accepted, with or without a value, and without effect: it is addressed to mount(8), systemd or the kernel.
    Ignored,
    /// An error; the text says why and what to do instead.
    Refused(&'static str),
}

/// A row of the table.
pub struct Row {
    /// The name; a final `*` stands for any ending.
    pub name: &'static str,
    /// What it does.
    pub effect: Effect,
    /// One line for a stranger; empty where the effect says it all.
    pub help: &'static str,
}

const fn row(name: &'static str, effect: Effect, help: &'static str) -> Row {
    Row { name, effect, help }
}

const fn ignored(name: &'static str) -> Row {
    row(name, Effect::Ignored, "")
}

const fn refused(name: &'static str, why: &'static str) -> Row {
    row(name, Effect::Refused(why), "")
}

const NO_REMOUNT: &str = "flags of a live mount are changed by 'mount -i -o remount,...', the rest by mounting anew";
const NO_BIND: &str = "it is an operation of mount(8) on an existing mount, not an option of this file system";
const NO_PROPAGATION: &str = "change the propagation of the live mount with 'mount --make-...'";
const NO_LABELS: &str = "security labels cannot be given to this file system";

/// Every option but the controllers, whose names come from [`controllers::names`].
pub static TABLE: &[Row] = &[
    row("all", Effect::Switch(|p| p.mount.controllers = None), "all controllers (the default)"),
    row("noprefix", Effect::Switch(|p| p.mount.noprefix = true), "name files 'cpus', not 'cpuset.cpus' (cpuset alone)"),
    row("clone_children", Effect::Switch(|p| p.mount.clone_children = true), "new groups start with their parent's values"),
    row("release_agent", Effect::Value("PATH", set_release_agent), "program to run when a group becomes empty"),
    row("uid", Effect::Value("USER", set_uid), "owner of the root group, name or number"),
    row("gid", Effect::Value("GROUP", set_gid), "owning group of the root group, name or number"),
    row("mode", Effect::Value("OCTAL", set_mode), "permissions of the root directory (default 0555)"),
    row("allow_other", Effect::Switch(|p| p.mount.allow_other = Some(true)), "let other users in (the default for root)"),
    row("noallow_other", Effect::Switch(|p| p.mount.allow_other = Some(false)), "only the mounting user may enter"),
    row("xattr", Effect::Switch(|p| p.mount.xattr = true), "extended attributes (the default)"),
    row("noxattr", Effect::Switch(|p| p.mount.xattr = false), "none, and one request less for each echo"),
    row("tracker", Effect::Value("NAME", set_tracker), "follow forks by bpf, perf, netlink or scan (the first)"),
    row("fsname", Effect::Value("NAME", set_source), "the source shown in /proc/mounts, instead of SPEC"),
    row("subtype", Effect::Value("cgfuse", check_subtype), "accepted for mount.fuse's sake"),
    row("logfile", Effect::Value("PATH", set_log_file), "log there from the background, not to syslog"),
    row("ro", Effect::Set(MountFlags::READ_ONLY), "read-only"),
    row("rw", Effect::Clear(MountFlags::READ_ONLY), "read-write (the default)"),
    row("nosuid", Effect::Set(MountFlags::NOSUID), "set-user-id bits have no effect (the default)"),
    row("suid", Effect::Clear(MountFlags::NOSUID), "the opposite, for root only"),
    row("nodev", Effect::Set(MountFlags::NODEV), "device nodes have no effect (the default)"),
    row("dev", Effect::Clear(MountFlags::NODEV), "the opposite, for root only"),
    row("noexec", Effect::Set(MountFlags::NOEXEC), "nothing can be executed"),
    row("exec", Effect::Clear(MountFlags::NOEXEC), "the opposite (the default)"),
    row("noatime", Effect::Set(MountFlags::NOATIME), "access times are not updated"),
    row("atime", Effect::Clear(MountFlags::NOATIME), "the opposite (the default)"),
    row("sync", Effect::Set(MountFlags::SYNC), "writes are synchronous (they always are)"),
    row("async", Effect::Clear(MountFlags::SYNC), "the opposite (the default)"),
    row("dirsync", Effect::Set(MountFlags::DIRSYNC), "changes of directories are synchronous (they always are)"),
    // For mount(8), fstab and systemd.
    ignored("defaults"),
    ignored("auto"),
    ignored("noauto"),
    ignored("user"),
    ignored("nouser"),
    ignored("users"),
    ignored("nousers"),
    ignored("owner"),
    ignored("noowner"),
    ignored("group"),
    ignored("nogroup"),
    ignored("nofail"),
    ignored("_netdev"),
    ignored("comment"),
    ignored("helper"),
    ignored("uhelper"),
    ignored("x-*"),
    ignored("X-*"),
    // For the kernel; without a meaning on control files, or always on.
    ignored("relatime"),
    ignored("norelatime"),
    ignored("strictatime"),
    ignored("nostrictatime"),
    ignored("lazytime"),
    ignored("nolazytime"),
    ignored("diratime"),
    ignored("nodiratime"),
    ignored("symfollow"),
    ignored("nosymfollow"),
    ignored("iversion"),
    ignored("noiversion"),
    ignored("mand"),
    ignored("nomand"),
    ignored("silent"),
    ignored("loud"),
    ignored("default_permissions"),
    refused("remount", NO_REMOUNT),
    refused("bind", NO_BIND),
    refused("rbind", NO_BIND),
    refused("move", NO_BIND),
    refused("shared", NO_PROPAGATION),
    refused("rshared", NO_PROPAGATION),
    refused("private", NO_PROPAGATION),
    refused("rprivate", NO_PROPAGATION),
    refused("slave", NO_PROPAGATION),
    refused("rslave", NO_PROPAGATION),
    refused("unbindable", NO_PROPAGATION),
    refused("runbindable", NO_PROPAGATION),
    refused("context", NO_LABELS),
    refused("fscontext", NO_LABELS),
    refused("defcontext", NO_LABELS),
    refused("rootcontext", NO_LABELS),
    refused("none", "a hierarchy without controllers has no use here"),
    refused("name", "each mount is a hierarchy of its own; name it by its SPEC"),
    refused("cpuset_v2_mode", "cpuset has the rules of cgroup v1 here"),
];

/// Parses option lists in the order they were given. `fsname=` has precedence over `spec`; `sloppy` skips unknown
/// options, and only those.
pub fn parse<S: AsRef<str>>(spec: Option<&str>, lists: &[S], sloppy: bool) -> Result<Parsed, OptionError> {
    let mut parsed = Parsed::default();
    if let Some(spec) = spec.filter(|spec| !spec.is_empty()) {
        parsed.mount.source = spec.to_owned();
    }
    for list in lists {
        for word in split(list.as_ref())? {
            match apply(&mut parsed, &word) {
                Err(OptionError::Unknown { .. }) if sloppy => {}
                outcome => outcome?,
            }
        }
    }
    check(&parsed.mount)?;
    Ok(parsed)
}

/// What only the whole list can tell.
fn check(mount: &MountOptions) -> Result<(), OptionError> {
    // check_cgroupfs_options() of the kernel: with several controllers the bare names would collide.
    let alone = match &mount.controllers {
        Some(names) => names.iter().all(|name| name == "cpuset"),
        None => controllers::names().all(|name| name == "cpuset"),
    };
    if mount.noprefix && !alone {
        return Err(OptionError::Noprefix);
    }
    Ok(())
}

/// Cuts a list at its commas, as libmount does, and takes quotation marks and backslashes off.
fn split(list: &str) -> Result<Vec<String>, OptionError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if matches!(chars.peek(), Some(',' | '"' | '\\')) => word.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    if quoted {
        return Err(OptionError::Quote { list: list.to_owned() });
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    Ok(words)
}

fn apply(parsed: &mut Parsed, word: &str) -> Result<(), OptionError> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let effect = match find(name) {
        Some(row) => row.effect,
        None => return add_controller(parsed, name, value),
    };
    if value.is_some() && matches!(effect, Effect::Set(_) | Effect::Clear(_) | Effect::Switch(_)) {
        return Err(OptionError::TakesNoValue { name: name.to_owned() });
    }
    match effect {
        Effect::Set(flag) => parsed.mount.flags.insert(flag),
        Effect::Clear(flag) => parsed.mount.flags.remove(flag),
        Effect::Switch(set) => set(parsed),
        Effect::Ignored => {}
        Effect::Refused(why) => return Err(OptionError::Refused { name: name.to_owned(), why }),
        Effect::Value(metavar, set) => {
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                return Err(OptionError::NeedsValue { name: name.to_owned(), metavar });
            };
            set(parsed, value).map_err(|why| OptionError::BadValue { name: name.to_owned(), value: value.to_owned(), why })?;
        }
    }
    Ok(())
}

fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| match row.name.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => row.name == name,
    })
}

fn add_controller(parsed: &mut Parsed, name: &str, value: Option<&str>) -> Result<(), OptionError> {
    if !controllers::names().any(|known| known == name) {
        return Err(OptionError::Unknown { name: name.to_owned() });
    }
    if value.is_some() {
        return Err(OptionError::TakesNoValue { name: name.to_owned() });
    }
    let chosen = parsed.mount.controllers.take().unwrap_or_default();
    let wanted = |known: &&str| *known == name || chosen.iter().any(|c| c == known);
    parsed.mount.controllers = Some(controllers::names().filter(wanted).map(str::to_owned).collect());
    Ok(())
}

fn set_release_agent(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    if value.len() > RELEASE_AGENT_MAX {
        return Err(format!("longer than {RELEASE_AGENT_MAX} bytes"));
    }
    parsed.mount.release_agent = Some(value.to_owned());
    Ok(())
}

fn set_source(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    parsed.mount.source = value.to_owned();
    Ok(())
}

fn check_subtype(_: &mut Parsed, value: &str) -> Result<(), String> {
    if value == SUBTYPE { Ok(()) } else { Err(format!("the subtype is always '{SUBTYPE}'")) }
}

fn set_tracker(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == value);
    parsed.mount.tracker = Some(kind.ok_or_else(|| format!("known are {}", Kind::ALL.map(Kind::name).join(", ")))?);
    Ok(())
}

fn set_log_file(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    parsed.log_file = Some(PathBuf::from(value));
    Ok(())
}

fn set_uid(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    let by_name = || User::from_name(value).map(|user| user.map(|user| user.uid.as_raw()));
    parsed.mount.uid = Some(id(value, "user", by_name)?);
    Ok(())
}

fn set_gid(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    let by_name = || Group::from_name(value).map(|group| group.map(|group| group.gid.as_raw()));
    parsed.mount.gid = Some(id(value, "group", by_name)?);
    Ok(())
}

/// A number, or a name to look up. The greatest number is the system calls' "no change" and nobody's id.
fn id(value: &str, kind: &str, by_name: impl FnOnce() -> nix::Result<Option<u32>>) -> Result<u32, String> {
    if value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| format!("no valid {kind} id"));
    }
    match by_name() {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("no such {kind}")),
        Err(errno) => Err(format!("cannot look the {kind} up: {}", errno.desc())),
    }
}

fn set_mode(parsed: &mut Parsed, value: &str) -> Result<(), String> {
    let digits = value.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(value, 8) {
        Ok(mode) if digits && mode <= 0o7777 => parsed.mount.mode = Some(mode),
        _ => return Err("not an octal mode between 0 and 7777".to_owned()),
    }
    Ok(())
}

/// The names a person may want to write: controllers first, then the rows that have an effect.
fn known() -> Vec<&'static str> {
    let rows = TABLE.iter().filter(|row| !row.help.is_empty()).map(|row| row.name);
    controllers::names().chain(rows).collect()
}

/// The options as a help text, one line each.
pub fn help() -> String {
    let mut text = String::from("Mount options (-o, comma separated; the last one wins):\n");
    let mut line = |name: &str, help: &str| {
        writeln!(text, "  {name:<20} {help}").expect("writing to a string cannot fail");
    };
    for name in controllers::names() {
        line(name, "this controller (several may be given; default: all)");
    }
    for row in TABLE.iter().filter(|row| !row.help.is_empty()) {
        match row.effect {
            Effect::Value(metavar, _) => line(&format!("{}={metavar}", row.name), row.help),
            _ => line(row.name, row.help),
        }
    }
    let ignored: Vec<_> = TABLE.iter().filter(|row| matches!(row.effect, Effect::Ignored)).map(|row| row.name).collect();
    text.push_str("Accepted without effect:\n");
    fill(&mut text, &ignored);
    text
}

/// Words as lines of at most 78 columns.
fn fill(text: &mut String, words: &[&str]) {
    let mut line = String::from(" ");
    for word in words {
        if line.len() + 1 + word.len() > 78 {
            text.push_str(&line);
            text.push('\n');
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(list: &str) -> MountOptions {
        parse(None, &[list], false).expect(list).mount
    }

    fn refusal(list: &str) -> OptionError {
        parse(None, &[list], false).expect_err(list)
    }

    #[test]
    fn table_is_sane() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(!row.name.is_empty() && !row.name.contains(['=', ',', ' ']), "{}", row.name);
            assert!(TABLE[..i].iter().all(|other| other.name != row.name), "{} stands twice", row.name);
            assert!(controllers::names().all(|name| name != row.name), "{} is also a controller", row.name);
            let silent = matches!(row.effect, Effect::Ignored | Effect::Refused(_));
            assert_eq!(row.help.is_empty(), silent, "{}: a help line for what has an effect, and only that", row.name);
            assert!(row.help.len() <= 57, "{}: its line is longer than 80 columns", row.name);
        }
    }

    #[test]
    fn every_row_is_obeyed() {
        for row in TABLE {
            let word = row.name.replace('*', "anything");
            let controllers = if row.name == "noprefix" { "cpuset" } else { "all" };
            match (row.effect, parse(None, &[controllers, &word], false)) {
                (Effect::Refused(why), Err(OptionError::Refused { name, why: said })) => assert_eq!((&name, said), (&word, why)),
                (Effect::Value(..), Err(OptionError::NeedsValue { name, .. })) => assert_eq!(name, word),
                (Effect::Ignored, Ok(parsed)) => assert_eq!(parsed, Parsed::default(), "{word}"),
                (Effect::Set(flag), Ok(parsed)) => assert!(parsed.mount.flags.contains(flag), "{word}"),
                (Effect::Clear(flag), Ok(parsed)) => assert!(!parsed.mount.flags.intersects(flag), "{word}"),
                (Effect::Switch(_), Ok(_)) => {}
                (_, outcome) => panic!("{word}: {outcome:?}"),
            }
            if matches!(row.effect, Effect::Set(_) | Effect::Clear(_) | Effect::Switch(_)) {
                assert_eq!(refusal(&format!("{word}=1")), OptionError::TakesNoValue { name: word });
            }
        }
    }

    #[test]
    fn help_names_every_option() {
        let help = help();
        let shown = TABLE.iter().filter(|row| !matches!(row.effect, Effect::Refused(_))).map(|row| row.name);
        for name in shown.chain(controllers::names()) {
            assert!(help.split([' ', '\n', '=']).any(|word| word == name), "{name} is not in the help");
        }
        assert!(help.lines().all(|line| line.len() <= 80), "{help}");
    }

    #[test]
    fn manual_names_every_option() {
        let manual = include_str!("../doc/mount.cgfuse.8");
        for name in known().into_iter().filter(|name| *name != "subtype") {
            assert!(manual.split([' ', '\n', '=']).any(|word| word == name), "{name} is not in the manual");
        }
    }

    #[test]
    fn last_one_wins() {
        assert!(mount("ro").flags.contains(MountFlags::READ_ONLY));
        assert!(!mount("ro,rw").flags.contains(MountFlags::READ_ONLY));
        assert_eq!(parse(None, &["uid=1,ro", "uid=2"], false).unwrap().mount.uid, Some(2));
        assert_eq!(mount("allow_other,noallow_other").allow_other, Some(false));
        assert_eq!(mount("").allow_other, None);
        assert_eq!(mount("suid,dev").flags, MountFlags::empty());
        assert_eq!(mount("defaults,,").flags, MountFlags::default());
    }

    #[test]
    fn commas_inside_values() {
        let agent = |list: &str| mount(list).release_agent.unwrap();
        assert_eq!(agent(r#"release_agent="/a,b",ro"#), "/a,b");
        assert_eq!(agent(r#""release_agent=/a,b""#), "/a,b");
        assert_eq!(agent(r"release_agent=/a\,b\\c\d"), r"/a,b\c\d");
        assert_eq!(agent("release_agent=/a=b"), "/a=b");
        assert_eq!(refusal(r#"ro,fsname="x"#), OptionError::Quote { list: r#"ro,fsname="x"#.to_owned() });
    }

    proptest::proptest! {
        #[test]
        fn any_list_is_answered(list: String, sloppy: bool) {
            let _ = parse(None, &[&list], sloppy);
        }

        #[test]
        fn any_value_can_be_written(value in "[^\0]+") {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace(',', r"\,");
            proptest::prop_assert_eq!(mount(&format!("ro,fsname={escaped},noexec")).source, value);
        }
    }

    #[test]
    fn controllers_add_up() {
        assert_eq!(mount("").controllers, None);
        assert_eq!(mount("cpuset,cpuset").controllers, Some(vec!["cpuset".to_owned()]));
        assert_eq!(mount("cpuset,all").controllers, None);
        assert!(mount("cpuset,noprefix").noprefix);
        assert_eq!(refusal("cpuset=1"), OptionError::TakesNoValue { name: "cpuset".to_owned() });
    }

    #[test]
    fn unknown_is_named_unless_sloppy() {
        for list in ["bogus", "ro,bogus=1,rw"] {
            let message = refusal(list).to_string();
            assert!(message.contains("'bogus'") && message.contains("cpuset") && message.contains("release_agent"), "{message}");
            assert!(parse(None, &[list], true).is_ok());
        }
        assert!(parse(None, &["remount"], true).is_err());
        assert!(parse(None, &["mode=9"], true).is_err());
    }

    #[test]
    fn ids_by_number_and_name() {
        assert_eq!((mount("uid=7").uid, mount("gid=8").gid), (Some(7), Some(8)));
        assert_eq!((mount("uid=root").uid, mount("gid=root").gid), (Some(0), Some(0)));
        assert_eq!(mount("uid=4294967294").uid, Some(u32::MAX - 1));
        for list in ["uid=4294967295", "uid=-1", "gid=99999999999", "uid=no such user", "gid=no such group"] {
            assert!(matches!(refusal(list), OptionError::BadValue { .. }), "{list}");
        }
        assert!(matches!(refusal("uid="), OptionError::NeedsValue { .. }));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!((mount("mode=755").mode, mount("mode=01777").mode), (Some(0o755), Some(0o1777)));
        for list in ["mode=8", "mode=10000", "mode=+7", "mode=0x1", "mode=rwx"] {
            assert!(matches!(refusal(list), OptionError::BadValue { .. }), "{list}");
        }
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(mount("fsname=web").source, "web");
        let source = |list| parse(Some("spec"), &[list], false).unwrap().mount.source;
        assert_eq!((source("ro"), source("fsname=web")), ("spec".to_owned(), "web".to_owned()));
        assert_eq!(mount("subtype=cgfuse").source, SUBTYPE);
        assert!(matches!(refusal("subtype=other"), OptionError::BadValue { .. }));
        assert_eq!(parse(None, &["logfile=/x"], false).unwrap().log_file, Some(PathBuf::from("/x")));
        let long = "a".repeat(RELEASE_AGENT_MAX + 1);
        assert!(matches!(refusal(&format!("release_agent={long}")), OptionError::BadValue { .. }));
        assert!(mount(&format!("release_agent={}", &long[1..])).release_agent.is_some());
    }
}
