use proptest::prelude::*;

use super::*;

fn lines(text: &str) -> Vec<Line> {
    parse(text.as_bytes()).expect(text).lines
}

fn fails(text: impl AsRef<[u8]>) -> (String, Vec<(u32, u32)>) {
    let error = parse(text.as_ref()).expect_err("a mistake");
    (error.to_string(), error.spans().iter().map(|span| (span.start.0, span.end.0)).collect())
}

#[test]
fn logical_lines_know_where_they_are() {
    let text = "# syntax=x\n\n# about a\nFROM a \\\n  # comment\n\n  AS b\nRUN x \\  \n y\\\\\nRUN <<A cat <<-B\n1\nA\n\t2\n\tB\n\tUSER c";
    let document = parse(text.as_bytes()).expect("valid");
    let found: Vec<(&str, u32, u32)> =
        document.lines.iter().map(|line| (line.original.as_str(), line.span.start.0, line.span.end.0)).collect();
    let expected = [("FROM a   AS b", 4, 7), ("RUN x  y\\\\", 8, 9), ("RUN <<A cat <<-B", 10, 14), ("USER c", 15, 15)];
    assert_eq!(found, expected);
    assert_eq!(document.lines[0].comments, ["about a"]);
    assert_eq!(document.empty_continuations, [SourceSpan::lines(7, 7)]);
    let docs: Vec<(&str, bool, &str)> =
        document.lines[2].heredocs.iter().map(|d| (d.name.as_str(), d.chomp, d.content.as_str())).collect();
    assert_eq!(docs, [("A", false, "1\n"), ("B", true, "\t2\n")]);
}

#[test]
fn rests_split_by_instruction() {
    let words = |words: &[&str]| Args::Words(words.iter().map(|word| (*word).to_owned()).collect());
    let json = |words: &[&str]| Args::Json(words.iter().map(|word| (*word).to_owned()).collect());
    let pair = |key: &str, value: &str, legacy| Pair { key: key.into(), value: value.into(), legacy };
    for (text, args) in [
        ("FROM  a\tb", words(&["a", "b"])),
        ("RUN a  b", words(&["a  b"])),
        ("RUN [ \"a\",\"b c\" ]", json(&["a", "b c"])),
        ("RUN [ -f a ]", words(&["[ -f a ]"])),
        ("CMD []", json(&[])),
        ("COPY a  b", words(&["a", "b"])),
        ("ARG a \"b c\"=d\\ e ''", words(&["a", "\"b c\"=d\\ e", "''"])),
        ("ENV a b  c=d", Args::Pairs(vec![pair("a", "b  c=d", true)])),
        ("ENV a=b 'c d'=\"e f\"", Args::Pairs(vec![pair("a", "b", false), pair("'c d'", "\"e f\"", false)])),
        ("HEALTHCHECK CMD  [\"a\"]", json(&["CMD", "a"])),
        ("HEALTHCHECK none", words(&["none"])),
        ("WORKDIR /a b", words(&["/a b"])),
        ("BOGUS a b", words(&["a b"])),
    ] {
        assert_eq!(lines(text)[0].args, args, "{text}");
    }
}

#[test]
fn flags_come_first_and_lose_their_quotes() {
    for (text, flags, rest) in [
        ("RUN --a=b  --c d", vec!["--a=b", "--c"], "d"),
        ("RUN --a=\"b c\"'d' e", vec!["--a=b cd"], "e"),
        ("RUN --a=b\\ c d --e", vec!["--a=b c"], "d --e"),
        ("RUN -- --a", vec![], "--a"),
        ("RUN --a", vec!["--a"], ""),
        ("RUN -a", vec![], "-a"),
    ] {
        let line = &lines(text)[0];
        assert_eq!(line.flags, flags, "{text}");
        let Args::Words(words) = &line.args else { panic!("{text}") };
        assert_eq!(words.join(" "), rest, "{text}");
    }
}

#[test]
fn directives_stand_at_the_top() {
    let of = |text: &str| Directives::of(text.as_bytes());
    let all = of("#!/usr/bin/env x\n#Syntax = a/b:c d \n# escape=`\n# check=skip=all\nFROM x");
    let value =
        |place: &Option<(String, SourceSpan)>| place.as_ref().map(|(value, span)| (value.clone(), span.start.0));
    assert_eq!(value(&all.syntax), Some(("a/b:c d".to_owned(), 2)));
    assert_eq!(value(&all.escape), Some(("`".to_owned(), 3)));
    assert_eq!(value(&all.check), Some(("skip=all".to_owned(), 4)));
    assert_eq!(of("# comment\n# syntax=a").syntax, None);
    assert_eq!(of("\n# syntax=a").syntax, None);
    for (text, image, line) in [
        ("# syntax=a:b --x\n", Some("a:b"), 1),
        ("// syntax=a\nlet x", Some("a"), 1),
        ("#!x\n{\"syntax\": \"a\"}", Some("a"), 2),
        ("FROM x\n# syntax=a", None, 0),
        ("{\"syntax\": 1}", None, 0),
    ] {
        let found = detect_syntax(text.as_bytes());
        assert_eq!(found.as_ref().map(|syntax| syntax.image.as_str()), image, "{text}");
        assert_eq!(found.map_or(0, |syntax| syntax.span.start.0), line, "{text}");
    }
}

