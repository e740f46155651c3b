//! What is drawn, and what keys do to it. Knows neither nodes nor the terminal: it is told, and draws into a frame.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use indicatif::HumanBytes;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Margin, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, TableState, Wrap};

use super::figures::Figures;
use super::grid::{Column, Grid, len, shortened, shortened_inside};
use super::nodes::Seen;
use super::table::DASH;
use crate::limits::TOP_HISTORY_MAX;

/// What the figures mean, and what keys do.
const HELP: &str = "\
up, down, tab   choose a node, or all of them
p               pause, and go on
?               this text, and back
q, Esc, Ctrl-C  quit

All but totals since the start are of the last interval. Requests for
metrics are left out, but for their row among the routes.

first byte      from the end of a request to the first byte of the answer; p50: half of them took no longer, p99: 99 of 100
hits            how much was there already: NARs in the NAR cache; what is known of paths, and the trees of NARs, in memory
cold reads      long files that were not in memory and were read from a disk
truncated       answers that ended early since the start: body is this server's fault, peer and slow are clients'
loop lag        what the slowest worker takes for a turn; all its clients wait for it
queued          jobs that wait for a thread
damaged         store paths that are not what the database says: narwire scrub names them
database        stale: start narwire anew";

/// What the panels need at least so that no figure in them is cut.
const SIZE_MIN: (u16, u16) = (30, 13);

/// Of the panel of clients, whose names and figures are that long.
const CLIENTS_WIDTH: u16 = 25;
/// Likewise.
const INSIDE_WIDTH: u16 = 27;
/// Names of limits are longer; where there is room they are shown whole.
const INSIDE_WIDTH_MAX: u16 = 44;
/// What is left has to be so wide for routes to stand beside the others.
const ROUTES_WIDTH_MIN: u16 = 26;
/// A list that is lower says too little.
const LIST_HEIGHT_MIN: u16 = 5;
/// The border, the header, and the busiest route.
const ROUTES_HEIGHT_MIN: u16 = 4;

/// A figure of each node.
type NodeFigure = fn(&Figures) -> String;

const NODE_COLUMNS: [(Column, NodeFigure); 8] = {
    const fn column(
        title: &'static str,
        width: usize,
        worth: u8,
        figure: NodeFigure,
    ) -> (Column, NodeFigure) {
        (Column { title, width, worth }, figure)
    }
    [
        column("sent/s", 10, 8, |figures| bytes(figures.throughput())),
        column("req/s", 5, 7, |figures| count(figures.requests())),
        column("p99", 7, 6, |figures| seconds(figures.first_byte(0.99))),
        column("hits", 5, 2, |figures| percent(figures.nar_cache_hit_ratio())),
        column("conns", 5, 5, |figures| count(figures.value("narwire_connections"))),
        column("lag", 7, 1, |figures| seconds(figures.loop_lag())),
        column("memory", 10, 3, |figures| bytes(figures.value("process_resident_memory_bytes"))),
        column("CPU", 5, 4, |figures| percent(figures.rate("process_cpu_seconds_total"))),
    ]
};

/// What is shown.
pub struct Screen {
    nodes: Vec<Shown>,
    /// Throughput of all nodes, the newest at the end. Bytes a second.
    history: VecDeque<u64>,
    /// A row of the table of nodes.
    selected: usize,
    interval: Duration,
    is_paused: bool,
    has_help: bool,
}

/// A node as it is shown.
struct Shown {
    name: String,
    /// `None` before the first answer.
    seen: Option<Seen>,
    history: VecDeque<u64>,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Draw again.
    Draw,
    /// End.
    Quit,
}

impl Screen {
    /// Of nodes with these names, at least one, of which nothing is known yet.
    pub fn new(names: Vec<String>, interval: Duration) -> Self {
        let shown = |name| Shown { name, seen: None, history: VecDeque::new() };
        Self {
            nodes: names.into_iter().map(shown).collect(),
            history: VecDeque::new(),
            selected: 0,
            interval,
            is_paused: false,
            has_help: false,
        }
    }

    /// Whether nobody is to be asked.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Takes note of what came of asking a node.
    pub fn take(&mut self, index: usize, seen: Seen) {
        // What was asked before the pause.
        if self.is_paused {
            return;
        }
        if let Some(node) = self.nodes.get_mut(index) {
            remember(&mut node.history, seen.as_ref().ok().and_then(Figures::throughput));
            node.seen = Some(seen);
        }
    }

    /// An interval has gone by.
    pub fn tick(&mut self) {
        if !self.is_paused {
            let throughput = self.total().throughput();
            remember(&mut self.history, throughput);
        }
    }

