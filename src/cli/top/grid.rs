//! A table of names and their figures, in whatever room there is. A figure is shown whole or not at all: where there is no room, columns
//! go, those of the least worth first, and names are shortened.

use ratatui::layout::Constraint;
use ratatui::style::Stylize as _;
use ratatui::text::Text;
use ratatui::widgets::{Row, Table};

/// For what was left out of a text.
pub const ELLIPSIS: char = '…';

/// Between two columns.
const SPACING: usize = 1;
/// Columns go for names up to this length; longer ones are shortened.
const NAME_LEN_KEPT: usize = 16;

/// A figure of each row.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Stands above it.
    pub title: &'static str,
    /// What its figures seldom exceed. It is no narrower, or it would jump with each of them.
    pub width: usize,
    /// Where there is no room, the column with the lowest goes first.
    pub worth: u8,
}

/// What is in a table.
pub struct Grid {
    /// What names are of.
    pub title: &'static str,
    /// The order of the figures.
    pub columns: Vec<Column>,
    /// Names, and a figure for each column; those of which nothing is known have none.
    pub rows: Vec<(String, Vec<String>)>,
}

impl Grid {
    /// As wide as its content, and at most `room`; and how wide names are in it.
    pub fn table(mut self, room: usize) -> (Table<'static>, usize) {
        let without_scheme = self.names_without_scheme();
        let longest = |names: &mut dyn Iterator<Item = &str>| names.map(len).max().unwrap_or(0);
        let of_whole = longest(&mut self.names());
        let of_shortened = longest(&mut without_scheme.iter().map(String::as_str));
        let widths = self.widths();
        let mut kept: Vec<usize> = (0..self.columns.len()).collect();
        let room_for_names = |kept: &[usize]| {
            let figures: usize = kept.iter().map(|index| widths[*index] + SPACING).sum();
            room.saturating_sub(figures)
        };
        let wanted = of_shortened.clamp(len(self.title), NAME_LEN_KEPT);
        while room_for_names(&kept) < wanted
            && let Some(least) = (0..kept.len()).min_by_key(|place| self.columns[kept[*place]].worth)
        {
            kept.remove(least);
        }
        let name_width = of_whole.max(wanted).min(room_for_names(&kept));
        if of_whole > name_width {
            for ((name, _), shortened) in self.rows.iter_mut().zip(without_scheme) {
                *name = shortened_inside(&shortened, name_width);
            }
        }
        let header = kept.iter().map(|index| self.columns[*index].title.to_owned());
        let header = figure_row(self.title.to_owned(), header).dim();
        let rows = self.rows.into_iter().map(|(name, figures)| {
            let figures = kept.iter().filter_map(|index| figures.get(*index).cloned()).collect::<Vec<_>>();
            figure_row(name, figures)
        });
        let widths = [name_width].into_iter().chain(kept.iter().map(|index| widths[*index]));
        let widths = widths.map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)));
        let spacing = u16::try_from(SPACING).unwrap_or(1);
        (Table::new(rows, widths).header(header).column_spacing(spacing), name_width)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|(name, _)| name.as_str())
    }

    /// Of each column.
    fn widths(&self) -> Vec<usize> {
        let width = |(index, column): (usize, &Column)| {
            let figures = self.rows.iter().filter_map(|(_, figures)| figures.get(index));
            figures.map(|figure| len(figure)).fold(column.width.max(len(column.title)), usize::max)
        };
        self.columns.iter().enumerate().map(width).collect()
    }

    /// What all URLs begin with tells none from another.
    fn names_without_scheme(&self) -> Vec<String> {
        let mut schemes = self.names().filter_map(|name| Some(name.split_once("://")?.0));
        let first = schemes.next();
        let scheme = first.filter(|first| schemes.all(|scheme| scheme == *first));
        let scheme = scheme.map(|scheme| format!("{scheme}://")).unwrap_or_default();
        self.names().map(|name| name.strip_prefix(&scheme).unwrap_or(name).to_owned()).collect()
    }
}

/// A name, and behind it figures whose ends are below each other.
fn figure_row(name: String, figures: impl IntoIterator<Item = String>) -> Row<'static> {
    let figures = figures.into_iter().map(|figure| Text::from(figure).right_aligned());
    Row::new([Text::from(name)].into_iter().chain(figures))
}

/// In columns of a terminal, for which one character is one here.
pub fn len(text: &str) -> usize {
    text.chars().count()
}

/// Its begin, if it is longer.
pub fn shortened(text: &str, width: usize) -> String {
    if len(text) <= width {
        return text.to_owned();
    }
    let mark = (width > 0).then_some(ELLIPSIS);
    text.chars().take(width.saturating_sub(1)).chain(mark).collect()
}

/// Its begin and its end, if it is longer: hosts differ in the one, ports in the other.
pub fn shortened_inside(text: &str, width: usize) -> String {
    if len(text) <= width {
        return text.to_owned();
    }
    let end = width.saturating_sub(1) / 2;
    let begin = shortened(text, width - end);
    begin.chars().chain(text.chars().skip(len(text) - end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shortened_where_it_tells_least() {
        for (width, end, inside) in [
            (9, "cache:500", "cache:500"),
            (8, "cache:5…", "cach…500"),
            (3, "ca…", "c…0"),
            (1, "…", "…"),
            (0, "", ""),
        ] {
            assert_eq!(
                (shortened("cache:500", width), shortened_inside("cache:500", width)),
                (end.to_owned(), inside.to_owned())
            );
        }
    }
}
