//! One file per operation of the file system; what Linux answers, ours must answer.

mod common;

mod vfs {
    mod actor; // processes that make any system call
    mod affinity; // where threads run
    mod bad_input; // nonsense
    mod chmod_chown; // modes, owners, delegation
    mod concurrency; // everything at once
    mod deleted; // removed groups, still open
    mod forbidden; // what does not exist here
    mod lookup; // names found and not found
    mod mkdir; // new groups
    mod open; // open flags
    mod read; // reading
    mod readdir; // listing
    mod release_agent; // the program that runs when a group is empty
    mod rename; // new names
    mod rmdir; // groups that go
    mod stat; // attributes
    mod statfs; // the file system as a whole
    mod tasks; // members, their numbers, births and deaths
    mod trees; // the kernel's hierarchy and ours
    mod truncate; // lengths
    mod users; // strangers and their descriptors
    mod write; // writing
    mod xattr; // extended attributes
}