#[test]
fn hostile_files_are_refused() {
    for (bytes, part, place) in [
        (&b"FROM a\nRUN \xff"[..], "line 2 is not UTF-8", Some((2, 2))),
        (b"FROM a\nRUN b \\\n \0", "line 3 has a NUL byte", Some((3, 3))),
        (b"FROM a\nRUN <<E\n\xff\nE\n", "line 3 is not UTF-8", Some((3, 3))),
        (b"\xff\xfeF\0", "is UTF-16", Some((1, 1))),
        (b"", "is empty", None),
        (b"\n\n", "no instructions", Some((2, 2))),
    ] {
        let (message, spans) = fails(bytes);
        assert!(message.contains(part), "{message}");
        assert_eq!(spans, Vec::from_iter(place));
    }
    let (message, _) = fails(vec![b'\n'; MAX_BYTES + 1]);
    assert!(message.contains("more than the"), "{message}");
    let (message, spans) = fails("FROM a\n".repeat(MAX_INSTRUCTIONS + 2));
    assert!(message.contains("instructions"), "{message}");
    assert_eq!(spans, [(20_001, 20_001)]);
    // What is only about the image may be in another encoding.
    let about = parse(b"FROM a\nmaintainer Jos\xe9 \\\n\xe2\x82 x\nLABEL a=\xff\n").expect("valid");
    assert_eq!(about.lines[1].original, "maintainer Jos\u{fffd} \u{fffd}\u{fffd} x");
    assert_eq!(about.lines[2].original, "LABEL a=\u{fffd}");
    assert!(fails(&b"FROM a\nLABELS a=\xff"[..]).0.contains("line 2 is not UTF-8"));
    // A comment in another encoding harms nobody.
    assert_eq!(parse(b"# M\xfcller\nFROM a").expect("valid").lines.len(), 1);
    for deep in ["ONBUILD ".repeat(200_000), format!("RUN {}", "[".repeat(200_000)), "<<A ".repeat(50_000)] {
        let _ = parse(format!("FROM a\n{deep}").as_bytes());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        check_spans(&bytes)?;
    }

    #[test]
    fn any_text_of_familiar_pieces_is_parsed_or_refused(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)
    ) {
        check_spans(pieces.concat().as_bytes())?;
    }
}

const PIECES: &[&str] = &[
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "ONBUILD ",
    "HEALTHCHECK ",
    "CMD ",
    "SHELL ",
    "\n",
    "\r\n",
    " ",
    "\t",
    "\\\n",
    "\\",
    "#",
    "# escape=`\n",
    "`",
    "<<EOF",
    "<<-\"A B\"",
    "EOF\n",
    "A B\n",
    "[\"",
    "\"]",
    "\"",
    "'",
    "=",
    "--mount=",
    "--from=",
    "--",
    "a",
    "$x",
    "${",
    "}",
    ":-",
    "é",
    "\u{a0}",
    "\u{feff}",
    ",",
    "1",
];

fn check_spans(bytes: &[u8]) -> std::result::Result<(), TestCaseError> {
    let count = bytes.split_inclusive(|b| *b == b'\n').count().max(1) as u32;
    let spans = match parse(bytes) {
        Ok(document) => {
            let _ = detect_syntax(bytes);
            let mut last = 0;
            for line in &document.lines {
                prop_assert!(line.span.start.0 > last, "{:?}", line);
                last = line.span.end.0;
            }
            let spans: Vec<SourceSpan> = document.lines.iter().map(|line| line.span).collect();
            let file = base::SourceFile::default();
            let file = std::sync::Arc::new(file);
            let linter = crate::lint::Linter::new(
                Default::default(),
                (&file, base::Digest::of("")),
                crate::lint::Audience::Nobody,
            );
            match crate::instruction::stages(document, &linter) {
                Ok(_) => spans,
                Err(error) => error.spans().iter().copied().chain(spans).collect(),
            }
        }
        Err(error) => error.spans().to_vec(),
    };
    for span in spans {
        let inside = 1 <= span.start.0 && span.start.0 <= span.end.0 && span.end.0 <= count;
        prop_assert!(inside, "{:?} of {} lines", span, count);
    }
    Ok(())
}