    /// Does what a key is for.
    pub fn press(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Draw;
        }
        let rows = self.rows();
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if !self.has_help => return Next::Quit,
            KeyCode::Esc => self.has_help = false,
            KeyCode::Char('?') => self.has_help = !self.has_help,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Down | KeyCode::Tab | KeyCode::Char('j') => self.selected = (self.selected + 1) % rows,
            KeyCode::Up | KeyCode::BackTab | KeyCode::Char('k') => {
                self.selected = (self.selected + rows - 1) % rows;
            }
            _ => {}
        }
        Next::Draw
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame) {
        let Rect { width, height, .. } = frame.area();
        if width < SIZE_MIN.0 || height < SIZE_MIN.1 {
            let words = format!("too small: {} x {} at least", SIZE_MIN.0, SIZE_MIN.1);
            frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), frame.area());
            return;
        }
        if self.has_help {
            return draw_help(frame);
        }
        let nodes_height = u16::try_from(self.rows() + 3).unwrap_or(u16::MAX).min(height / 3).max(4);
        let throughput_height = match height {
            ..24 => 3,
            24..30 => 4,
            _ => 5,
        };
        let [title, throughput, middle, nodes, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(throughput_height),
            Constraint::Fill(1),
            Constraint::Length(nodes_height),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_title(frame, title);
        let total = self.total();
        let chosen = self.chosen();
        let (figures, history) = match chosen {
            None => (Some(&total), &self.history),
            Some(node) => (node.figures(), &node.history),
        };
        draw_throughput(frame, throughput, figures, history);
        match (figures, chosen.and_then(|node| node.seen.as_ref())) {
            (Some(figures), _) => draw_figures(frame, middle, figures, chosen.is_some()),
            (None, Some(Err(cause))) => {
                draw_text(frame, middle, " does not answer ", cause, Style::new().red());
            }
            (None, _) => draw_text(frame, middle, "", "is asked", Style::new().dim()),
        }
        self.draw_nodes(frame, nodes, &total);
        let words = ["up/down choose   p pause   ? help   q quit", "? help   q quit"];
        let words = words.into_iter().find(|words| len(words) <= usize::from(keys.width));
        frame.render_widget(words.unwrap_or_default().dim(), keys);
    }

    /// Rows of the table of nodes: one for all, where they are several.
    fn rows(&self) -> usize {
        self.nodes.len() + usize::from(self.has_total())
    }

    fn has_total(&self) -> bool {
        self.nodes.len() > 1
    }

    /// `None` when it is all of them.
    fn chosen(&self) -> Option<&Shown> {
        self.nodes.get(self.selected.checked_sub(usize::from(self.has_total()))?)
    }

    fn total(&self) -> Figures {
        Figures::total(self.nodes.iter().filter_map(Shown::figures))
    }

    fn draw_title(&self, frame: &mut Frame, area: Rect) {
        let down = self.nodes.iter().filter(|node| matches!(node.seen, Some(Err(_)))).count();
        let of = match self.chosen() {
            Some(node) => node.name.clone(),
            None => format!("{} nodes", self.nodes.len()),
        };
        let state = if self.is_paused {
            "paused".yellow().bold()
        } else {
            format!("every {} s", self.interval.as_secs_f64()).dim()
        };
        let version = self.chosen().and_then(Shown::figures).and_then(Figures::version);
        let version = version.map(|version| format!("version {version}").dim());
        let silent = (down > 0).then(|| format!("{down} of {} silent", self.nodes.len()).red().bold());
        // What matters least is left out first.
        let mut room = usize::from(area.width);
        let of = shortened_inside(&of, room);
        room -= len(&of);
        let mut take = |span: Option<Span<'static>>| {
            let span = span.filter(|span| len(&span.content) + 2 <= room)?;
            room -= len(&span.content) + 2;
            Some(span)
        };
        let (silent, state) = (take(silent), take(Some(state)));
        let (program, version) = (take(Some("narwire top".bold())), take(version));
        let spans = [program, Some(of.into()), version, silent].into_iter().flatten();
        let spans = spans.flat_map(|span| [Span::raw("  "), span]).skip(1);
        frame.render_widget(spans.collect::<Line>(), area);
        frame.render_widget(state.into_iter().collect::<Line>().right_aligned(), area);
    }

    fn draw_nodes(&self, frame: &mut Frame, area: Rect, total: &Figures) {
        let row = |name: &str, figures: Option<&Figures>| {
            let figures =
                figures.map(|figures| NODE_COLUMNS.iter().map(|(_, figure)| figure(figures)).collect());
            (name.to_owned(), figures.unwrap_or_default())
        };
        let all = self.has_total().then(|| row("all", Some(total)));
        let nodes = self.nodes.iter().map(|node| row(&node.name, node.figures()));
        let grid = Grid {
            title: "node",
            columns: NODE_COLUMNS.iter().map(|(column, _)| *column).collect(),
            rows: all.into_iter().chain(nodes).collect(),
        };
        // Beneath the border and the header.
        let inside = area.inner(Margin::new(1, 1));
        let lines = usize::from(inside.height.saturating_sub(1));
        let (table, name_width) = grid.table(usize::from(inside.width));
        let mut table = table.block(block(" nodes ", self.rows().saturating_sub(lines)));
        if self.rows() > 1 {
            table = table.row_highlight_style(Style::new().reversed());
        }
        let mut state = TableState::new().with_selected(self.selected);
        frame.render_stateful_widget(table, area, &mut state);
        // In place of figures, and as wide as all of them.
        let skipped = u16::try_from(name_width + 2).unwrap_or(u16::MAX).min(inside.width);
        let (x, width) = (inside.x + skipped, inside.width - skipped);
        for (index, node) in self.nodes.iter().enumerate() {
            let row = index + usize::from(self.has_total());
            let line = row.checked_sub(state.offset()).and_then(|line| u16::try_from(line + 1).ok());
            let Some(line) = line.filter(|line| *line < inside.height) else { continue };
            let (text, style) = match &node.seen {
                Some(Ok(_)) => continue,
                Some(Err(cause)) => (cause.as_str(), Style::new().red()),
                None => ("is asked", Style::new().dim()),
            };
            let text = Span::styled(shortened(text, usize::from(width)), style);
            frame.render_widget(text, Rect { x, y: inside.y + line, width, height: 1 });
        }
    }
}

impl Shown {
    fn figures(&self) -> Option<&Figures> {
        self.seen.as_ref()?.as_ref().ok()
    }
}

