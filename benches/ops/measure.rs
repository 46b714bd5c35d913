//! Interleaved timing, and ratios that survive a noisy machine.
//!
//! The contenders take turns in small batches. What disturbs the machine for longer than a batch
//! disturbs them all, and is gone from the ratio, which is taken within each round.

use crate::children::end_servers;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// A contender: performs that many operations and tells the time of each of its `P` phases.
pub(crate) type Batch<'a, const P: usize> = Box<dyn FnMut(usize) -> io::Result<[Duration; P]> + Send + 'a>;

/// Nanoseconds per operation, one figure a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

/// The ratios of the rounds of two contenders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

impl Samples {
    /// Median nanoseconds per operation.
    pub(crate) fn median(&self) -> f64 {
        median(&self.0)
    }

    /// This contender relative to `floor`, round by round.
    pub(crate) fn over(&self, floor: &Samples) -> Ratio {
        let ratios: Vec<f64> = self.0.iter().zip(&floor.0).map(|(a, b)| a / b).collect();
        Ratio {
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(0.0, f64::max),
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// For all contenders and rounds together.
    pub(crate) budget: Duration,
    /// How long a batch of the slowest contender should take.
    pub(crate) batch: Duration,
}

/// Rounds below which a median means little.
const MIN_ROUNDS: usize = 5;
const MAX_ROUNDS: usize = 301;

/// A batch that takes longer waits for a server that will never answer.
const STUCK: Duration = Duration::from_secs(60);

/// Measures the contenders in turn until the budget is used; the results in their order.
///
/// Each has a client thread of its own: the scheduler places a server by its client's history of
/// wake-ups, and a common client would pass on what one contender's server did to it.
pub(crate) fn interleave<const P: usize>(pace: Pace, contenders: Vec<Batch<'_, P>>) -> io::Result<Vec<[Samples; P]>> {
    thread::scope(|scope| {
        let clients: Vec<_> = contenders.into_iter().map(|batch| Client::start(scope, batch)).collect();
        let size = batch_size(pace, &clients)?;
        let mut samples: Vec<[Samples; P]> = clients.iter().map(|_| std::array::from_fn(|_| Samples::default())).collect();
        let end = Instant::now() + pace.budget;
        for round in 0..MAX_ROUNDS {
            if round >= MIN_ROUNDS && Instant::now() > end {
                break;
            }
            for turn in 0..clients.len() {
                // Nobody always follows the same predecessor.
                let i = (turn + round) % clients.len();
                settle();
                clients[i].run(2)?;
                let spent = clients[i].run(size)?;
                for (series, time) in samples[i].iter_mut().zip(spent) {
                    series.0.push(time.as_secs_f64() * 1e9 / size as f64);
                }
            }
        }
        Ok(samples)
    })
}

/// A thread that runs a contender's batches when told.
struct Client<const P: usize> {
    orders: Sender<usize>,
    results: Receiver<io::Result<[Duration; P]>>,
}

impl<const P: usize> Client<P> {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, mut batch: Batch<'scope, P>) -> Self {
        let (orders, todo) = channel();
        let (done, results) = channel();
        scope.spawn(move || todo.iter().try_for_each(|n| done.send(batch(n))));
        Self { orders, results }
    }

    fn run(&self, n: usize) -> io::Result<[Duration; P]> {
        self.orders.send(n).map_err(io::Error::other)?;
        self.results.recv_timeout(STUCK).unwrap_or_else(|_| {
            end_servers();
            Err(io::Error::other("no answer for a minute: all servers have been ended"))
        })
    }
}

/// An even number (most operations go to and fro) that lets the slowest contender fill a batch.
fn batch_size<const P: usize>(pace: Pace, clients: &[Client<P>]) -> io::Result<usize> {
    let mut slowest: f64 = 1e-9;
    for client in clients {
        client.run(2)?;
        settle();
        let spent: Duration = client.run(4)?.iter().sum();
        slowest = slowest.max(spent.as_secs_f64() / 4.0);
    }
    let size = pace.batch.as_secs_f64() / slowest;
    Ok((size as usize).clamp(2, 2000) & !1)
}

/// Lets the previous server finish what nobody waits for (RELEASE, FORGET).
fn settle() {
    thread::sleep(Duration::from_micros(500));
}

/// A contender that repeats one operation.
pub(crate) fn repeat<'a>(mut op: impl FnMut() -> io::Result<()> + Send + 'a) -> Batch<'a, 1> {
    Box::new(move |n| {
        let start = Instant::now();
        for _ in 0..n {
            op()?;
        }
        Ok([start.elapsed()])
    })
}

/// A contender that does `forth` n times, then `back` n times; both get the operation's number.
pub(crate) fn there_and_back<'a>(
    mut forth: impl FnMut(usize) -> io::Result<()> + Send + 'a,
    mut back: impl FnMut(usize) -> io::Result<()> + Send + 'a,
) -> Batch<'a, 2> {
    Box::new(move |n| {
        let start = Instant::now();
        (0..n).try_for_each(&mut forth)?;
        let there = start.elapsed();
        let start = Instant::now();
        (0..n).try_for_each(&mut back)?;
        Ok([there, start.elapsed()])
    })
}
