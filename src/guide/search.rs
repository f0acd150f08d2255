//! Search in the guide: sections that contain all words asked for, best first.

use super::{PAGES, Page};

/// Words of a question that count; more would only cost the thread that answers a request.
const WORDS_MAX: usize = 8;
/// Characters of an excerpt: three lines on a phone.
const EXCERPT_CHARS_MAX: usize = 160;

/// A section that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// Page of the section.
    pub page: Page,
    /// Heading of the section.
    pub heading: &'static str,
    /// First paragraph, item or row of the section that contains one of the words, cut to
    /// [`EXCERPT_CHARS_MAX`], without Markdown's marks.
    pub excerpt: String,
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

/// Finds the sections that contain all words of `asked`, the first [`WORDS_MAX`] of them, whatever
/// their case. Those with a word in
/// the heading come first, then those in which the words stand more often.
pub fn search(asked: &str) -> Vec<Hit> {
    let words = asked.split_whitespace().take(WORDS_MAX);
    let words: Vec<String> = words.map(str::to_lowercase).collect();
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
            let all = paragraphs(body);
            let has_word = |text: &&String| {
                let text = text.to_lowercase();
                words.iter().any(|word| text.contains(word))
            };
            let excerpt = all.iter().find(has_word).or_else(|| all.first());
            let excerpt = cut(&plain(excerpt.map_or("", |text| text)));
            found.push((in_title * 1000 + in_text.min(999), Hit { page: *page, heading, excerpt }));
        }
    }
    // A stable sort: of equals the one that stands first in the guide comes first.
    found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    found.into_iter().map(|(_, hit)| hit).collect()
}

/// Paragraphs, items of lists and rows of tables of a text, each as one line; no fences and no
/// rules under the heads of tables.
fn paragraphs(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines().map(str::trim) {
        let is_mark = line.starts_with("```") || line.starts_with("|-") || line.starts_with("| :-");
        let begins = line.starts_with(['|', '-']) || line.starts_with("<!--");
        match all.last_mut().filter(|_| goes_on && !begins) {
            _ if line.is_empty() || is_mark => goes_on = false,
            Some(last) => *last += &format!(" {line}"),
            None => {
                all.push(line.to_owned());
                goes_on = true;
            }
        }
    }
    all
}

/// `text`, or its beginning of at most [`EXCERPT_CHARS_MAX`] characters, to the end of a word.
fn cut(text: &str) -> String {
    let Some((end, _)) = text.char_indices().nth(EXCERPT_CHARS_MAX) else {
        return text.to_owned();
    };
    let end = text[..end].rfind(' ').unwrap_or(end);
    format!("{} …", &text[..end])
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
        let many = format!("{} no-page-has-this-word", "a ".repeat(WORDS_MAX));
        assert_ne!(search(&many), [], "further words do not count");
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
    fn an_excerpt_is_a_whole_paragraph_or_row_and_not_long() {
        let text = "One\ntwo.\n\n- item\n  goes on\n\n| a | b |\n|---|---|\n| `c` | d |\n";
        assert_eq!(paragraphs(text), ["One two.", "- item goes on", "| a | b |", "| `c` | d |"]);
        assert_eq!(cut("short"), "short");
        let long = cut(&"word ".repeat(100));
        assert!(long.ends_with("word …") && long.len() <= EXCERPT_CHARS_MAX + 4, "{long}");
    }

    #[test]
    fn anchors_are_those_of_github() {
        assert_eq!(anchor("Renew a certificate"), "renew-a-certificate");
        assert_eq!(anchor("`[limits]`: what, why?"), "limits-what-why");
    }
}
