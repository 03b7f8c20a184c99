//! Tables as Go's `text/tabwriter` lays them out: what BuildKit's client prints, and scripts take apart.

/// Lays out lines whose cells end with tabs, as BuildKit's client does nearly everywhere: with tabs, of 8 columns.
pub fn tabbed(text: &str) -> String {
    const TAB: usize = 8;
    aligned(text, |cell, column| "\t".repeat((column.div_ceil(TAB) * TAB - cell).div_ceil(TAB)))
}

/// The same with spaces.
pub fn spaced(text: &str) -> String {
    aligned(text, |cell, column| " ".repeat(column - cell))
}

/// A column is as wide as the widest of its cells in lines that follow each other, and one more; `pad` makes up for what a
/// cell lacks. What follows the last tab of a line belongs to no column.
fn aligned(text: &str, pad: impl Fn(usize, usize) -> String) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let width = |cell: &str| cell.chars().count();
    let mut widths: Vec<Vec<usize>> = vec![Vec::new(); lines.len()];
    let columns = lines.iter().map(|line| line.len() - 1).max().unwrap_or(0);
    for column in 0..columns {
        let has_column = |line: &usize| lines[*line].len() > column + 1;
        let mut from = 0;
        while from < lines.len() {
            let block: Vec<usize> = (from..lines.len()).take_while(has_column).collect();
            let widest = block.iter().map(|line| width(lines[*line][column]) + 1).max().unwrap_or(0);
            block.iter().for_each(|line| widths[*line].push(widest));
            from += block.len().max(1);
        }
    }
    let mut out = String::new();
    for (line, widths) in lines.iter().zip(&widths) {
        for (index, cell) in line.iter().enumerate() {
            out.push_str(cell);
            out.extend(widths.get(index).map(|column| pad(width(cell), *column)));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_at_tab_stops() {
        assert_eq!(tabbed("ID\tSIZE\tX\n12345678\t1B\t\n"), "ID\t\tSIZE\tX\n12345678\t1B\t\n");
        assert_eq!(tabbed("Total:\t3B\n"), "Total:\t3B\n");
        assert_eq!(tabbed(""), "");
        assert_eq!(spaced("A:\tx\nlong:\tyy\n"), "A:    x\nlong: yy\n");
    }

    #[test]
    fn a_line_without_a_column_ends_it() {
        assert_eq!(
            tabbed("ID:\tx\nLabels:\n\ta.long.label:\t1\n\tb:\t2\n"),
            "ID:\tx\nLabels:\n\ta.long.label:\t1\n\tb:\t\t2\n"
        );
        // A column within a column ends alone.
        assert_eq!(tabbed("a\tbbbbbbbb\tc\na\tx\naaaaaaaa\tb\tc\n"), "a\t\tbbbbbbbb\tc\na\t\tx\naaaaaaaa\tb\tc\n");
    }
}
