//! What the log may not have. Options may be secrets of those who do not know better, and errors and names quote them: values of
//! build arguments are hidden, and of a step that failed there is the exit code, and not its text.

use std::borrow::Cow;

use base::Fault;

/// What is shorter is no secret, and would be found everywhere.
const LEAST: usize = 4;
/// As much of an error as the log has room for.
const MOST_CHARS: usize = 300;

/// Values of build arguments.
#[derive(Clone, Default)]
pub struct Hidden(Vec<String>);

impl Hidden {
    /// Those among options.
    pub fn of<'a>(options: impl IntoIterator<Item = (&'a String, &'a String)>) -> Hidden {
        let mut hidden = Hidden::default();
        hidden.add(options);
        hidden
    }

    /// Adds those among options.
    pub fn add<'a>(&mut self, options: impl IntoIterator<Item = (&'a String, &'a String)>) {
        for (name, value) in options {
            if name.starts_with("build-arg:") && value.len() >= LEAST {
                self.0.push(value.clone());
            }
        }
        // The longest first: one may be a part of another.
        self.0.sort_unstable_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        self.0.dedup();
    }

    /// A text without them.
    pub fn in_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.iter().fold(Cow::Borrowed(text), |text, value| match text.contains(value.as_str()) {
            true => Cow::Owned(text.replace(value.as_str(), "xxxxx")),
            false => text,
        })
    }

    /// Why something failed: as much of the error as the log may have.
    pub fn why(&self, fault: &Fault) -> String {
        if let Some(code) = fault.get_exit_code() {
            return format!("exit code: {code}");
        }
        let cause = fault.cause();
        let text = self.in_text(&cause);
        let line = text.lines().next().unwrap_or_default();
        match line.char_indices().nth(MOST_CHARS) {
            Some((end, _)) => format!("{}..", &line[..end]),
            None => line.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_build_arguments_are_hidden_the_longest_first() {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let options = [option("build-arg:A", "hush"), option("build-arg:B", "hushhush"), option("build-arg:C", "abc")];
        let hidden = Hidden::of(options.iter().chain(&[option("target", "final")]).map(|(name, value)| (name, value)));
        assert_eq!(hidden.in_text("a hushhush, a hush, abc and final"), "a xxxxx, a xxxxx, abc and final");
        assert_eq!(hidden.why(&Fault::user("no `hush`\nbelow")), "no `xxxxx`");
        assert_eq!(hidden.why(&Fault::user("x".repeat(1000))).len(), MOST_CHARS + 2);
    }
}
