//! The only place that prints errors: place, cause, last output, way out.
//!
//! ```text
//! ------
//!  > [2/3] RUN make:
//! 0.210 make: *** No targets.  Stop.
//! ------
//! Dockerfile:2
//! --------------------
//!    1 |     FROM scratch
//!    2 | >>> RUN make
//! --------------------
//! error: failed to solve: process "make" did not complete successfully: exit code: 2
//! hint: ...
//! ```
//!
//! It is the frame of BuildKit's clients, because tools read it.

use std::borrow::Cow;
use std::io::{self, Write};

use base::progress::Warning;
use base::{Fault, Kind, SourceFile, SourceSpan};

/// What is shown of either end of a text, in bytes.
const LENGTH: usize = 2000;

/// What is shown of either end of an excerpt.
const LINES: usize = 30;

/// The last output of a step that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedStep {
    /// What people know it by: `[2/3] RUN make`.
    pub name: String,
    /// Its last lines.
    pub tail: Vec<u8>,
}

/// Prints what went wrong. `steps` is what the display kept; without it the tail in the fault is printed.
pub fn print(out: &mut dyn Write, fault: &Fault, steps: &[FailedStep]) -> io::Result<()> {
    let own = fault
        .get_vertex()
        .filter(|_| steps.is_empty() && !fault.get_log_tail().is_empty())
        .map(|(_, name)| FailedStep { name: name.to_owned(), tail: fault.get_log_tail().to_vec() });
    // A step that said nothing is named by the excerpt, where there is one.
    let silent = |step: &&FailedStep| !fault.places().is_empty() && step.tail.is_empty();
    for step in steps.iter().chain(&own).filter(|step| !silent(step)) {
        print_step(out, step)?;
    }
    if let Some((file, spans)) = fault.places().first() {
        print_excerpt(out, file, spans)?;
    }
    let cause = one_line(&fault.cause());
    match fault.kind() {
        Kind::Internal => writeln!(out, "error: {cause} (this is a mistake in hullworks, please report it)")?,
        _ => writeln!(out, "error: {cause}")?,
    }
    match fault.get_hint() {
        Some(hint) => writeln!(out, "hint: {}", one_line(hint)),
        None => Ok(()),
    }
}

/// Prints something that the user should know and that stops nothing.
pub fn print_warning(out: &mut dyn Write, text: impl std::fmt::Display) {
    // A closed standard error is no reason to stop a build.
    let _ = writeln!(out, "warning: {}", one_line(&text.to_string()));
}

/// Sums up what a build has warned of, each with its lines. The words are those of docker's client.
///
/// ```text
///
///  1 warning found:
///  - StageNameCasing: Stage name 'Build' should be lowercase (line 1)
/// More info: https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
/// Dockerfile:1
/// --------------------
///    1 | >>> FROM scratch AS Build
///    2 |     COPY . /
/// --------------------
/// ```
pub fn print_warnings(out: &mut dyn Write, warnings: &[Warning]) -> io::Result<()> {
    match warnings.len() {
        0 => return Ok(()),
        1 => writeln!(out, "\n 1 warning found:")?,
        count => writeln!(out, "\n {count} warnings found:")?,
    }
    for warning in warnings {
        writeln!(out, " - {}", one_line(&warning.short))?;
        if let Some(url) = &warning.url {
            writeln!(out, "More info: {}", one_line(url))?;
        }
        if let Some(file) = &warning.file {
            print_excerpt(out, file, &warning.spans)?;
        }
    }
    writeln!(out)
}

fn print_step(out: &mut dyn Write, step: &FailedStep) -> io::Result<()> {
    writeln!(out, "------\n > {}:", one_line(&step.name))?;
    out.write_all(&step.tail)?;
    if !step.tail.is_empty() && !step.tail.ends_with(b"\n") {
        writeln!(out)?;
    }
    writeln!(out, "------")
}

/// The lines in question with two lines around one, and one line around several.
fn print_excerpt(out: &mut dyn Write, file: &SourceFile, spans: &[SourceSpan]) -> io::Result<()> {
    let text = String::from_utf8_lossy(&file.data);
    let lines: Vec<&str> = text.split('\n').map(|line| line.trim_end_matches('\r')).collect();
    let count = lines.len();
    let first = spans.iter().map(|span| span.start.0 as usize).min().unwrap_or(0);
    let last = spans.iter().map(|span| span.end.0.max(span.start.0) as usize).max().unwrap_or(0).min(count);
    if first < 1 || first > count {
        return Ok(());
    }
    let around = if first == last { 2 } else { 1 };
    let from = first.saturating_sub(around).max(1);
    let to = (last + around).min(count);
    writeln!(out, "{}:{first}\n--------------------", file.name)?;
    let hidden = if to - from < 2 * LINES { to + 1..to + 1 } else { from + LINES..to + 1 - LINES };
    for number in from..=to {
        if hidden.contains(&number) {
            if number == hidden.start {
                writeln!(out, "     | ... {} lines", hidden.len())?;
            }
            continue;
        }
        let inside = spans.iter().any(|s| (s.start.0..=s.end.0.max(s.start.0)).contains(&(number as u32)));
        let mark = if inside { ">>>" } else { "   " };
        writeln!(out, " {number:3} | {mark} {}", clipped(lines[number - 1]))?;
    }
    writeln!(out, "--------------------")
}

/// Newlines would break the frame: tools look for lines that begin with `error:`.
fn one_line(text: &str) -> String {
    clipped(text.trim_end()).replace("\r\n", "\n").replace('\n', "\n  ")
}

