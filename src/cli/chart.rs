//! Charts of percentile curves as SVG, in the colours of the reader's system: light or dark.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::percentile_file::STEPS_PER_HALF;

/// Size of the picture, and of the margins around the curves.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 52.0;
/// Characters of the title that fit into the width, of 8 each; all are in the picture's own title.
const TITLE_CHARS: usize = 96;
/// Room between two names of curves.
const NAME_HEIGHT: f64 = 20.0;
/// Most curves; their names fill the height then. More are lines that nobody can tell apart.
pub const CURVES_MAX: usize = 18;
/// Colours of curves in turn, for light and for dark: each stands out from its ground by 3:1 or
/// more, and neighbours differ in lightness, too.
const COLOURS: [(&str, &str); 6] = [
    ("#0b5cad", "#6cb2f5"),
    ("#b5533c", "#f0977f"),
    ("#2b7a3d", "#74c98a"),
    ("#7a4fa3", "#c3a1e6"),
    ("#8a6d00", "#e0c04a"),
    ("#4d5963", "#b4bfc9"),
];
/// Decades of 1/(1-p) that are shown at most: to 99.9999 %.
const DECADES_MAX: f64 = 6.0;

/// A curve: for rising shares of the values (0 to 1) the largest of them, in microseconds.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// Name, for people.
    pub name: String,
    /// Share and value.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The curve of a histogram, whose values divided by `per_us` are microseconds.
    pub fn of(name: String, histogram: &Histogram<u64>, per_us: f64) -> Self {
        let steps = histogram.iter_quantiles(STEPS_PER_HALF);
        let point = |step: hdrhistogram::iterators::IterationValue<u64>| {
            (step.quantile_iterated_to(), step.value_iterated_to() as f64 / per_us)
        };
        Self { name, points: steps.map(point).collect() }
    }
}

/// The part of the plane that is shown.
struct Axes {
    /// Decades of 1/(1-p) to the right end.
    decades: f64,
    /// Values at the bottom and at the top, powers of ten times 1, 2 or 5.
    low: f64,
    high: f64,
}

impl Axes {
    fn of(curves: &[Curve]) -> Self {
        let values = || curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.1.max(0.1)));
        let least = values().fold(f64::INFINITY, f64::min);
        let most = values().fold(0.1, f64::max);
        let least = if least.is_finite() { least } else { 1.0 };
        let right = curves.iter().flat_map(|curve| &curve.points).filter(|p| p.0 < 1.0);
        let right = right.map(|p| decades(p.0)).fold(1.0, f64::max);
        let low = ticks(1e-1, least).last().copied().unwrap_or(0.1);
        let high = ticks(most, most * 10.0).first().copied().unwrap_or(most);
        // Curves that are flat need some height, too.
        let high = if high <= low { low * 10.0 } else { high };
        Self { decades: right.min(DECADES_MAX), low, high }
    }

    fn x(&self, quantile: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (decades(quantile).min(self.decades) / self.decades)
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part
    }
}

/// Decades of 1/(1-p): 0 for 0, 1 for 90 %, 2 for 99 %.
fn decades(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-12).log10()
}

/// Powers of ten times 1, 2 and 5 from `low` to `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let tens = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let all = tens.flat_map(|ten| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(ten)));
    all.filter(|tick| (low * 0.999..=high * 1.001).contains(tick)).collect()
}

/// Draws curves over an axis on which each step is ten times rarer than the one before.
pub fn percentiles(title: &str, curves: &[Curve]) -> String {
    let curves = &curves[..curves.len().min(CURVES_MAX)];
    let axes = Axes::of(curves);
    let shown = match title.char_indices().nth(TITLE_CHARS) {
        Some((end, _)) => escaped(&format!("{}…", &title[..end])),
        None => escaped(title),
    };
    let title = escaped(title);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"t\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title id=\"t\">{title}</title>\n{}\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"15\" font-weight=\"600\">{shown}</text>\n",
        style()
    );
    grid(&mut out, &axes);
    for (n, curve) in curves.iter().enumerate() {
        draw(&mut out, &axes, n, curve);
    }
    out += "</svg>\n";
    out
}

/// The colours, which follow the reader's system.
fn style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (n, (for_light, for_dark)) in COLOURS.iter().enumerate() {
        let _ = write!(light, ".c{n}{{stroke:{for_light}}}.n{n}{{fill:{for_light}}}");
        let _ = write!(dark, ".c{n}{{stroke:{for_dark}}}.n{n}{{fill:{for_dark}}}");
    }
    format!(
        "<style>text{{fill:#1c2227}}.ground{{fill:#fff}}.grid{{stroke:#dde2e6}}\
         .curve{{fill:none;stroke-width:2;stroke-linejoin:round}}.quiet{{fill:#55606a}}{light}\
         @media(prefers-color-scheme:dark){{text{{fill:#e6eaee}}.ground{{fill:#15191d}}\
         .grid{{stroke:#343c44}}.quiet{{fill:#a3adb7}}{dark}}}</style>\n"
    )
}