/// Around a panel; says how much there was no room for.
fn block(title: &str, hidden: usize) -> Block<'_> {
    let block = Block::bordered().title(title);
    if hidden == 0 { block } else { block.title_bottom(format!(" +{hidden} more ").dim()) }
}

fn draw_throughput(frame: &mut Frame, area: Rect, figures: Option<&Figures>, history: &VecDeque<u64>) {
    let width = usize::from(area.width.saturating_sub(2));
    let newest: Vec<u64> = history.iter().skip(history.len().saturating_sub(width)).copied().collect();
    let now = bytes(figures.and_then(Figures::throughput));
    let mut title = vec![" sent ".into(), format!("{now}/s").bold(), " ".into()];
    if let Some(most) = newest.iter().max() {
        let most = format!("(at most {}/s) ", HumanBytes(*most)).dim();
        if title.iter().map(Span::width).sum::<usize>() + most.width() <= width {
            title.push(most);
        }
    }
    let block = Block::bordered().title(Line::from(title));
    let padding = vec![0; width - newest.len()];
    let data = padding.into_iter().chain(newest);
    frame.render_widget(Sparkline::default().block(block).data(data).style(Style::new().cyan()), area);
}

fn draw_figures(frame: &mut Frame, area: Rect, figures: &Figures, is_one_node: bool) {
    let (clients, inside) = (client_entries(figures), inside_entries(figures, is_one_node));
    let places = places(area, &inside);
    draw_list(frame, places.clients, " clients ", clients);
    if let Some(place) = places.inside {
        draw_list(frame, place, " inside ", inside);
    }
    if let Some(place) = places.routes {
        draw_routes(frame, place, figures);
    }
}

/// Where the panels of figures are.
struct Places {
    clients: Rect,
    inside: Option<Rect>,
    routes: Option<Rect>,
}

/// Beside each other where all of it fits, else as many as there is room for beneath each other.
fn places(area: Rect, inside_entries: &[Entry]) -> Places {
    let spare = area.width.saturating_sub(CLIENTS_WIDTH + INSIDE_WIDTH);
    if spare >= ROUTES_WIDTH_MIN {
        let longest = inside_entries.iter().map(|(name, figure, _)| len(name) + len(figure) + 3).max();
        let wanted = u16::try_from(longest.unwrap_or(0)).unwrap_or(u16::MAX).min(INSIDE_WIDTH_MAX);
        let inside_width = wanted.clamp(INSIDE_WIDTH, INSIDE_WIDTH + (spare - ROUTES_WIDTH_MIN) / 2);
        let widths =
            [Constraint::Length(CLIENTS_WIDTH), Constraint::Fill(1), Constraint::Length(inside_width)];
        let [clients, routes, inside] = Layout::horizontal(widths).areas(area);
        return Places { clients, inside: Some(inside), routes: Some(routes) };
    }
    let are_lists_beside = area.width >= CLIENTS_WIDTH + INSIDE_WIDTH;
    let lists_height = if are_lists_beside { LIST_HEIGHT_MIN } else { 2 * LIST_HEIGHT_MIN };
    let has_routes = area.height >= lists_height + ROUTES_HEIGHT_MIN;
    let routes_height = if has_routes { (area.height / 3).max(ROUTES_HEIGHT_MIN) } else { 0 };
    let heights = [
        Constraint::Fill(1),
        Constraint::Length(routes_height.min(area.height - lists_height.min(area.height))),
    ];
    let [lists, routes] = Layout::vertical(heights).areas(area);
    let routes = has_routes.then_some(routes);
    let halves = [Constraint::Fill(1); 2];
    let [clients, inside] = if are_lists_beside {
        Layout::horizontal(halves).areas(lists)
    } else if area.height >= lists_height {
        Layout::vertical(halves).areas(lists)
    } else {
        return Places { clients: lists, inside: None, routes };
    };
    Places { clients, inside: Some(inside), routes }
}

/// A name, a figure, and whether it is one to worry about.
type Entry = (String, String, bool);

/// What clients have of it; what matters most is first, because the last are left out where there is no room.
fn client_entries(figures: &Figures) -> Vec<Entry> {
    let is_more_than_0 = |figure: Option<f64>| figure.is_some_and(|figure| figure > 0.0);
    let truncated = figures.rates_by("narwire_http_truncated_responses_total", "cause");
    let connections = match (figures.value("narwire_connections"), figures.value("narwire_connections_max")) {
        (open, Some(max)) => format!("{}/{}", count(open), count(Some(max))),
        (open, None) => count(open),
    };
    let mut entries = vec![
        plain("requests/s", count(figures.requests())),
        ("errors/s".to_owned(), count(figures.errors()), is_more_than_0(figures.errors())),
        plain("first byte p50", seconds(figures.first_byte(0.5))),
        plain("first byte p99", seconds(figures.first_byte(0.99))),
        plain("connections", connections),
        plain("in flight", count(figures.in_flight())),
        plain("NAR cache hits", percent(figures.nar_cache_hit_ratio())),
        plain("answer hits", percent(figures.answer_cache_hit_ratio())),
        plain("tree hits", percent(figures.layout_cache_hit_ratio())),
        (
            "truncated".to_owned(),
            count(figures.value("narwire_http_truncated_responses_total")),
            is_more_than_0(truncated.get("body").copied()),
        ),
    ];
    let labelled = |figures: BTreeMap<String, f64>, name: fn(&str) -> String| {
        figures.into_iter().map(move |(of, figure)| plain(name(&of), count(Some(figure)))).collect::<Vec<_>>()
    };
    entries.extend(labelled(figures.requests_by_status(), |status| format!("{status}/s")));
    entries.extend(labelled(figures.values_by("narwire_http_truncated_responses_total", "cause"), |cause| {
        format!("truncated: {cause}")
    }));
    entries
}

