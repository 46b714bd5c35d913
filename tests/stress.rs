//! Races, by the number of rounds: short unless CGFUSE_STRESS=FACTOR makes them longer. Each prints what it has seen.

mod common;
mod sandbox;

mod stress {
    mod exits; // members exit while their groups are listed
    mod killed; // the server dies in the middle
    mod locks; // everything at once
    mod moves; // whole processes are moved while they create threads
    mod names; // groups come, go and change names, with members
    mod release; // groups that empty while nobody looks
    mod repin; // CPUs are changed while members fork
    mod reuse; // pids of dead members are used again
    mod storm; // the process that makes the storms
    mod threads; // single threads are moved while they fork
    mod users; // as an ordinary user
}
