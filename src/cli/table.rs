//! Tables for a terminal: columns that line up, no lines between them.

/// Lays out `rows` under `head`, each column as wide as its widest cell but for the last.
pub fn aligned<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    let mut line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text += &format!("{cell:width$}  ");
        }
        out += text.trim_end();
        out.push('\n');
    };
    line(head);
    for row in rows {
        line(std::array::from_fn(|n| row[n].as_str()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_is_at_the_ends_of_lines() {
        let rows = [["a".into(), "1".into()], ["größer".into(), String::new()]];
        assert_eq!(aligned(["key", "n"], &rows), "key     n\na       1\ngrößer\n");
    }
}
