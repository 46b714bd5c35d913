//! Random numbers that can be had again.

/// Numbers from a seed: CGFUSE_SEED, or one that nobody has had.
pub struct Random {
    /// To be printed, for the next time.
    pub seed: u64,
    state: u64,
}

impl Random {
    /// A new sequence.
    pub fn new() -> Random {
        let given = std::env::var("CGFUSE_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().expect("a time").as_nanos() as u64 | 1);
        Random { seed, state: seed }
    }

    /// The next one, below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % bound
    }
}
