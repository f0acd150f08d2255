//! HdrHistogram's percentile files (`.hgrm`), which its plotter and others read: a row for each
//! step towards 100 %, with value, share, count so far and 1/(1-share).

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Steps between two halvings of what is left of the values; what HdrHistogram's tools write.
pub const STEPS_PER_HALF: u32 = 5;

/// Writes a histogram, whose values divided by `per_us` are microseconds.
pub fn write(histogram: &Histogram<u64>, per_us: f64) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for step in histogram.iter_quantiles(STEPS_PER_HALF) {
        count += step.count_since_last_iteration();
        let (value, share) =
            (step.value_iterated_to() as f64 / per_us, step.quantile_iterated_to());
        let _ = write!(out, "{value:12.3} {share:2.12} {count:10}");
        out += &if share < 1.0 { format!(" {:14.2}\n", 1.0 / (1.0 - share)) } else { "\n".into() };
    }
    let (mean, deviation) = (histogram.mean() / per_us, histogram.stdev() / per_us);
    let _ = write!(
        out,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        histogram.max() as f64 / per_us,
        histogram.len(),
        histogram.buckets(),
        sub_buckets(histogram)
    );
    out
}

/// Counts that each doubling of the values has: so many that two of them, of twice the power of ten
/// of the digits, differ in the last digit.
fn sub_buckets(histogram: &Histogram<u64>) -> u32 {
    (2 * 10_u32.pow(histogram.sigfig().into())).next_power_of_two()
}

/// Reads the rows of such a file: share and value. `None` = it is none.
pub fn read(text: &str) -> Option<Vec<(f64, f64)>> {
    let mut lines = text.lines();
    if !lines.next()?.trim_start().starts_with("Value") {
        return None;
    }
    let rows = lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let row = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse::<f64>);
        let (value, share) = (words.next()?.ok()?, words.next()?.ok()?);
        let is_good = value.is_finite() && value >= 0.0 && (0.0..=1.0).contains(&share);
        is_good.then_some((share, value))
    };
    rows.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut histogram = Histogram::<u64>::new(3).expect("digits");
        (1..=1000).for_each(|ms: u64| histogram.record(ms * 1_000_000).expect("in bounds"));
        let text = write(&histogram, 1000.0);
        assert!(text.contains("Total count    =         1000]"), "{text}");
        assert!(text.contains("SubBuckets     =         2048]"), "{text}");
        assert_eq!(sub_buckets(&Histogram::<u64>::new(2).expect("digits")), 256);
        let rows = read(&text).expect("a percentile file");
        let half = rows.iter().find(|(share, _)| *share >= 0.5).expect("half");
        assert!((half.1 - 500_000.0).abs() < 500.0, "{half:?}");
        assert_eq!(rows.last().map(|(share, _)| *share), Some(1.0));
    }

    #[test]
    fn other_files_are_none() {
        for text in ["", "#[Histogram log]", "{}", "Value Percentile\n\n1 2\n", "Value\nx y\n"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("  Value Percentile TotalCount 1/(1-Percentile)\n\n"), Some(vec![]));
    }
}