fn grid(out: &mut String, axes: &Axes) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for value in ticks(axes.low, axes.high) {
        let y = axes.y(value);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/><text class=\"quiet\" x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            time(value)
        );
    }
    let names = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
    for (decade, name) in names.iter().enumerate().filter(|(n, _)| *n as f64 <= axes.decades) {
        let x = axes.x(1.0 - 10_f64.powi(-(decade as i32)));
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/><text class=\"quiet\" x=\"{x:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            bottom + 20.0
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"quiet\" x=\"{LEFT}\" y=\"{:.1}\">share of the values that took at most so \
         long</text>",
        HEIGHT - 10.0
    );
}

fn draw(out: &mut String, axes: &Axes, n: usize, curve: &Curve) {
    let class = n % COLOURS.len();
    // The second and third round of colours have lines of their own.
    let dashes = match n / COLOURS.len() {
        0 => "",
        1 => " stroke-dasharray=\"7 4\"",
        _ => " stroke-dasharray=\"2 3\"",
    };
    let mut path = String::new();
    for (quantile, value) in &curve.points {
        let verb = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{verb}{:.1} {:.1}", axes.x(*quantile), axes.y(*value));
    }
    let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 10.0 + n as f64 * NAME_HEIGHT);
    let name = escaped(&curve.name);
    let _ = writeln!(
        out,
        "<path class=\"curve c{class}\"{dashes} d=\"{path}\"/>\
         <path class=\"curve c{class}\"{dashes} d=\"M{x:.1} {:.1}h18\"/>\
         <text class=\"n{class}\" x=\"{:.1}\" y=\"{y:.1}\">{name}</text>",
        y - 4.0,
        x + 24.0
    );
}

/// A time in microseconds, for people.
pub fn time(us: f64) -> String {
    match us {
        _ if us < 10.0 => format!("{} us", (us * 10.0).round() / 10.0),
        _ if us < 1000.0 => format!("{us:.0} us"),
        _ if us < 10_000.0 => format!("{} ms", (us / 10.0).round() / 100.0),
        _ if us < 1_000_000.0 => format!("{} ms", (us / 100.0).round() / 10.0),
        _ => format!("{} s", (us / 10_000.0).round() / 100.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, factor: u64) -> Curve {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 3).expect("bounds");
        (1..=1000).for_each(|us| histogram.record(us * factor).expect("in bounds"));
        Curve::of(name.into(), &histogram, 1.0)
    }

    #[test]
    fn curves_rise_from_left_to_right_within_the_picture() {
        let curves = [curve("a", 1), curve("b", 10)];
        let axes = Axes::of(&curves);
        assert_eq!((axes.low, axes.high), (1.0, 10_000.0));
        for curve in &curves {
            let at: Vec<(f64, f64)> =
                curve.points.iter().map(|(q, v)| (axes.x(*q), axes.y(*v))).collect();
            assert!(at.windows(2).all(|two| two[0].0 <= two[1].0 && two[0].1 >= two[1].1));
            assert!(
                at.iter().all(|(x, y)| (LEFT..=WIDTH - RIGHT).contains(x)
                    && (TOP..=HEIGHT - BOTTOM).contains(y))
            );
        }
    }

    #[test]
    fn a_chart_is_xml_whatever_its_names_are_and_has_both_grounds() {
        let text = percentiles("a <b> & c", &[curve("<x>", 1)]);
        assert!(text.contains("a &lt;b&gt; &amp; c") && text.contains("&lt;x&gt;"), "{text}");
        assert!(text.contains("prefers-color-scheme:dark") && text.contains(">99 %<"), "{text}");
        assert_eq!(text.matches('<').count(), text.matches('>').count());
        let long = percentiles(&"ä".repeat(200), &[]);
        assert_eq!(long.matches('ä').count(), 200 + TITLE_CHARS);
    }

    #[test]
    fn a_chart_of_nothing_or_of_one_value_is_drawn() {
        let empty = Histogram::<u64>::new(3).expect("digits");
        let one = Curve { name: "one".into(), points: vec![(1.0, 0.0)] };
        for curves in [vec![], vec![Curve::of("none".into(), &empty, 1.0)], vec![one]] {
            let text = percentiles("t", &curves);
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn times_have_three_digits_and_their_unit() {
        for (us, text) in [
            (0.5, "0.5 us"),
            (250.4, "250 us"),
            (1_234.0, "1.23 ms"),
            (45_678.0, "45.7 ms"),
            (2_000_000.0, "2 s"),
        ] {
            assert_eq!(time(us), text);
        }
    }
}
