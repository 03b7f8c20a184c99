//! Answers for people, laid out as BuildKit's frontend does it.

use base::{SourceFile, SourceSpan};

/// Columns as wide as their widest cell and `padding` spaces; the last one as it is.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>, padding: usize) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0) + padding).collect();
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            match column + 1 == row.len() {
                true => out.push_str(cell),
                false => out.push_str(&format!("{cell:<width$}", width = widths[column])),
            }
        }
        out.push('\n');
    }
    out
}

/// What the comments above a definition say of `name`: the rest of the line that begins with it.
pub(crate) fn description(comments: &[String], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let about = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    comments.iter().find_map(about).unwrap_or_default()
}

/// The marked lines with a few around them.
pub(super) fn excerpt(file: &SourceFile, spans: &[SourceSpan]) -> String {
    let text = String::from_utf8_lossy(&file.data);
    let lines: Vec<&str> = text.split('\n').collect();
    let last = |span: &SourceSpan| span.end.0.max(span.start.0) as usize;
    let Some(first) = spans.iter().map(|span| span.start.0 as usize).min() else { return String::new() };
    if first > lines.len() || first < 1 {
        return String::new();
    }
    let end = spans.iter().map(last).max().unwrap_or(first).min(lines.len());
    let (mut from, mut to) = (first, end);
    let padding = if from == to { 4 } else { 2 };
    let mut added = 0;
    while added < padding {
        if from > 1 {
            from -= 1;
            added += 1;
        }
        if to != lines.len() {
            to += 1;
            added += 1;
        }
        added += 1;
    }
    let rule = "-".repeat(20);
    let mut out = format!("{}:{first}\n{rule}\n", file.name);
    for number in from..=to {
        let marked = spans.iter().any(|span| (span.start.0 as usize..=last(span)).contains(&number));
        let mark = if marked { ">>>" } else { "   " };
        out.push_str(&format!(" {number:>3} | {mark} {}\n", lines[number - 1]));
    }
    out.push_str(&format!("{rule}\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            vec![vec!["größe".to_owned(), String::new(), "x".to_owned()], vec!["a".into(), "b".into(), "".into()]];
        assert_eq!(table(&["A", "B", "C"], rows, 3), "A       B   C\ngröße       x\na       b   \n");
    }

    #[test]
    fn comments_describe_what_they_name() {
        let comments = ["another line".to_owned(), "VERSION of the thing".to_owned()];
        assert_eq!(description(&comments, "VERSION"), "of the thing");
        assert_eq!(description(&comments, "VERS"), "");
        assert_eq!(description(&comments, ""), "");
    }

    #[test]
    fn excerpts_show_what_is_around() {
        let file = SourceFile { name: "D".into(), data: b"1\n2\n3\n4\n5\n6\n".to_vec(), ..SourceFile::default() };
        let shown = excerpt(&file, &[SourceSpan::lines(3, 3)]);
        let rule = "--------------------";
        let body = "   1 |     1\n   2 |     2\n   3 | >>> 3\n   4 |     4\n   5 |     5\n";
        assert_eq!(shown, format!("D:3\n{rule}\n{body}{rule}\n"));
        assert_eq!(excerpt(&file, &[SourceSpan::lines(9, 9)]), "");
        assert_eq!(excerpt(&file, &[]), "");
    }
}
