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
