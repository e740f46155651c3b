//! Points that make curves, as tables and as data.

use std::fmt::Write as _;

/// What a curve shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    pub title: &'static str,
    /// What grows.
    pub across: &'static str,
    /// Of the values.
    pub unit: &'static str,
}

struct Point {
    axes: Axes,
    series: &'static str,
    x: usize,
    value: f64,
}

/// All points, in the order in which they were measured.
#[derive(Default)]
pub struct Curves(Vec<Point>);

impl Curves {
    pub fn add(&mut self, axes: Axes, series: &'static str, x: usize, value: f64) {
        eprintln!("{} {x}: {}, {series}: {value:.3} {}", axes.across, axes.title, axes.unit);
        self.0.push(Point { axes, series, x, value });
    }

    /// A table for each pair of axes: a line for each series, a column for each size.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for axes in distinct(self.0.iter().map(|point| point.axes)) {
            let points: Vec<_> = self.0.iter().filter(|point| point.axes == axes).collect();
            let sizes = distinct(points.iter().map(|point| point.x));
            let _ = write!(text, "{}, {}\n{:>26}", axes.title, axes.unit, axes.across);
            for size in &sizes {
                let _ = write!(text, " {size:>10}");
            }
            for series in distinct(points.iter().map(|point| point.series)) {
                let _ = write!(text, "\n{series:>26}");
                for size in &sizes {
                    let point = points.iter().find(|point| point.series == series && point.x == *size);
                    let value = point.map_or_else(String::new, |point| format!("{:.3}", point.value));
                    let _ = write!(text, " {value:>10}");
                }
            }
            text.push_str("\n\n");
        }
        text
    }

    /// A line for each point; no name has a comma in it. What is in the heading becomes comments.
    pub fn csv(&self, heading: &str) -> String {
        let mut text =
            format!("# {}\ntitle,across,unit,series,x,value\n", heading.trim_end().replace('\n', "\n# "));
        for Point { axes, series, x, value } in &self.0 {
            let _ = writeln!(text, "{},{},{},{series},{x},{value:.4}", axes.title, axes.across, axes.unit);
        }
        text
    }
}

/// What is different, in the order of first appearance.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}
