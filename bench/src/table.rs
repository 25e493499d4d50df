//! Results: medians with their spread, ratios between candidates of one row, and whether a wanted ratio was reached.

use std::fmt::Write;

/// What one candidate gave, one value for each repetition.
struct Series {
    name: &'static str,
    values: Vec<f64>,
}

impl Series {
    fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => values[n / 2],
            n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        }
    }

    /// Largest less smallest, in parts of the median.
    fn spread(&self) -> f64 {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if high > low { (high - low) / self.median() } else { 0.0 }
    }
}

/// A ratio that the row is to reach: `candidate / versus` (the best of them) against `bound`.
struct Goal {
    candidate: &'static str,
    /// Empty: the figure itself is compared.
    versus: &'static [&'static str],
    /// What must be reached or, when less is better, not exceeded.
    bound: f64,
}

/// How a goal came out.
pub struct Verdict {
    text: String,
    /// Nothing when one side was not measured.
    met: Option<bool>,
}

/// One line of the issue: a workload, its candidates and the goals.
pub struct Row {
    /// Short name, as given on the command line.
    pub name: &'static str,
    unit: &'static str,
    less_is_better: bool,
    series: Vec<Series>,
    goals: Vec<Goal>,
}

impl Row {
    /// A row without results yet. `unit` says what is measured, too.
    pub fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, less_is_better: false, series: Vec::new(), goals: Vec::new() }
    }

    /// Smaller is better (times, memory).
    pub fn less_is_better(mut self) -> Self {
        self.less_is_better = true;
        self
    }

    /// Wants `candidate` to be `bound` times the best of `versus` (at most, when less is better), or, when that is
    /// empty, to be `bound`.
    pub fn goal(mut self, candidate: &'static str, versus: &'static [&'static str], bound: f64) -> Self {
        self.goals.push(Goal { candidate, versus, bound });
        self
    }

    /// Adds a value of a candidate.
    pub fn add(&mut self, name: &'static str, value: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series { name, values: vec![value] }),
        }
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.series.iter().find(|series| series.name == name).map(Series::median)
    }

    /// How the goals came out.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.goals.iter().map(|goal| self.verdict(goal)).collect()
    }

    fn verdict(&self, goal: &Goal) -> Verdict {
        let against = match goal.versus {
            [] => String::new(),
            names => format!(" against {}", names.join(" or ")),
        };
        let subject = format!("{}: {}{against}", self.name, goal.candidate);
        let best = || {
            let figures = goal.versus.iter().filter_map(|name| self.median(name));
            if self.less_is_better { figures.reduce(f64::min) } else { figures.reduce(f64::max) }
        };
        let base = if goal.versus.is_empty() { Some(1.0) } else { best() };
        let ratio = self.median(goal.candidate).zip(base).map(|(own, base)| own / base);
        let Some(ratio) = ratio.filter(|ratio| ratio.is_finite()) else {
            return Verdict { text: format!("{subject}: not measured"), met: None };
        };
        let (met, sense) = match self.less_is_better {
            true => (ratio <= goal.bound, "at most"),
            false => (ratio >= goal.bound, "at least"),
        };
        let word = if met { "met" } else { "SHORT" };
        let text = format!("{subject}: {} ({sense} {} wanted): {word}", figure(ratio), short(goal.bound));
        Verdict { text, met: Some(met) }
    }

    /// Lines of Markdown: one for each candidate, then one for each goal.
    pub fn render(&self) -> String {
        let base = self.series.first().map_or(f64::NAN, Series::median);
        let first = self.series.first().map_or("the first", |series| series.name);
        let mut out = format!("\n### {} ({})\n\n", self.name, self.unit);
        let _ = writeln!(out, "| candidate | median | spread | ratio to {first} | runs |\n|---|---|---|---|---|");
        for series in &self.series {
            let median = series.median();
            let (spread, runs) = (series.spread() * 100.0, series.values.len());
            let _ = writeln!(
                out,
                "| {} | {} | {spread:.0} % | {:.3} | {runs} |",
                series.name,
                figure(median),
                median / base
            );
        }
        out.push('\n');
        for verdict in self.verdicts() {
            let _ = writeln!(out, "- {}", verdict.text);
        }
        out
    }
}

/// How many goals were met, and those that were not.
pub fn summary(verdicts: &[Verdict]) -> String {
    let met = verdicts.iter().filter(|verdict| verdict.met == Some(true)).count();
    let mut out = format!("\n### {met} of {} goals met\n\n", verdicts.len());
    for verdict in verdicts.iter().filter(|verdict| verdict.met != Some(true)) {
        let _ = writeln!(out, "- {}", verdict.text);
    }
    out
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

fn short(value: f64) -> String {
    format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_verdict(row: &Row) -> String {
        row.verdicts().remove(0).text
    }

    #[test]
    fn goals_are_judged_against_the_best_of_the_others() {
        let mut row = Row::new("x", "files/s").goal("ours", &["a", "b"], 2.0);
        for (name, value) in [("ours", 10.0), ("a", 3.0), ("b", 6.0), ("ours", 12.0), ("ours", 11.0)] {
            row.add(name, value);
        }
        assert_eq!(only_verdict(&row), "x: ours against a or b: 1.833 (at least 2 wanted): SHORT");
        assert!(row.render().contains("| ours | 11.0 | 18 % | 1.000 | 3 |"), "{}", row.render());
        assert!(summary(&row.verdicts()).contains("0 of 1 goals met"));

        let mut row = Row::new("x", "ms").less_is_better().goal("ours", &["a", "b"], 2.0);
        for (name, value) in [("ours", 5.0), ("a", 3.0), ("b", 6.0)] {
            row.add(name, value);
        }
        assert_eq!(only_verdict(&row), "x: ours against a or b: 1.667 (at most 2 wanted): met");
        assert!(summary(&row.verdicts()).contains("1 of 1 goals met"));
    }

    #[test]
    fn goals_without_figures_are_not_met() {
        for row in [Row::new("x", "MB/s"), Row::new("x", "ms").less_is_better()] {
            let mut row = row.goal("ours", &["a"], 1.0);
            row.add("ours", 5.0);
            assert_eq!(only_verdict(&row), "x: ours against a: not measured");
            assert!(row.verdicts()[0].met.is_none());
        }
        let mut row = Row::new("x", "s").less_is_better().goal("ours", &[], 0.2);
        row.add("ours", 0.25);
        assert_eq!(only_verdict(&row), "x: ours: 0.250 (at most 0.2 wanted): SHORT");
    }
}
