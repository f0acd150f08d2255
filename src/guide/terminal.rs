//! The guide on a terminal: the Markdown as it is, but tables that are wider than the screen, whose
//! rows become entries.

/// `text` for a terminal of `columns` characters a line.
pub fn for_terminal(text: &str, columns: usize) -> String {
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let begins_table = line.starts_with('|')
            && lines.peek().is_some_and(|next| next.starts_with("|") && is_rule(next));
        if !begins_table {
            if !line.starts_with("<!--") {
                out += line;
                out.push('\n');
            }
            continue;
        }
        let head = cells(line);
        let rule = lines.next().expect("peeked");
        let mut rows = Vec::new();
        while let Some(row) = lines.next_if(|next| next.starts_with('|')) {
            rows.push(row);
        }
        if [line, rule].into_iter().chain(rows.iter().copied()).all(|row| width(row) <= columns) {
            let table = [line, rule].into_iter().chain(rows);
            out.extend(table.map(|row| format!("{row}\n")));
        } else {
            out.extend(rows.into_iter().map(|row| entry(&head, &cells(row), columns)));
        }
    }
    out
}

/// A row as an entry: its first cell, then the others with their columns' names, the last one
/// wrapped under them.
fn entry(head: &[String], row: &[String], columns: usize) -> String {
    let Some((name, rest)) = row.split_first() else { return String::new() };
    let Some((last, middle)) = rest.split_last() else { return format!("{name}\n") };
    let titles = head.iter().skip(1);
    let filled = titles.zip(middle).filter(|(_, cell)| !cell.is_empty());
    let middle: Vec<String> = filled.map(|(title, cell)| format!("{title} {cell}")).collect();
    let mut out = format!("{name}\n");
    for text in [middle.join(", "), last.clone()] {
        out += &wrapped(&text, columns);
    }
    out
}

/// `text` in lines of at most `columns` characters, as far as its words allow, indented by four.
fn wrapped(text: &str, columns: usize) -> String {
    const INDENT: &str = "    ";
    let (mut out, mut line) = (String::new(), INDENT.to_owned());
    for word in text.split_whitespace() {
        if width(&line) > INDENT.len() && width(&line) + 1 + width(word) > columns {
            out += line.trim_end();
            out.push('\n');
            line = INDENT.to_owned();
        }
        if width(&line) > INDENT.len() {
            line.push(' ');
        }
        line += word;
    }
    if width(&line) > INDENT.len() {
        out += &line;
        out.push('\n');
    }
    out
}

/// Whether a line is the one under the head of a table.
fn is_rule(line: &str) -> bool {
    line.chars().all(|c| "|-: ".contains(c))
}

/// The cells of a row, without the escapes of bars.
fn cells(row: &str) -> Vec<String> {
    let hidden = row.trim().replace("\\|", "\u{0}");
    let inside = hidden.trim_start_matches('|').trim_end_matches('|');
    inside.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// Columns that a text takes: one a character, as the guide is written in Latin letters.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guide::Page;

    const TABLE: &str = "# T\n<!-- needs: x -->\n\n| key | unit | meaning |\n|---|---|---|\n\
        | `a` | ms | words that say what it is |\n| `b` |  | a \\| b |\n\nend\n";

    #[test]
    fn a_wide_table_becomes_entries_and_a_narrow_one_stays() {
        let narrow = for_terminal(TABLE, 24);
        let want =
            "# T\n\n`a`\n    unit ms\n    words that say what\n    it is\n`b`\n    a | b\n\nend\n";
        assert_eq!(narrow, want);
        let wide = for_terminal(TABLE, 80);
        assert_eq!(wide, TABLE.replace("<!-- needs: x -->\n", ""));
    }

    #[test]
    fn the_configuration_fits_a_terminal_of_80_columns() {
        let page = Page::named("configuration").expect("a page");
        let text = for_terminal(page.text, 80);
        let wide = text.lines().filter(|line| width(line) > 110).count();
        assert_eq!(wide, 0, "{text}");
    }
}
