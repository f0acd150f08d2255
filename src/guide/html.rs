//! The guide as HTML for the admin endpoint: one column that a phone can show, no script, nothing
//! from elsewhere.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::search::{anchor, search};
use super::{PAGES, Page};

/// Style of the pages.
pub(crate) const STYLE: &str = include_str!("guide.css");
/// Beginning of links to files of the repository. The endpoint does not serve those: they are named
/// instead of linked.
const SOURCE: &str = "../../";

/// The page as a whole HTML document.
pub(crate) fn page_html(page: Page) -> String {
    let mut body = String::new();
    pulldown_cmark::html::push_html(&mut body, events(page.text).into_iter());
    document(page.title(), Some(page.name), "", &contents(page), &body)
}

/// The list of pages; or, if something is asked, what the guide says of it.
pub(crate) fn search_html(asked: &str) -> String {
    let mut body = String::new();
    if asked.trim().is_empty() {
        body += "<h1>Guide</h1>\n<dl>\n";
        for page in PAGES {
            let summary = inline(&page.summary());
            body += &format!(
                "<dt><a href=\"/guide/{}\">{}</a></dt><dd>{summary}</dd>\n",
                page.name,
                escape(page.title())
            );
        }
        body += "</dl>\n";
        return document("Guide", None, "", "", &body);
    }
    let hits = search(asked);
    let shown = escape(asked.trim());
    body += &format!("<h1>{} sections with “{shown}”</h1>\n<dl>\n", hits.len());
    for hit in &hits {
        body += &format!(
            "<dt><a href=\"/guide/{}#{}\">{}: {}</a></dt><dd>{}</dd>\n",
            hit.page.name,
            anchor(hit.heading),
            escape(hit.page.title()),
            inline(hit.heading),
            escape(&hit.excerpt)
        );
    }
    body += "</dl>\n";
    if hits.is_empty() {
        body += "<p>No section has all of these words. Fewer words find more.</p>\n";
    }
    document("Search", None, asked.trim(), "", &body)
}

/// The answer for a page that the guide does not have.
pub(crate) fn missing_html(name: &str) -> String {
    let body = format!(
        "<h1>No such page</h1>\n<p>The guide of this version has no page “{}”.</p>\n",
        escape(name)
    );
    document("No such page", None, name, "", &body)
}

/// The document around `body`. `asked` stands in the field of the search.
fn document(title: &str, here: Option<&str>, asked: &str, contents: &str, body: &str) -> String {
    let mut links = String::new();
    for page in PAGES {
        let mark = if here == Some(page.name) { " aria-current=\"page\"" } else { "" };
        links += &format!("<a href=\"/guide/{0}\"{mark}>{0}</a>\n", page.name);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · shardgate {version}</title>\n\
         <link rel=\"stylesheet\" href=\"/guide/guide.css\">\n</head>\n<body>\n\
         <header><a href=\"/guide\">shardgate {version} guide</a>\n\
         <form action=\"/guide\" role=\"search\">\
         <input type=\"search\" name=\"q\" value=\"{asked}\" placeholder=\"Search the guide\" \
         aria-label=\"Search the guide\"> <button>Search</button></form></header>\n\
         <nav aria-label=\"Pages\">\n{links}</nav>\n<main>\n{contents}{body}</main>\n\
         </body>\n</html>\n",
        title = escape(title),
        version = env!("CARGO_PKG_VERSION"),
        asked = escape(asked),
    )
}

/// Links to the sections of a page; none for a page of one or two.
fn contents(page: Page) -> String {
    let sections = headings(page.text);
    if sections.len() < 3 {
        return String::new();
    }
    let link = |heading: &&str| {
        format!("<li><a href=\"#{}\">{}</a></li>\n", anchor(heading), inline(heading))
    };
    let links: String = sections.iter().map(link).collect();
    format!("<details><summary>On this page</summary>\n<ul>\n{links}</ul>\n</details>\n")
}

/// Texts of the headings of the second level.
fn headings(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let lines = text.lines().filter_map(|line| {
        in_code ^= line.starts_with("```");
        if in_code { None } else { line.strip_prefix("## ") }
    });
    lines.collect()
}

