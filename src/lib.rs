//! The cgroup v1 file interface as a FUSE file system, with real effect from user space.
//!
//! Layers, arrows point down only: [`cli`] starts the server, [`fuse`] is the view, [`vfs`] is what kernfs is to
//! the kernel's cgroup, [`cgroup`] is the model, [`controllers`] are its rows, [`tracker`] keeps membership true,
//! [`nsproxy`] makes and holds namespaces, [`inject`] has running threads execute system calls, [`sys`] is the machine. doc/ARCHITECTURE.md tells the life of a write and the order of the locks.

pub mod bitmap;
pub mod cgroup;
pub mod cli;
pub mod controllers;
pub mod error;
pub mod fuse;
pub mod inject;
pub mod nsproxy;
pub mod options;
pub mod sys;
pub mod tracker;
pub mod vfs;
