//! Tables with tabs, as Go's `text/tabwriter` lays them out (cells of 8 columns): what BuildKit's `du` prints.

/// Lays out rows. Every cell but the last of a row is padded with tabs to its column's width.
pub fn tabbed(rows: &[Vec<String>]) -> String {
    const TAB: usize = 8;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| row.len() > column + 1).map(|row| row[column].chars().count());
        cells.max().map_or(0, |widest| (widest + 1).div_ceil(TAB) * TAB)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if index + 1 < row.len() {
                let missing = widths[index].saturating_sub(cell.chars().count());
                out.push_str(&"\t".repeat(missing.div_ceil(TAB).max(1)));
            }
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
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            tabbed(&[row(&["ID", "SIZE", "X"]), row(&["12345678", "1B", ""])]),
            "ID\t\tSIZE\tX\n12345678\t1B\t\n"
        );
        assert_eq!(tabbed(&[row(&["Total:", "3B"])]), "Total:\t3B\n");
        assert_eq!(tabbed(&[]), "");
    }
}
