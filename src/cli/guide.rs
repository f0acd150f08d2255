//! `shardgate guide`: the pages of the guide, and a search in them.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, Write, stdout};
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;
use rustix::fs::{MemfdFlags, memfd_create};
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

/// Shows `text` by $PAGER, else `less`, if stdout is a terminal with fewer rows than it has lines.
/// The pager takes the place of this process, so that Ctrl-C is the pager's alone. Returns if the
/// text is not shown yet.
pub(super) fn page(text: &str) {
    if !stdout().is_terminal() || text.lines().count() < size().1 {
        return;
    }
    let pager = std::env::var("PAGER").ok().filter(|name| !name.trim().is_empty());
    let mut words = pager.as_deref().unwrap_or("less").split_whitespace();
    let (Some(program), Ok(input)) = (words.next(), in_memory(text)) else { return };
    // Only a pager that cannot be started comes back.
    let _ = Command::new(program).args(words).stdin(input).exec();
}

/// A file in memory with `text`, to be read from its beginning.
fn in_memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("guide", MemfdFlags::CLOEXEC)?);
    writeln!(file, "{text}")?;
    file.rewind()?;
    Ok(file)
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
            let row = format!("\n  {:<17}{}\n", page.name, page.summary());
            assert!(format!("\n{text}").contains(&row), "{}", page.name);
        }
    }

    #[test]
    fn a_pager_reads_the_whole_text() {
        let mut text = String::new();
        let mut file = in_memory("# A page").expect("memory");
        io::Read::read_to_string(&mut file, &mut text).expect("it is there");
        assert_eq!(text, "# A page\n");
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