/// Without the middle of what is absurdly long: a script of its own in a RUN, say, which begins and ends telling enough.
fn clipped(text: &str) -> Cow<'_, str> {
    if text.len() <= 2 * LENGTH {
        return Cow::Borrowed(text);
    }
    let (head, tail) = (text.floor_char_boundary(LENGTH), text.ceil_char_boundary(text.len() - LENGTH));
    Cow::Owned(format!("{} ... {} bytes ... {}", &text[..head], tail - head, &text[tail..]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use insta::assert_snapshot;

    use super::*;

    fn shown(fault: &Fault, steps: &[FailedStep]) -> String {
        let mut out = Vec::new();
        print(&mut out, fault, steps).expect("a vector takes everything");
        String::from_utf8(out).expect("text")
    }

    fn dockerfile(lines: usize) -> Arc<SourceFile> {
        let data = (1..=lines).map(|n| format!("LINE {n}")).collect::<Vec<_>>().join("\n");
        Arc::new(SourceFile {
            name: "Dockerfile".into(),
            data: data.into_bytes(),
            language: "Dockerfile".into(),
            ..SourceFile::default()
        })
    }

    #[test]
    fn the_whole_frame() {
        let fault = Fault::user("failed to solve: no stage `biulder`")
            .at(&dockerfile(9), &[SourceSpan::lines(7, 7)])
            .hint("did you mean stage `builder` (line 1)?");
        assert_snapshot!(shown(&fault, &[]), @r"
        Dockerfile:7
        --------------------
           5 |     LINE 5
           6 |     LINE 6
           7 | >>> LINE 7
           8 |     LINE 8
           9 |     LINE 9
        --------------------
        error: failed to solve: no stage `biulder`
        hint: did you mean stage `builder` (line 1)?
        ");
    }

    #[test]
    fn several_lines_and_the_edges_of_the_file() {
        let at = |spans: &[SourceSpan], lines| shown(&Fault::user("x").at(&dockerfile(lines), spans), &[]);
        assert_snapshot!(at(&[SourceSpan::lines(1, 2)], 4), @r"
        Dockerfile:1
        --------------------
           1 | >>> LINE 1
           2 | >>> LINE 2
           3 |     LINE 3
        --------------------
        error: x
        ");
        assert_snapshot!(at(&[SourceSpan::lines(2, 2), SourceSpan::lines(4, 4)], 4), @r"
        Dockerfile:2
        --------------------
           1 |     LINE 1
           2 | >>> LINE 2
           3 |     LINE 3
           4 | >>> LINE 4
        --------------------
        error: x
        ");
        assert_snapshot!(at(&[SourceSpan::lines(9, 9)], 4), @"error: x");
        assert_snapshot!(at(&[], 4), @"error: x");
    }

    #[test]
    fn the_middle_of_what_is_too_long_is_left_out() {
        let text = format!("{}é{}", "a".repeat(LENGTH - 1), "b".repeat(2 * LENGTH));
        let expected = format!("{} ... {} bytes ... {}", "a".repeat(LENGTH - 1), LENGTH + 2, "b".repeat(LENGTH));
        assert_eq!(clipped(&text), expected);
        assert_eq!(clipped(&text[LENGTH + 1..]), &text[LENGTH + 1..]);

        let lines = |last| shown(&Fault::user("x").at(&dockerfile(99), &[SourceSpan::lines(2, last)]), &[]);
        assert_eq!(lines(59).matches("LINE").count(), 2 * LINES);
        let cut = lines(80);
        assert!(cut.contains(">>> LINE 30\n     | ... 21 lines\n  52 | >>> LINE 52\n"), "{cut}");
    }

    #[test]
    fn the_last_output_of_the_step() {
        let step = FailedStep { name: "[2/2] RUN false".into(), tail: b"0.1 a\n0.2 b".to_vec() };
        let own = Fault::user("failed to solve: exit code: 1")
            .vertex(base::Digest::of("v"), "[2/2] RUN false")
            .log_tail("from the fault\n");
        assert_snapshot!(shown(&own, &[step]), @r"
        ------
         > [2/2] RUN false:
        0.1 a
        0.2 b
        ------
        error: failed to solve: exit code: 1
        ");
        assert_snapshot!(shown(&own, &[]), @r"
        ------
         > [2/2] RUN false:
        from the fault
        ------
        error: failed to solve: exit code: 1
        ");
    }

    #[test]
    fn warnings_are_summed_up() {
        let warning = |line: u32| Warning {
            vertex: base::Digest::of("v"),
            level: 1,
            short: format!("Rule: text (line {line})"),
            detail: vec!["why".into()],
            url: Some("https://rule".into()),
            file: Some(dockerfile(3)),
            spans: vec![SourceSpan::lines(line, line)],
        };
        let shown = |warnings: &[Warning]| {
            let mut out = Vec::new();
            print_warnings(&mut out, warnings).expect("a vector takes everything");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(shown(&[]), "");
        let bare = Warning { url: None, file: None, spans: Vec::new(), short: "two\nlines".into(), ..warning(1) };
        assert_eq!(shown(&[bare]), "\n 1 warning found:\n - two\n  lines\n\n");
        assert_snapshot!(shown(&[warning(1), warning(3)]), @r"

         2 warnings found:
         - Rule: text (line 1)
        More info: https://rule
        Dockerfile:1
        --------------------
           1 | >>> LINE 1
           2 |     LINE 2
           3 |     LINE 3
        --------------------
         - Rule: text (line 3)
        More info: https://rule
        Dockerfile:3
        --------------------
           1 |     LINE 1
           2 |     LINE 2
           3 | >>> LINE 3
        --------------------
        ");
    }

    #[test]
    fn our_own_mistakes_say_so() {
        let fault = Fault::new(Kind::Internal, "no such edge");
        assert_snapshot!(shown(&fault, &[]), @"error: no such edge (this is a mistake in hullworks, please report it)");
    }
}
