//! The result as Markdown tables.

use std::fmt::{self, Display, Formatter};

use crate::measure::{Ratio, Samples};

/// Where client and servers may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All on one CPU.
    Pinned,
    /// Where the scheduler likes.
    Unpinned,
}

/// What a ratio has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most this much of the floor.
    AtMost(f64),
    /// Less than the floor.
    Below,
    /// Less than the ratio of the pinned run (the work is spread over the CPUs).
    BelowPinned,
    /// Just told.
    None,
}

struct Row {
    mode: Mode,
    name: String,
    floor: String,
    ours: String,
    ratio: String,
    goal: String,
    verdict: &'static str,
}

/// The rows so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    remarks: Vec<String>,
    pinned: Vec<(String, f64)>,
}

/// For the last column.
pub(crate) fn verdict(hit: bool) -> &'static str {
    if hit { "hit" } else { "**miss**" }
}

/// Nanoseconds for people.
pub(crate) struct Time(pub(crate) f64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns if ns < 1e6 => write!(f, "{:.2} µs", ns / 1e3),
            ns => write!(f, "{:.2} ms", ns / 1e6),
        }
    }
}

/// What was measured on.
pub(crate) fn machine() -> String {
    let system = nix::sys::utsname::uname();
    let release = system.as_ref().map_or("?".into(), |u| u.release().to_string_lossy().into_owned());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("?");
    let cpus = info.lines().filter(|l| l.starts_with("processor")).count();
    format!("Linux {release}, {cpus} CPUs ({model})")
}

impl Report {
    /// A ratio of ours to a floor.
    pub(crate) fn ratio(&mut self, mode: Mode, name: &str, ours: &Samples, (floor_name, floor): (&str, &Samples), goal: Goal) {
        let Ratio { median, min, max } = ours.over(floor);
        let key = format!("{name}/{floor_name}");
        let pinned = self.pinned.iter().find(|(k, _)| *k == key).map(|(_, ratio)| *ratio);
        let (goal, hit) = match (goal, pinned) {
            (Goal::AtMost(most), _) => (format!("≤ {most:.2}"), Some(median <= most)),
            (Goal::Below, _) => ("< 1".into(), Some(median < 1.0)),
            (Goal::BelowPinned, Some(pinned)) => (format!("< {pinned:.2} (pinned)"), Some(median < pinned)),
            (Goal::BelowPinned, None) | (Goal::None, _) => ("-".into(), None),
        };
        if mode == Mode::Pinned {
            self.pinned.push((key, median));
        }
        self.push(Row {
            mode,
            name: name.into(),
            floor: format!("{floor_name}: {}", Time(floor.median())),
            ours: Time(ours.median()).to_string(),
            ratio: format!("{median:.2} [{min:.2}..{max:.2}]"),
            goal,
            verdict: hit.map_or("-", verdict),
        });
    }

    /// A size that has a limit of its own, or none.
    pub(crate) fn size(&mut self, name: &str, bytes: f64, most: Option<f64>) {
        let show = |bytes: f64| match bytes {
            b if b < 1_048_576.0 => format!("{:.2} KiB", b / 1024.0),
            b => format!("{:.1} MiB", b / 1_048_576.0),
        };
        self.push(Row {
            mode: Mode::Unpinned,
            name: name.into(),
            floor: "-".into(),
            ours: show(bytes),
            ratio: "-".into(),
            goal: most.map_or("-".into(), |m| format!("≤ {}", show(m))),
            verdict: most.map_or("-", |m| verdict(bytes <= m)),
        });
    }

    fn push(&mut self, row: Row) {
        eprintln!("{:?} {}", row.mode, row);
        self.rows.push(row);
    }

    /// Something a reader of the tables must know.
    pub(crate) fn remark(&mut self, text: String) {
        eprintln!("{text}");
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, floor, ours, ratio, goal, verdict, .. } = self;
        write!(f, "| {name} | {floor} | {ours} | {ratio} | {goal} | {verdict} |")
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let tables = [(Mode::Pinned, "Client and servers on one CPU"), (Mode::Unpinned, "Unpinned")];
        for (mode, title) in tables {
            writeln!(f, "\n### {title}\n")?;
            writeln!(f, "| what | floor, median | cgfuse, median | ratio, median [min..max] | goal | |")?;
            writeln!(f, "|---|---|---|---|---|---|")?;
            for row in self.rows.iter().filter(|row| row.mode == mode) {
                writeln!(f, "{row}")?;
            }
        }
        writeln!(f)?;
        self.remarks.iter().try_for_each(|remark| writeln!(f, "- {remark}"))
    }
}
