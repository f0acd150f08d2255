//! The guide: pages of Markdown, compiled in, so that a program shows those of its own version.

mod html;
mod search;
mod terminal;

pub(crate) use html::{STYLE, missing_html, page_html, search_html};
pub use search::{Hit, search};
pub use terminal::for_terminal;

/// The way of a message as a picture (SVG), which the README and the page `architecture` show.
pub(crate) const PICTURE: &str = include_str!("way-of-a-message.svg");

/// A page of the guide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// Name of the page, by which commands and URLs call it.
    pub name: &'static str,
    /// Text of the page in Markdown.
    pub text: &'static str,
}

/// Makes the list of pages; each is the file of its name beside this one.
macro_rules! pages {
    ($($name:literal),+ $(,)?) => {
        &[$(Page { name: $name, text: include_str!(concat!($name, ".md")) }),+]
    };
}

/// All pages, in the order in which a newcomer reads them; the last five are for looking up.
pub const PAGES: &[Page] = pages![
    "clients",
    "client-library",
    "services",
    "push",
    "groups",
    "chat",
    "tokens",
    "limits",
    "tenants",
    "tls",
    "proxies",
    "discovery",
    "operating",
    "containers",
    "tuning",
    "benchmark",
    "troubleshooting",
    "architecture",
    "configuration",
    "endpoints",
    "metrics",
    "events",
    "codes",
];

impl Page {
    /// The page of that name.
    pub fn named(name: &str) -> Option<Self> {
        PAGES.iter().find(|page| page.name == name).copied()
    }

    /// Heading of the page.
    pub fn title(self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim_start()
    }

    /// The sentence under the heading, which says what the page is for. It may take several lines.
    pub fn summary(self) -> String {
        let lines = self.text.lines().skip(1).skip_while(|line| line.is_empty());
        lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_title_and_a_sentence() {
        for page in PAGES {
            assert!(page.text.starts_with("# ") && !page.title().is_empty(), "{}", page.name);
            let summary = page.summary();
            assert!(summary.ends_with('.') && !summary.contains(['<', '#']), "{summary}");
        }
        assert_eq!(Page::named("tls").map(|page| page.name), Some("tls"));
        assert_eq!(Page::named("nowhere"), None);
    }
}
