//! `shardgate guide`: the pages of the guide, and a search in them.

use std::io::{IsTerminal, Write, stdout};
use std::process::{Command, Stdio};

use clap::Args;
use rustix::termios::tcgetwinsize;

use super::{EXIT_USAGE, Output};
use crate::guide::{PAGES, Page, for_terminal, search};

/// Sections that a search shows: a screen of them.
const HITS_MAX: usize = 20;
/// Columns of a terminal that does not tell its size.
const COLUMNS: usize = 80;
/// Longest line of text; a wider terminal is no easier to read.
const COLUMNS_MAX: usize = 110;

/// Flags of `shardgate guide`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct GuideArgs {
    /// Name of the page; none: the list of pages
    page: Option<String>,
    /// Show the sections that contain all of these words
    #[arg(long, value_name = "WORDS", conflicts_with = "page")]
    search: Option<String>,
}

/// Shows the list of pages, a page, or the sections that were searched for.
pub fn show(args: &GuideArgs) -> Output {
    match (&args.page, &args.search) {
        (Some(name), _) => match Page::named(name) {
            Some(page) => Output::paged(for_this_terminal(page.text)),
            None => Output::wrong(
                format!("no page \"{name}\" in this guide; the pages are\n\n{}", list()),
                EXIT_USAGE,
            ),
        },
        (None, Some(words)) => found(words),
        (None, None) => Output::fine(list()),
    }
}

/// The pages with their sentences.
fn list() -> String {
    let rows = PAGES.iter().map(|page| format!("  {:<17}{}\n", page.name, page.summary()));
    let rows: String = rows.collect();
    format!(
        "{rows}\nshardgate guide PAGE shows one, shardgate guide --search WORDS finds sections.\n\
         A gateway that runs shows them at /guide of its admin endpoint."
    )
}

/// The sections with all of `words`.
fn found(words: &str) -> Output {
    let hits = search(words);
    if hits.is_empty() {
        return Output::wrong(
            format!("no section of the guide has all of these words: {words}; fewer find more"),
            EXIT_USAGE,
        );
    }
    let mut text = String::new();
    for hit in hits.iter().take(HITS_MAX) {
        text += &format!("{}: {}\n    {}\n", hit.page.name, hit.heading, hit.excerpt);
    }
    if hits.len() > HITS_MAX {
        text += &format!("… and {} more; more words find fewer\n", hits.len() - HITS_MAX);
    }
    Output::fine(text + "\nshardgate guide PAGE shows the page before the colon.")
}

/// `text` for stdout: fitted to a terminal, as it is for everything else.
fn for_this_terminal(text: &str) -> String {
    match stdout().is_terminal() {
        true => for_terminal(text, size().0.min(COLUMNS_MAX)),
        false => text.to_owned(),
    }
}

/// Columns and rows of the terminal on stdout.
fn size() -> (usize, usize) {
    match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 => (size.ws_col.into(), size.ws_row.into()),
        Ok(_) | Err(_) => (COLUMNS, 0),
    }
}

/// Prints the text of `output`. One to be paged goes through $PAGER, else `less`, if stdout is a
/// terminal with fewer rows than it has lines, and the pager can be started.
pub fn print(output: &Output) {
    let text = &output.text;
    let long = output.paged && stdout().is_terminal() && text.lines().count() >= size().1;
    if long && paged(text) {
        return;
    }
    // A reader that has gone away (`| head`) is no error.
    let _ = writeln!(stdout(), "{text}");
}

/// Whether a pager could be started; it has shown `text` then.
fn paged(text: &str) -> bool {
    let pager = std::env::var("PAGER").ok().filter(|name| !name.trim().is_empty());
    let mut words = pager.as_deref().unwrap_or("less").split_whitespace();
    let Some(program) = words.next() else { return false };
    let child = Command::new(program).args(words).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut input) = child.stdin.take() {
        // Whoever leaves the pager early does not want the rest.
        let _ = writeln!(input, "{text}");
    }
    child.wait().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> GuideArgs {
        GuideArgs { page: Some(name.into()), search: None }
    }

    fn words(words: &str) -> GuideArgs {
        GuideArgs { page: None, search: Some(words.into()) }
    }

    #[test]
    fn the_list_names_every_page() {
        let Output { text, code, .. } = show(&GuideArgs::default());
        assert_eq!(code, 0);
        for page in PAGES {
            assert!(text.contains(&format!("\n  {} ", page.name)) || text.starts_with("  clients"));
        }
    }

    #[test]
    fn a_page_is_its_text_and_an_unknown_one_is_told_with_the_list() {
        let Output { text, code, .. } = show(&page("tls"));
        assert_eq!((text.starts_with("# "), code), (true, 0));
        let Output { text, code, .. } = show(&page("tsl"));
        assert!(text.contains("\"tsl\"") && text.contains("\n  tls "), "{text}");
        assert_eq!(code, EXIT_USAGE);
    }

    #[test]
    fn a_search_names_pages_and_sections() {
        let Output { text, code, .. } = show(&words("certificate renew"));
        assert!(text.contains("tls: ") && code == 0, "{text}");
        let Output { text, code, .. } = show(&words("no-page-has-this-word"));
        assert!(text.contains("no-page-has-this-word") && code == EXIT_USAGE);
    }
}