/// How the nodes are, in the same order.
fn inside_entries(figures: &Figures, is_one_node: bool) -> Vec<Entry> {
    let alarming = |name: &str, metric: &str| {
        let value = figures.value(metric);
        (name.to_owned(), count(value), value.is_some_and(|value| value > 0.0))
    };
    let stale = figures.value("narwire_database_stale");
    let database = match stale {
        Some(stale) if stale > 0.0 => "stale".to_owned(),
        Some(_) => format!("{} errors", count(figures.value("narwire_database_errors_total"))),
        None => DASH.to_owned(),
    };
    let is_down = figures.least("narwire_nar_cache_up") == Some(0.0);
    let cache = if is_down { "down".to_owned() } else { bytes(figures.value("narwire_nar_cache_bytes")) };
    let uploads = format!(
        "{} +{}",
        count(figures.value("narwire_uploads_under_way")),
        count(figures.value("narwire_uploads_waiting")),
    );
    let queues = figures.values_by("narwire_plane_queue_length", "plane");
    let queued = (!queues.is_empty()).then(|| queues.values().sum());
    let mut entries = vec![
        plain("loop lag p99", seconds(figures.loop_lag())),
        plain("queued", count(queued)),
        plain("cold reads/s", count(figures.rate("narwire_cold_reads_total"))),
        plain("uploads", uploads),
        alarming("damaged paths", "narwire_damaged_paths"),
        alarming("quarantined", "narwire_quarantined_files_total"),
        ("database".to_owned(), database, stale.is_some_and(|stale| stale > 0.0)),
        ("NAR cache".to_owned(), cache, is_down),
        plain("memory", bytes(figures.value("process_resident_memory_bytes"))),
        plain("CPU", percent(figures.rate("process_cpu_seconds_total"))),
    ];
    for (plane, length) in queues {
        entries.push(plain(format!("queued: {plane}"), count(Some(length))));
    }
    let results = figures.values_by("narwire_uploads_total", "result");
    entries.extend(
        results
            .into_iter()
            .filter(|(_, uploads)| *uploads > 0.0)
            .map(|(result, uploads)| plain(format!("uploads: {result}"), count(Some(uploads)))),
    );
    let limits = figures.values_by("narwire_limits_hit_total", "limit");
    entries.extend(
        limits
            .into_iter()
            .filter(|(_, hits)| *hits > 0.0)
            .map(|(limit, hits)| plain(format!("hit: {limit}"), count(Some(hits)))),
    );
    if is_one_node {
        for (worker, lag) in figures.loop_lag_by_worker(0.99) {
            entries.push(plain(format!("lag of worker {worker}"), seconds(Some(lag))));
        }
    }
    entries
}

fn plain(name: impl Into<String>, figure: String) -> Entry {
    (name.into(), figure, false)
}

fn draw_list(frame: &mut Frame, area: Rect, title: &str, mut entries: Vec<Entry>) {
    let (width, height) =
        (usize::from(area.width.saturating_sub(2)), usize::from(area.height.saturating_sub(2)));
    let hidden = entries.len().saturating_sub(height);
    if hidden > 0 {
        // What is to worry about is never among those that are left out.
        entries.sort_by_key(|(_, _, is_alarming)| !is_alarming);
    }
    let line = |(name, figure, is_alarming): Entry| {
        let name = shortened(&name, width.saturating_sub(len(&figure) + 1));
        let figure = format!(" {figure:>room$}", room = width.saturating_sub(len(&name) + 1));
        let figure = Span::from(figure);
        Line::from(vec![name.dim(), if is_alarming { figure.red().bold() } else { figure }])
    };
    let lines: Vec<Line> = entries.into_iter().take(height).map(line).collect();
    frame.render_widget(Paragraph::new(lines).block(block(title, hidden)), area);
}

/// Those routes that were ever asked for, the busiest first.
fn draw_routes(frame: &mut Frame, area: Rect, figures: &Figures) {
    let asked = figures.values_by("narwire_http_requests_total", "route");
    let requests = figures.rates_by("narwire_http_requests_total", "route");
    let sent = figures.rates_by("narwire_http_response_bytes_total", "route");
    let [p50, p99] = [0.5, 0.99]
        .map(|quantile| figures.quantiles_by("narwire_http_first_byte_seconds", "route", quantile));
    let mut routes: Vec<_> =
        asked.into_iter().filter(|(_, asked)| *asked > 0.0).map(|(route, _)| route).collect();
    let rate = |route: &String| requests.get(route).copied().unwrap_or_default();
    routes.sort_by(|one, other| rate(other).total_cmp(&rate(one)).then_with(|| one.cmp(other)));
    let rows = routes.into_iter().map(|route| {
        let of = |figures: &BTreeMap<String, f64>| figures.get(&route).copied();
        let figures = vec![count(of(&requests)), seconds(of(&p99)), seconds(of(&p50)), bytes(of(&sent))];
        (route, figures)
    });
    let column = |title, width, worth| Column { title, width, worth };
    let grid = Grid {
        title: "route",
        columns: vec![
            column("req/s", 5, 4),
            column("p99", 7, 3),
            column("p50", 7, 1),
            column("sent/s", 10, 2),
        ],
        rows: rows.collect(),
    };
    let inside = area.inner(Margin::new(1, 1));
    let hidden = grid.rows.len().saturating_sub(usize::from(inside.height.saturating_sub(1)));
    let (table, _) = grid.table(usize::from(inside.width));
    frame.render_widget(table.block(block(" routes ", hidden)), area);
}

