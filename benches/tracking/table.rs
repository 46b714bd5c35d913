//! The result: a Markdown table for each back end.

use std::fmt::{self, Display, Formatter};

use crate::report::verdict;
use crate::server::beat;

/// A row of a table.
#[derive(Default)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The figure without tracking, or of something else to compare with.
    pub(crate) floor: String,
    /// The figure.
    pub(crate) ours: String,
    /// One relative to the other.
    pub(crate) ratio: String,
    /// What was to be reached, and whether it was.
    pub(crate) goal: Option<(String, bool)>,
}

impl Row {
    /// A figure of its own.
    pub(crate) fn figure(what: &str, ours: impl Display) -> Self {
        Self { what: what.into(), ours: ours.to_string(), floor: "-".into(), ratio: "-".into(), goal: None }
    }

    /// Sets the goal.
    pub(crate) fn goal(self, goal: impl Display, hit: bool) -> Self {
        Self { goal: Some((goal.to_string(), hit)), ..self }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { what, floor, ours, ratio, goal } = self;
        let (goal, verdict) = goal.as_ref().map_or(("-", "-"), |(goal, hit)| (goal, verdict(*hit)));
        write!(f, "| {what} | {floor} | {ours} | {ratio} | {goal} | {verdict} |")
    }
}

/// The rows so far, by title.
#[derive(Default)]
pub(crate) struct Tables {
    rows: Vec<(String, Row)>,
    remarks: Vec<String>,
}

impl Tables {
    /// Adds a row to the table with that title.
    pub(crate) fn push(&mut self, title: &impl Display, row: Row) {
        beat();
        eprintln!("{title}: {row}");
        self.rows.push((title.to_string(), row));
    }

    /// Something a reader of the tables must know.
    pub(crate) fn remark(&mut self, text: String) {
        eprintln!("{text}");
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }
}

impl Display for Tables {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut titles: Vec<&str> = Vec::new();
        self.rows.iter().for_each(|(title, _)| {
            if !titles.contains(&title.as_str()) {
                titles.push(title);
            }
        });
        for title in titles {
            writeln!(f, "\n#### {title}\n")?;
            writeln!(f, "| what | compared with | figure | ratio | goal | |")?;
            writeln!(f, "|---|---|---|---|---|---|")?;
            for (_, row) in self.rows.iter().filter(|(of, _)| of == title) {
                writeln!(f, "{row}")?;
            }
        }
        writeln!(f)?;
        self.remarks.iter().try_for_each(|remark| writeln!(f, "- {remark}"))
    }
}

/// Sorted values.
pub(crate) struct Sorted(Vec<f64>);

impl Sorted {
    /// Sorts.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that a share of them does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle.
    pub(crate) fn median(&self) -> f64 {
        let n = self.0.len();
        if n == 0 { f64::NAN } else { f64::midpoint(self.0[(n - 1) / 2], self.0[n / 2]) }
    }

    /// Between which values the true median is, 19 times of 20.
    pub(crate) fn confidence(&self) -> (f64, f64) {
        let n = self.0.len() as f64;
        let at = |rank: f64| self.0.get((rank.max(1.0) as usize).min(self.0.len()) - 1).copied().unwrap_or(f64::NAN);
        let half = 0.98 * n.sqrt();
        (at((n / 2.0 - half).floor()), at((n / 2.0 + half).ceil() + 1.0))
    }
}
