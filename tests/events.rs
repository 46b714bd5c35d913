//! The event sources and real processes: what the tracker's table says is what /proc says. Each test runs as root, if the tests
//! do, and as an ordinary user.
//!
//! Environment: `CGFUSE_STRESS=FACTOR` makes the storms longer.

mod common;

mod events {
    mod births; // a process that gives birth
    mod netlink; // the proc connector
}