fn draw_text(frame: &mut Frame, area: Rect, title: &str, text: &str, style: Style) {
    let block = Block::bordered().title(title);
    frame.render_widget(Paragraph::new(text).style(style).wrap(Wrap { trim: true }).block(block), area);
}

fn draw_help(frame: &mut Frame) {
    let area = frame.area();
    let block = Block::bordered().title(" help ");
    frame.render_widget(Paragraph::new(HELP).wrap(Wrap { trim: false }).block(block), area);
}

/// The newest at the end; a throughput that is not known is none.
fn remember(history: &mut VecDeque<u64>, throughput: Option<f64>) {
    while history.len() >= TOP_HISTORY_MAX {
        history.pop_front();
    }
    history.push_back(whole(throughput.unwrap_or_default()));
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and there is no NaN"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

fn bytes(number: Option<f64>) -> String {
    number.map_or_else(|| DASH.to_owned(), |number| HumanBytes(whole(number)).to_string())
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| DASH.to_owned(), |ratio| format!("{} %", count(Some((ratio * 100.0).round()))))
}

/// Three digits or so.
fn count(number: Option<f64>) -> String {
    let Some(number) = number else { return DASH.to_owned() };
    match number {
        ..1e1 if number.fract() != 0.0 => format!("{number:.1}"),
        ..1e4 => format!("{number:.0}"),
        ..1e6 => format!("{:.0}k", number / 1e3),
        ..1e9 => format!("{:.1}M", number / 1e6),
        ..1e12 => format!("{:.1}G", number / 1e9),
        _ => format!("{number:.0e}"),
    }
}

