//! Search in the guide: sections that contain all words asked for, best first.

use super::{PAGES, Page};

/// A section that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// Page of the section.
    pub page: Page,
    /// Heading of the section.
    pub heading: &'static str,
    /// First line of the section that contains one of the words, without Markdown's marks.
    pub line: String,
}

/// Sections of a page: heading and text, the page's own heading first. A `#` inside of a code block
/// begins none.
pub(super) fn sections(page: Page) -> Vec<(&'static str, &'static str)> {
    let text = page.text;
    let (mut starts, mut at, mut in_code) = (Vec::new(), 0, false);
    for line in text.split_inclusive('\n') {
        in_code ^= line.starts_with("```");
        if !in_code && line.starts_with('#') {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let cut = starts.iter().zip(ends).map(|(&start, end)| {
        let section = &text[start..end];
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        (heading.trim_start_matches('#').trim(), body)
    });
    cut.collect()
}

/// Anchor of a heading within its page, as GitHub makes it: lower case, spaces as hyphens, nothing
/// but letters, digits, hyphens and underscores.
pub(super) fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

/// Finds the sections that contain all words of `asked`, whatever their case. Those with a word in
/// the heading come first, then those in which the words stand more often.
pub fn search(asked: &str) -> Vec<Hit> {
    let words: Vec<String> = asked.split_whitespace().map(str::to_lowercase).collect();
    if words.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<(usize, Hit)> = Vec::new();
    for page in PAGES {
        for (heading, body) in sections(*page) {
            let (title, text) = (heading.to_lowercase(), body.to_lowercase());
            if !words.iter().all(|word| title.contains(word) || text.contains(word)) {
                continue;
            }
            let in_title = words.iter().filter(|word| title.contains(*word)).count();
            let in_text: usize = words.iter().map(|word| text.matches(word.as_str()).count()).sum();
            let has_word = |line: &&str| {
                let line = line.to_lowercase();
                words.iter().any(|word| line.contains(word))
            };
            let line = body.lines().find(has_word).or_else(|| body.lines().find(|l| !l.is_empty()));
            let line = plain(line.unwrap_or_default());
            found.push((in_title * 1000 + in_text.min(999), Hit { page: *page, heading, line }));
        }
    }
    // A stable sort: of equals the one that stands first in the guide comes first.
    found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    found.into_iter().map(|(_, hit)| hit).collect()
}

/// A line without the marks of Markdown: emphasis, code, table bars, targets of links.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line.trim().trim_matches('|').trim_start_matches(['-', '#', ' ']);
    while let Some((before, after)) = rest.split_once("](") {
        out += before;
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out += rest;
    out.replace(['`', '*', '['], "").replace(" | ", " · ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_that_have_all_words_are_found_best_first() {
        let hits = search("etcd lease");
        assert!(!hits.is_empty(), "the guide explains etcd");
        for hit in &hits {
            let (_, body) = *sections(hit.page)
                .iter()
                .find(|(heading, _)| *heading == hit.heading)
                .expect("a section of its page");
            let all = format!("{} {body}", hit.heading).to_lowercase();
            assert!(all.contains("etcd") && all.contains("lease"), "{hit:?}");
        }
        let by_title = search("certificate");
        assert!(by_title[0].heading.to_lowercase().contains("certificate"), "{:?}", by_title[0]);
        assert_eq!(search("  "), []);
        assert_eq!(search("no-page-has-this-word"), []);
    }

    #[test]
    fn comments_in_code_are_no_headings() {
        let text = "# A\nx\n```sh\n# no heading\n```\n## B\ny\n";
        let page = Page { name: "test", text };
        let headings: Vec<&str> = sections(page).iter().map(|(heading, _)| *heading).collect();
        assert_eq!(headings, ["A", "B"]);
    }

    #[test]
    fn lines_are_shown_without_their_marks() {
        assert_eq!(plain("| `a.b` | **x** | see [TLS](tls.md#a) |"), "a.b · x · see TLS");
        assert_eq!(plain("- one"), "one");
    }

    #[test]
    fn anchors_are_those_of_github() {
        assert_eq!(anchor("Renew a certificate"), "renew-a-certificate");
        assert_eq!(anchor("`[limits]`: what, why?"), "limits-what-why");
    }
}
