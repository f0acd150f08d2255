//! Where the time goes, as an operator sees it: histograms by interval.

use crate::support::{Config, Gateway, eventually};

#[test]
fn the_times_of_each_interval_are_appended_to_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("times.hlog");
    let config =
        Config::new().key("histograms.every_s = 1").key(&format!("histograms.file = {path:?}"));
    let gateway = Gateway::start(&config);
    let intervals = |at_least: usize| {
        eventually("intervals are written", || {
            let text = std::fs::read_to_string(&path).ok()?;
            let stalls = text.lines().filter(|line| line.starts_with("Tag=stall-0,"));
            (stalls.count() >= at_least).then_some(text)
        })
    };
    let text = intervals(2);
    assert!(text.starts_with("#[Histogram log of shardgate "), "{text}");
    let starts: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Tag=stall-0,")?.split(',').next()?.parse().ok())
        .collect();
    assert!(starts.is_sorted_by(|a, b| a < b), "{starts:?}");
    // Off by a reload: no more is written, and nobody is asked.
    gateway.rewrite(&Config::new().key("histograms.every_s = 0"));
    let (status, answer) = gateway.admin_post("/reload", "");
    assert_eq!(status, 200, "{answer}");
    assert!(gateway.log().contains("histogram_log: "), "{}", gateway.log());
}