fn seconds(number: Option<f64>) -> String {
    let Some(number) = number else { return DASH.to_owned() };
    match number {
        ..1e-3 => format!("{:.0} µs", number * 1e6),
        ..1e-2 => format!("{:.1} ms", number * 1e3),
        ..1.0 => format!("{:.0} ms", number * 1e3),
        ..1e3 => format!("{number:.1} s"),
        _ => format!("{} s", count(Some(number.round()))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::{Buffer, Cell};
    use ratatui::style::Color;

    use super::*;
    use crate::cli::top::figures::Scrape;

    /// What a node is like that has sent so many bytes in two seconds.
    #[expect(clippy::unnecessary_wraps, reason = "as a node is seen")]
    fn up(bytes: u64) -> Seen {
        let text = |bytes: u64, requests: u64| {
            let mut text = format!(
                "narwire_build_info{{version=\"1.2.3\"}} 1\n\
                 narwire_http_requests_total{{route=\"nar\",status=\"200\"}} {requests}\n\
                 narwire_http_requests_total{{route=\"narinfo\",status=\"503\"}} {requests}\n\
                 narwire_http_requests_total{{route=\"listing\",status=\"200\"}} 0\n\
                 narwire_http_response_bytes_total{{route=\"nar\"}} {bytes}\n\
                 narwire_http_truncated_responses_total{{cause=\"body\"}} {requests}\n\
                 narwire_connections 12\nnarwire_connections_max 4096\nnarwire_database_stale 1\n\
                 narwire_damaged_paths 3\nnarwire_nar_cache_up 0\n\
                 narwire_plane_queue_length{{plane=\"lookup\"}} 2\nnarwire_plane_queue_length{{plane=\"walk\"}} 5\n\
                 narwire_limits_hit_total{{limit=\"connections\"}} 9\n\
                 process_resident_memory_bytes 104857600\nprocess_cpu_seconds_total {requests}\n"
            );
            for (series, le) in [("0", "0.001"), ("0", "+Inf"), ("1", "0.001"), ("1", "+Inf")] {
                let _ = writeln!(
                    text,
                    "narwire_ring_turn_seconds_bucket{{worker=\"{series}\",le=\"{le}\"}} {requests}\n\
                     narwire_http_first_byte_seconds_bucket{{route=\"nar\",le=\"{le}\"}} {requests}"
                );
            }
            text
        };
        let (before, after) = (Scrape::read(&text(0, 0)).unwrap(), Scrape::read(&text(bytes, 3)).unwrap());
        Ok(Figures::between(Some((&before, 2.0)), &after))
    }

    fn down() -> Seen {
        Err("cannot reach http://b: Connection refused".to_owned())
    }

    fn screen(seen: Vec<Option<Seen>>) -> Screen {
        let names = ["http://a", "http://b", "http://c"].map(str::to_owned);
        let mut screen = Screen::new(names[..seen.len()].to_vec(), Duration::from_secs(2));
        for (index, seen) in seen.into_iter().enumerate() {
            if let Some(seen) = seen {
                screen.take(index, seen);
            }
        }
        screen.tick();
        screen
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> (String, Buffer) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content().chunks(usize::from(width).max(1));
        let lines = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>() + "\n");
        (lines.collect(), buffer)
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Next {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    /// The text after `name`, up to a border.
    #[track_caller]
    fn figure<'a>(text: &'a str, name: &str) -> &'a str {
        let line = text.lines().find_map(|line| line.split_once(&format!("│{name}  ")));
        let (_, rest) = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        rest.split('│').next().unwrap().trim()
    }

    #[test]
    fn one_node_fills_the_smallest_terminal() {
        let (text, _) = drawn(&screen(vec![Some(up(8 << 20))]), 80, 24);
        assert!(text.starts_with("narwire top  http://a  version 1.2.3"), "{text}");
        assert!(text.contains(" sent 4.00 MiB/s (at most 4.00 MiB/s)"), "{text}");
        for (name, wanted) in [
            ("requests/s", "3"),
            ("errors/s", "1.5"),
            ("first byte p50", "500 µs"),
            ("connections", "12/4096"),
            ("in flight", "–"),
            ("truncated", "3"),
            ("loop lag p99", "990 µs"),
            ("queued", "7"),
            ("database", "stale"),
            ("NAR cache hits", "–"),
            ("NAR cache", "down"),
            ("damaged paths", "3"),
            ("memory", "100.00 MiB"),
            ("CPU", "150 %"),
        ] {
            assert_eq!(figure(&text, name), wanted, "{name} in\n{text}");
        }
        assert_eq!(figure(&text, "nar").split_whitespace().collect::<Vec<_>>(), ["1.5", "990", "µs"]);
        assert!(!text.contains("listing"), "nobody has asked for one:\n{text}");
    }

    #[test]
    fn a_large_terminal_shows_each_queue_worker_and_limit() {
        let (text, _) = drawn(&screen(vec![Some(up(1))]), 160, 50);
        for (name, wanted) in [
            ("queued: lookup", "2"),
            ("queued: walk", "5"),
            ("hit: connections", "9"),
            ("lag of worker 1", "990 µs"),
            ("503/s", "1.5"),
            ("truncated: body", "3"),
        ] {
            assert_eq!(figure(&text, name), wanted, "{name} in\n{text}");
        }
    }

    /// A node whose figures have many digits, so that no part of one is another.
    #[expect(clippy::unnecessary_wraps, reason = "as a node is seen")]
    fn busy(seed: f64) -> Seen {
        let text = |factor: f64| {
            let mut text = String::from("narwire_build_info{version=\"1.2.3\"} 1\n");
            let routes = [
                "nar",
                "narinfo",
                "realisation",
                "cache_info",
                "debuginfo",
                "health",
                "metrics",
                "page",
                "log",
            ];
            for (index, route) in (0_u32..).zip(routes) {
                let many = seed * factor * (f64::from(index) * 371.0 + 173.0).round();
                let _ = writeln!(
                    text,
                    "narwire_http_requests_total{{route=\"{route}\",status=\"200\"}} {many}\n\
                     narwire_http_response_bytes_total{{route=\"{route}\"}} {}\n\
                     narwire_http_first_byte_seconds_bucket{{route=\"{route}\",le=\"0.000878\"}} {many}\n\
                     narwire_http_first_byte_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {many}",
                    many * 68_987.0
                );
            }
            for cause in ["body", "peer", "slow"] {
                let _ = writeln!(
                    text,
                    "narwire_http_truncated_responses_total{{cause=\"{cause}\"}} {}",
                    factor * 4567.0
                );
            }
            let _ = writeln!(
                text,
                "narwire_connections 3789\nnarwire_connections_max 15876\nnarwire_http_requests_in_flight 987\n\
                 narwire_database_stale 0\nnarwire_database_errors_total 68\nnarwire_nar_cache_up 1\n\
                 narwire_nar_cache_bytes 78965436789\nnarwire_damaged_paths 876\nnarwire_quarantined_files_total 769\n\
                 narwire_uploads_under_way 36\nnarwire_uploads_waiting 58\nnarwire_cold_reads_total {}\n\
                 narwire_plane_queue_length{{plane=\"lookup\"}} 4763\n\
                 narwire_nar_cache_requests_total{{result=\"hit\"}} {}\n\
                 narwire_nar_cache_requests_total{{result=\"miss\"}} {}\n\
                 narwire_limits_hit_total{{limit=\"connections_per_address\"}} 6873\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"0\",le=\"0.000789\"}} {factor}\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"0\",le=\"+Inf\"}} {factor}\n\
                 process_resident_memory_bytes {}\nprocess_cpu_seconds_total {}",
                factor * 3458.0,
                factor * 67.0,
                factor * 33.0,
                seed * 789_654_321.0,
                factor * 3.58,
            );
            text
        };
        let (before, after) = (Scrape::read(&text(1.0)).unwrap(), Scrape::read(&text(2.0)).unwrap());
        Ok(Figures::between(Some((&before, 2.0)), &after))
    }

    fn busy_screen() -> Screen {
        let names =
            ["http://cache.example.org:6001", "http://cache.example.org:6002", "http://c.example.org:6003"];
        let mut screen = Screen::new(names.map(str::to_owned).to_vec(), Duration::from_secs(2));
        for (index, seen) in [busy(1.37), busy(7.89), down()].into_iter().enumerate() {
            screen.take(index, seen);
        }
        screen.tick();
        screen
    }

    /// Whatever is drawn that begins with a digit, with its unit.
    fn numbers(text: &str) -> Vec<String> {
        let text = text.replace("│200/s ", "│a status ");
        let text =
            text.replace(|character: char| "│┌┐└┘─()█▇▆▅▄▃▂▁".contains(character), "  ").replace("/s ", "  ");
        let words: Vec<&str> = text.split(' ').collect();
        let mut numbers = Vec::new();
        for (index, word) in words.iter().enumerate() {
            if !word.starts_with(|character: char| character.is_ascii_digit()) {
                continue;
            }
            let next = words.get(index + 1).copied().unwrap_or_default();
            let is_unit = ["µs", "ms", "s", "%", "B", "errors"].contains(&next) || next.ends_with("iB");
            let is_pair = next.starts_with('+');
            numbers.push(if is_unit || is_pair { format!("{word} {next}") } else { (*word).to_owned() });
        }
        numbers
    }

    /// All that may be drawn of these figures.
    fn whole_figures(figures: &Figures, history: &VecDeque<u64>) -> BTreeSet<String> {
        let mut whole: BTreeSet<String> = NODE_COLUMNS.iter().map(|(_, figure)| figure(figures)).collect();
        let entries = client_entries(figures).into_iter().chain(inside_entries(figures, true));
        whole.extend(entries.map(|(_, figure, _)| figure));
        let by_route = |figures: BTreeMap<String, f64>, text: fn(Option<f64>) -> String| {
            figures.into_values().map(|value| text(Some(value))).collect::<Vec<_>>()
        };
        whole.extend(by_route(figures.rates_by("narwire_http_requests_total", "route"), count));
        whole.extend(by_route(figures.rates_by("narwire_http_response_bytes_total", "route"), bytes));
        for quantile in [0.5, 0.99] {
            let quantiles = figures.quantiles_by("narwire_http_first_byte_seconds", "route", quantile);
            whole.extend(by_route(quantiles, seconds));
        }
        whole.extend(history.iter().map(|sent| HumanBytes(*sent).to_string()));
        whole
    }

    #[test]
    fn a_figure_is_shown_whole_or_not_at_all() {
        let mut screen = busy_screen();
        let mut whole = whole_figures(&screen.total(), &screen.history);
        for node in screen.nodes.iter().filter(|node| node.figures().is_some()) {
            whole.extend(whole_figures(node.figures().unwrap(), &node.history));
        }
        let sizes =
            [(30, 13), (40, 24), (52, 17), (60, 20), (77, 24), (78, 24), (80, 24), (120, 30), (200, 50)];
        for (width, height) in sizes {
            for selected in [0, 1, 2] {
                screen.selected = selected;
                let (text, _) = drawn(&screen, width, height);
                // The first line has no figures, but counts of nodes.
                let (_, figures) = text.split_once('\n').unwrap();
                let numbers = numbers(figures);
                assert!(numbers.len() >= 4, "{text}");
                for number in numbers {
                    assert!(whole.contains(&number), "{number:?} at {width} x {height}:\n{text}\n{whole:#?}");
                }
                let shown = |metric: &str, name: &str| {
                    assert!(
                        text.lines().any(|line| line.contains(name)),
                        "{metric} at {width} x {height}:\n{text}"
                    );
                };
                shown("requests", "requests/s ");
                if height > SIZE_MIN.1 {
                    shown("damage is to worry about", "damaged paths ");
                }
                if selected == 0 {
                    shown("throughput of all", &format!(" sent {}/s ", bytes(screen.total().throughput())));
                }
            }
        }
    }

    #[test]
    fn nodes_and_routes_have_names_in_narrow_terminals() {
        for (width, height) in [(40, 24), (60, 20), (80, 24), (200, 50)] {
            let (text, _) = drawn(&busy_screen(), width, height);
            for port in ["6001 ", "6002 ", "6003 "] {
                if height < 24 && port == "6003 " {
                    assert!(text.contains(" +1 more "), "{text}");
                    continue;
                }
                assert!(text.contains(port), "{port} at {width} x {height}:\n{text}");
            }
            assert_eq!(text.contains("http://cache.example.org:6001"), width == 200, "{text}");
            if width > 40 {
                assert!(text.contains("│log  "), "the busiest route at {width} x {height}:\n{text}");
            }
        }
    }

    #[test]
    fn a_wide_terminal_does_not_part_names_from_figures() {
        let (text, _) = drawn(&busy_screen(), 200, 50);
        for name in
            ["│log", "│http://cache.example.org:6001", "│connections ", "│hit: connections_per_address"]
        {
            let (_, rest) = text.lines().find_map(|line| line.split_once(name)).unwrap();
            let blanks = rest.chars().take_while(|character| *character == ' ').count();
            assert!((1..20).contains(&blanks), "{blanks} behind {name}:\n{text}");
        }
    }

    #[test]
    fn the_busiest_routes_are_first_and_what_is_left_out_is_counted() {
        let (text, _) = drawn(&busy_screen(), 80, 24);
        let place = |name: &str| text.find(&format!("│{name} ")).unwrap_or_else(|| panic!("{name}:\n{text}"));
        assert!(place("log") < place("page") && place("page") < place("metrics"), "{text}");
        let asked =
            |route: &str| format!("narwire_http_requests_total{{route=\"{route}\",status=\"200\"}} 1\n");
        let routes: String =
            "zyxwvutsrqponmlkjihgfedcba".chars().map(|route| asked(&route.to_string())).collect();
        let figures = Figures::between(None, &Scrape::read(&routes).unwrap());
        let (text, _) = drawn(&screen(vec![Some(Ok(figures))]), 80, 24);
        assert!(text.contains("│a  ") && !text.contains("│z  ") && text.contains(" +15 more "), "{text}");
    }

    #[test]
    fn a_terminal_that_is_too_small_is_told_how_large_it_should_be() {
        for (width, height) in [(20, 8), (29, 13), (30, 12), (200, 8)] {
            let (text, _) = drawn(&busy_screen(), width, height);
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words.join(" "), "too small: 30 x 13 at least");
        }
    }

    #[test]
    fn what_is_to_worry_about_is_red() {
        let (text, buffer) = drawn(&screen(vec![Some(up(1))]), 80, 24);
        let color_of = |word: &str| {
            let line = text.lines().position(|line| line.contains(word)).unwrap();
            let column = text.lines().nth(line).unwrap().split_once(word).unwrap().0.chars().count();
            buffer[(u16::try_from(column).unwrap(), u16::try_from(line).unwrap())].fg
        };
        assert_eq!((color_of("stale"), color_of("down")), (Color::Red, Color::Red));
        assert_ne!(color_of("12/4096"), Color::Red);
    }

    #[test]
    fn several_nodes_are_a_sum_and_each_can_be_chosen() {
        let mut screen = screen(vec![Some(up(2 << 20)), Some(down()), Some(up(4 << 20))]);
        let (text, _) = drawn(&screen, 100, 30);
        assert!(
            text.starts_with("narwire top  3 nodes  version")
                || text.starts_with("narwire top  3 nodes  1 of")
        );
        assert!(text.contains("1 of 3 silent") && text.contains(" sent 3.00 MiB/s"), "{text}");
        assert!(figure(&text, "all").starts_with("3.00 MiB"), "{text}");
        assert!(figure(&text, "http://c").starts_with("2.00 MiB"), "{text}");
        assert!(figure(&text, "http://b").contains("cannot reach http://b: Connection refused"), "{text}");
        assert!(!text.contains("lag of worker"), "{text}");

        let mut titles = Vec::new();
        for _ in 0..4 {
            press(&mut screen, KeyCode::Down);
            titles.push(drawn(&screen, 100, 30).0.lines().next().unwrap()[..22].to_owned());
        }
        assert_eq!(
            titles.iter().map(|title| title.split_whitespace().nth(2).unwrap()).collect::<Vec<_>>(),
            ["http://a", "http://b", "http://c", "3"]
        );
        press(&mut screen, KeyCode::Up);
        assert!(drawn(&screen, 100, 30).0.contains("sent 2.00 MiB/s"), "the last one");
        press(&mut screen, KeyCode::BackTab);
        let (text, _) = drawn(&screen, 100, 30);
        assert!(text.contains(" does not answer ") && text.contains(" sent –/s"), "{text}");
    }

    #[test]
    fn one_nar_cache_that_is_down_shows_among_others() {
        let well = Scrape::read("narwire_nar_cache_up 1\nnarwire_nar_cache_bytes 1024\n").unwrap();
        let well = || Some(Ok(Figures::between(None, &well)));
        let cache = |seen| figure(&drawn(&screen(seen), 80, 24).0, "NAR cache").to_owned();
        assert_eq!(cache(vec![well(), Some(up(1)), well()]), "down");
        assert_eq!(cache(vec![well(), well()]), "2.00 KiB");
    }

    #[test]
    fn who_has_not_answered_yet_is_asked() {
        let (text, _) = drawn(&screen(vec![None]), 80, 24);
        assert!(text.contains("http://a  is asked") && text.contains("sent –/s"), "{text}");
    }

    #[test]
    fn a_pause_keeps_what_was_seen() {
        let mut screen = screen(vec![Some(up(2 << 20))]);
        press(&mut screen, KeyCode::Char('p'));
        assert!(screen.is_paused());
        screen.take(0, down());
        screen.tick();
        let (text, _) = drawn(&screen, 80, 24);
        assert!(
            text.lines().next().unwrap().trim_end().ends_with("paused") && text.contains("sent 1.00 MiB/s")
        );
        press(&mut screen, KeyCode::Char('p'));
        screen.take(0, down());
        assert!(!screen.is_paused() && drawn(&screen, 80, 24).0.contains("does not answer"));
    }

    #[test]
    fn keys_help_and_end_it() {
        let mut screen = screen(vec![Some(up(1))]);
        assert_eq!(press(&mut screen, KeyCode::Char('?')), Next::Draw);
        let (text, _) = drawn(&screen, 80, 24);
        assert!(text.contains("choose a node") && text.contains("narwire scrub"), "{text}");
        assert_eq!(press(&mut screen, KeyCode::Esc), Next::Draw, "out of the help");
        assert!(!drawn(&screen, 80, 24).0.contains("choose a node,"));
        assert_eq!(press(&mut screen, KeyCode::Char('c')), Next::Draw);
        for (code, modifiers) in [
            (KeyCode::Char('q'), KeyModifiers::NONE),
            (KeyCode::Esc, KeyModifiers::NONE),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert_eq!(screen.press(KeyEvent::new(code, modifiers)), Next::Quit, "{code:?}");
        }
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut screen = screen(vec![Some(up(1)), Some(down()), None]);
        for has_help in [false, true] {
            screen.has_help = has_help;
            for width in [1, 2, 3, 10, 24, 26, 51, 53, 79] {
                for height in 1..30 {
                    screen.selected = usize::from(height % 4);
                    drawn(&screen, width, height);
                }
            }
        }
    }

    #[test]
    fn the_past_is_bounded_and_the_newest_is_at_the_end() {
        let mut history = VecDeque::from(vec![7; TOP_HISTORY_MAX]);
        remember(&mut history, Some(8.4));
        assert_eq!((history.len(), history.back()), (TOP_HISTORY_MAX, Some(&8)));
        remember(&mut history, None);
        assert_eq!(history.back(), Some(&0));
    }

    #[test]
    fn figures_are_short() {
        for (number, text) in [
            (None, "–"),
            (Some(0.0), "0"),
            (Some(0.25), "0.2"),
            (Some(9.0), "9"),
            (Some(12.3), "12"),
            (Some(9999.0), "9999"),
            (Some(123_456.0), "123k"),
            (Some(2.5e6), "2.5M"),
            (Some(1e300), "1e300"),
        ] {
            assert!(count(number).starts_with(text), "{number:?}: {}", count(number));
        }
        let spans = [0.000_08, 0.0042, 0.25, 12.0].map(|span| seconds(Some(span)));
        assert_eq!(spans, ["80 µs", "4.2 ms", "250 ms", "12.0 s"]);
        assert_eq!(
            (percent(Some(0.984)), bytes(Some(f64::MAX))),
            ("98 %".to_owned(), "16.00 EiB".to_owned())
        );
    }
}
