//! The tracker whose table programs in the kernel keep, with real tasks.

// fork(2) of the test itself.
#![allow(unsafe_code)]

mod common;
#[allow(dead_code)]
#[path = "stress/storm.rs"]
mod storm;

mod bpf {
    mod births; // how tasks come and go
    mod stress; // they do so while they are moved
    mod takeover; // a later server goes on
    mod tasks; // what the tests of this binary share
}