/// Events of a text, with anchors at headings, links as the endpoint has them, and tables in a box
/// of their own, which a narrow screen scrolls.
fn events(text: &str) -> Vec<Event<'_>> {
    let options = Options::ENABLE_TABLES;
    let mut out = Vec::new();
    let (mut heading, mut file) = (None, None);
    for event in Parser::new_ext(text, options) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                heading = Some(out.len());
                out.push(event);
            }
            Event::End(TagEnd::Heading(_)) => {
                let start = heading.take().expect("a heading that ends has begun");
                let words: String = out[start + 1..].iter().filter_map(text_of).collect();
                if let Event::Start(Tag::Heading { id, .. }) = &mut out[start] {
                    *id = Some(anchor(&words).into());
                }
                out.push(event);
            }
            Event::Start(Tag::Link { dest_url, .. }) if dest_url.starts_with(SOURCE) => {
                file = Some(dest_url);
            }
            Event::End(TagEnd::Link) if file.is_some() => {
                let path = file.take().expect("checked");
                out.push(Event::Text(format!(" ({})", path.trim_start_matches(SOURCE)).into()));
            }
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let dest_url = target(&dest_url).into();
                out.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
            }
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                let dest_url = format!("/guide/{dest_url}").into();
                out.push(Event::Start(Tag::Image { link_type, dest_url, title, id }));
            }
            Event::Start(Tag::Table(_)) => {
                out.push(Event::Html("<div class=\"table\" tabindex=\"0\">".into()));
                out.push(event);
            }
            Event::End(TagEnd::Table) => {
                out.push(event);
                out.push(Event::Html("</div>\n".into()));
            }
            // Comments, which are for the test of the commands.
            Event::Html(_) | Event::Start(Tag::HtmlBlock) | Event::End(TagEnd::HtmlBlock) => {}
            other => out.push(other),
        }
    }
    out
}

fn text_of<'a>(event: &'a Event<'_>) -> Option<&'a str> {
    match event {
        Event::Text(text) | Event::Code(text) => Some(text),
        _ => None,
    }
}

/// Target of a link on the endpoint, where the pages stand beside each other without an extension.
fn target(url: &str) -> String {
    match url.split_once(".md") {
        Some((page, rest)) if Page::named(page).is_some() => format!("/guide/{page}{rest}"),
        Some(_) | None => url.to_owned(),
    }
}

/// A line of Markdown as HTML without the paragraph around it.
fn inline(line: &str) -> String {
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, events(line).into_iter());
    html.trim().trim_start_matches("<p>").trim_end_matches("</p>").to_owned()
}

/// `text` with the characters that mean something in HTML written as references.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The ids of a document.
    fn ids(html: &str) -> BTreeSet<&str> {
        let starts = html.split(" id=\"").skip(1);
        starts.filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_link_between_pages_leads_somewhere() {
        for page in PAGES {
            let html = page_html(*page);
            for link in html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
                let name = path.strip_prefix("/guide/").unwrap_or(page.name);
                let known = ["/guide", "/guide/guide.css", "/guide/way-of-a-message.svg", ""];
                if !known.contains(&path) {
                    assert!(path.starts_with("/guide/"), "{}: {link} leads out", page.name);
                    let target = Page::named(name);
                    assert!(target.is_some(), "{}: {link}", page.name);
                }
                if !fragment.is_empty() {
                    let target = page_html(Page::named(name).expect("checked"));
                    assert!(ids(&target).contains(fragment), "{}: {link}", page.name);
                }
            }
            assert!(!html.contains(".md\"") && !html.contains("../"), "{}", page.name);
        }
    }

    #[test]
    fn names_of_the_guide_lead_to_its_files() {
        for page in PAGES {
            let links = page.text.split("](../../").skip(1);
            for path in links.filter_map(|rest| rest.split([')', '#']).next()) {
                let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
                assert!(file.exists(), "{}: {path}", page.name);
            }
        }
    }

    #[test]
    fn what_is_asked_is_shown_escaped() {
        let html = search_html("<script>alert(\"x\")</script>");
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"));
        assert!(missing_html("<b>").contains("&lt;b&gt;"));
    }

    #[test]
    fn a_search_links_to_the_sections_that_it_found() {
        let html = search_html("etcd");
        assert!(html.contains("href=\"/guide/discovery#"), "{html}");
        assert!(search_html("").contains("href=\"/guide/tls\""));
        assert!(search_html("no-page-has-this-word").contains("Fewer words"));
    }

    #[test]
    fn tables_scroll_and_comments_are_left_out() {
        let page = Page {
            name: "test",
            text: "# T\n\nS.\n<!-- c -->\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        };
        let html = page_html(page);
        assert!(html.contains("<div class=\"table\"") && html.contains("<td>2</td>"), "{html}");
        assert!(!html.contains("<!-- c"), "{html}");
        assert!(html.contains("<h1 id=\"t\">T</h1>"), "{html}");
    }
}
