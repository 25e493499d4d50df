//! Results: medians with their spread, ratios between candidates of one row, and whether a wanted ratio was reached.

use std::fmt::Write;

/// What one candidate gave, one value for each repetition.
pub struct Series {
    /// The candidate's name.
    pub name: String,
    /// Values in the row's unit.
    pub values: Vec<f64>,
}

impl Series {
    /// The middle value.
    pub fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => values[n / 2],
            n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        }
    }

    fn spread(&self) -> f64 {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (high - low) / self.median()
    }
}

/// A ratio that the row is to reach: `candidate / versus` (the best of them) against `bound`.
pub struct Goal {
    /// Whose figure.
    pub candidate: &'static str,
    /// Against whose; the best of these. Empty: the figure itself is compared.
    pub versus: &'static [&'static str],
    /// What the ratio must reach (or, for [`Row::less_is_better`], not exceed).
    pub bound: f64,
}

/// One line of the issue: a workload, its candidates and the goals.
pub struct Row {
    /// Short name, as given on the command line.
    pub name: &'static str,
    /// What is measured.
    pub unit: &'static str,
    /// Whether a smaller figure is the better one.
    pub less_is_better: bool,
    /// The candidates.
    pub series: Vec<Series>,
    /// The goals.
    pub goals: Vec<Goal>,
}

impl Row {
    /// A row without results yet.
    pub fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, less_is_better: false, series: Vec::new(), goals: Vec::new() }
    }

    /// Smaller is better (times, memory).
    pub fn less_is_better(mut self) -> Self {
        self.less_is_better = true;
        self
    }

    /// Adds a goal.
    pub fn goal(mut self, candidate: &'static str, versus: &'static [&'static str], bound: f64) -> Self {
        self.goals.push(Goal { candidate, versus, bound });
        self
    }

    /// Adds a value of a candidate.
    pub fn add(&mut self, name: &str, value: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series { name: name.to_owned(), values: vec![value] }),
        }
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.series.iter().find(|series| series.name == name).map(Series::median).filter(|value| value.is_finite())
    }

    /// Lines of Markdown: one for each candidate, then one for each goal.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let base = self.series.first().map_or(f64::NAN, Series::median);
        let _ = writeln!(out, "\n### {} ({})\n\n| candidate | median | spread | ratio to the first | runs |\n|---|---|---|---|---|", self.name, self.unit);
        for series in &self.series {
            let median = series.median();
            let _ = writeln!(
                out,
                "| {} | {} | {:.0} % | {:.3} | {} |",
                series.name,
                figure(median),
                series.spread() * 100.0,
                median / base,
                series.values.len()
            );
        }
        for goal in &self.goals {
            let best = |names: &[&str]| {
                let figures = names.iter().filter_map(|name| self.median(name));
                if self.less_is_better { figures.fold(f64::INFINITY, f64::min) } else { figures.fold(f64::NAN, f64::max) }
            };
            let Some(own) = self.median(goal.candidate) else { continue };
            let (ratio, against) = if goal.versus.is_empty() {
                (own, "itself".to_owned())
            } else {
                (own / best(goal.versus), goal.versus.join(" or "))
            };
            if !ratio.is_finite() {
                let _ = writeln!(out, "\n- {} against {against}: not measured", goal.candidate);
                continue;
            }
            let met = if self.less_is_better { ratio <= goal.bound } else { ratio >= goal.bound };
            let _ = writeln!(
                out,
                "\n- {} against {against}: {} ({} {} wanted): {}",
                goal.candidate,
                figure(ratio),
                if self.less_is_better { "at most" } else { "at least" },
                goal.bound,
                if met { "met" } else { "SHORT" }
            );
        }
        out
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_against_the_best_of_the_others() {
        let mut row = Row::new("x", "files/s").goal("ours", &["a", "b"], 2.0);
        for (name, value) in [("ours", 10.0), ("a", 3.0), ("b", 6.0), ("ours", 12.0), ("ours", 11.0)] {
            row.add(name, value);
        }
        assert!(row.render().contains("ours against a or b: 1.833 (at least 2 wanted): SHORT"), "{}", row.render());
        let mut row = Row::new("x", "ms").less_is_better().goal("ours", &["a", "b"], 2.0);
        for (name, value) in [("ours", 5.0), ("a", 3.0), ("b", 6.0)] {
            row.add(name, value);
        }
        assert!(row.render().contains("1.667 (at most 2 wanted): met"), "{}", row.render());
    }
}
