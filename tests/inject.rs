//! Injection into real processes: what each of them sees of it. Longer with CGFUSE_STRESS=FACTOR.

mod common;

mod inject {
    mod blocked; // blocking calls and how they end
    mod calls; // blocking calls go on
    mod compat; // 32-bit processes
    mod killed; // the injector dies
    mod moves; // namespaces, directories, several threads
    mod refused; // what cannot be, and why
    mod signals; // order of signals, registers, restartable sequences
    mod storms; // targets that do not keep still
    mod target; // the process that is injected into
    mod undo; // all or none
    mod users; // without privileges
    mod writer; // a thread that waits for us
}

on_other_kernels!(
    "tests/inject/target.c",
    "inject::killed::a_signal_that_was_seen",
    "inject::killed::one_thread",
    "inject::killed::signals",
    "inject::signals::registers",
    "inject::signals::restartable_sequences",
    "inject::signals::signals_in_order",
    "inject::signals::syscall_user_dispatch",
    "inject::users::yama",
);
