//! The nearest valid name to what somebody typed.

/// The name that is at most two edits away; none if the name itself is valid. The nearest wins, then the first.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best = None;
    // Names are short. What is not, was not mistyped but is something else, and would cost.
    if typed.len() > 64 {
        return None;
    }
    for name in names.into_iter().filter(|name| name.len() <= 128) {
        let distance = edits(typed, name);
        if distance == 0 {
            return None;
        }
        if distance < best.map_or(3, |(least, _)| least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

/// As [`nearest`], but half of what was typed must be left of it, or its letters be swapped, or its end be missing: short
/// names are all near each other.
pub fn likely<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    nearest(typed, names).filter(|name| {
        edits(typed, name) * 2 <= typed.len() || letters(typed) == letters(name) || name.starts_with(typed)
    })
}

/// Levenshtein distance over characters.
pub fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names() {
        let names = ["builder", "base", "final"];
        for (typed, found) in
            [("biulder", Some("builder")), ("bas", Some("base")), ("base", None), ("unrelated", None), ("", None)]
        {
            assert_eq!(nearest(typed, names), found, "{typed}");
        }
    }

    #[test]
    fn likely_names() {
        for (typed, found) in
            [("TERN", Some("TERM")), ("FOO", None), ("FP", Some("FPE")), ("EFP", Some("FPE")), ("TER", Some("TERM"))]
        {
            assert_eq!(likely(typed, ["FPE", "TERM"]), found, "{typed}");
        }
    }
}
